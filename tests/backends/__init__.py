"""Backends: directories, digests, verification, and each format in a folder of its own."""
