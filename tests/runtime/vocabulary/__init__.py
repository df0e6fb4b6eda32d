"""Tests of tokenizers that lose tokens."""
