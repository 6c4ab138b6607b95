"""Run a pipeline over prompts and keep its activations, in shards."""
