"""What every expert of a mixture is worth, as a whole."""
