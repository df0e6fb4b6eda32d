"""Gradients of a loss: by activations and by weights, and the Taylor terms that are made of them."""
