"""Recording on calibration text."""
