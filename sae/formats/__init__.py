"""SAE checkpoints of other libraries, in and out (docs/saes.md). What a file says is honoured or refused by name."""
