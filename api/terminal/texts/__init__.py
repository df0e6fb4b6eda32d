"""Texts on the command line: how they are named, and what is shown of them."""
