"""Of passes/analyze/."""
