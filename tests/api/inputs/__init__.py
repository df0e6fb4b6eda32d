"""Tests of data sets of inputs, from the command line to the artifact."""
