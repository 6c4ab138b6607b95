"""Diffusion pipelines to activations, in shards."""
