"""Where a model runs: devices, their memory, and what a model needs of it."""
