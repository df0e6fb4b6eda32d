"""Any `torch.nn.Module` and example inputs in, a smaller module out."""
