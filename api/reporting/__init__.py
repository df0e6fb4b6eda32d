"""``report``: files of runs, analyses and measurements, read for one page."""
