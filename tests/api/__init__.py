"""The calls that users make, and the command line."""
