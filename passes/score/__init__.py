"""What every unit is worth, by criterion."""
