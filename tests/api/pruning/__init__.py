"""Tests of apply: interrupted, repeated, in several processes."""
