"""Whole layers and sub-blocks taken out."""
