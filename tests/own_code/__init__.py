"""Models that bring their own code."""
