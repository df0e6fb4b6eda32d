"""apply: from what a user asks for to a directory that transformers loads."""
