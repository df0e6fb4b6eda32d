"""What may happen to a process while it runs."""
