"""Directories of torch.export programs."""
