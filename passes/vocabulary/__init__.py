"""Tokens removed from a model: which stay."""
