"""The way in: a model, a checkpoint or a text becomes a graph, weights or token windows."""
