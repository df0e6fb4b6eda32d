"""Programs of `torch.export`: modules that are no Hugging Face models."""
