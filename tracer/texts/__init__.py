"""Texts and their rows, tokenised; what was read of them."""
