"""Data sets of inputs: samples for any model, by argument name, from files, folders, tables and functions."""
