"""Graph to graph: dependency analysis, scoring, selection, rewriting, recovery, and the manager that runs them."""
