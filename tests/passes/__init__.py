"""Passes: pipelines, the manager, and each folder of passes in a folder of its own."""
