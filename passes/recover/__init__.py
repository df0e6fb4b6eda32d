"""What repairs a pruned model: least squares on its consumers, training."""
