"""Weights turned into another basis, in which fewer directions matter."""
