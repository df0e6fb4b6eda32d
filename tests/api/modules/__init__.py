"""Of modules that are no models of transformers."""
