"""fxprune: a compiler for structurally smaller models."""
