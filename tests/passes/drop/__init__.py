"""Layers and sub-blocks taken out."""
