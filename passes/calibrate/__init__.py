"""What linear maps see on calibration text, recorded block by block, in the dense model and in the pruned one."""
