"""A plan carried out: on the graph, and on the module."""
