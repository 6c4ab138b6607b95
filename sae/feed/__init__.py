"""Turn stored activations into shuffled batches for training."""
