"""Which channels live and die together: groups of axes, and why they are one."""
