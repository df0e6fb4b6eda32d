"""The model under a pass."""
