"""Sparse autoencoders on diffusion activations: train, encode, ablate."""
