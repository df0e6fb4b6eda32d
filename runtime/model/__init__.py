"""What a model of transformers, or of code of its own, says of itself."""
