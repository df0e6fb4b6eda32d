"""Model directories that transformers loads: written, described by a config, checked."""
