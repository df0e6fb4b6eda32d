"""What a model directory that a stranger wrote tries, and what it does not get."""
