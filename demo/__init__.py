"""The built-in model and its text."""
