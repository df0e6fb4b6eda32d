"""Tiny configurations of the architectures of transformers, as data."""
