"""Refits and training."""
