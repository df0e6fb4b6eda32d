"""``analyze``: what cuts cost, as a table, as JSON and as a picture, and the command that comes next."""
