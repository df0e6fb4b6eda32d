"""The way out: graph and weights become files, verified by the programs that will load them."""
