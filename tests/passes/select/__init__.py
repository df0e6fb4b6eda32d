"""Selection and budgets."""
