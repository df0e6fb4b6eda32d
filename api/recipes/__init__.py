"""Recipes: everything that a command of ``apply`` can say, in a YAML file."""
