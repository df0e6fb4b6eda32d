"""The tokens of a tokenizer: which can go, which others they need, and the tokenizer without them."""
