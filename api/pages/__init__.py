"""``report``: runs and analyses as one page, and the pictures in it."""
