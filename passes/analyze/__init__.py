"""What cuts cost: measured group by group and layer by layer, and the budget that follows from it."""
