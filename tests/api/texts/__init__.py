"""Tests of the texts of a request."""
