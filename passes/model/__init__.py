"""The model under a pass: its blocks, its tensors by name, its forward, its size."""
