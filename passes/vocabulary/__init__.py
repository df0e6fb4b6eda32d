"""Tokens removed from a model: which stay, and the cut of everything that counts them."""
