"""Runs a model block by block: its weights, its forward, its gradients."""
