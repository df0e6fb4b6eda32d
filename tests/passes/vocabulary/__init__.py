"""Tokens removed."""
