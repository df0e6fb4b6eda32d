"""Files of a stranger that are read: each is read, or refused with a message."""
