"""What the command line reads and prints: arguments, tables, progress, errors."""
