"""Texts and inputs that a call is given: which there are, how they are read, and which a model has seen."""
