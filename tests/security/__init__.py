"""What strangers may write into the files that are read."""
