"""Edit SAE features while a pipeline draws."""
