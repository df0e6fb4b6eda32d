"""Passes, from graph to graph: dependency analysis, scores, selection, rewriting, recovery; and the pass manager."""
