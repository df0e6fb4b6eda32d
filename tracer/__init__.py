"""Reads the input: models become graphs, checkpoints weights, texts token windows."""
