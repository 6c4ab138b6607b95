"""Sparse autoencoders on diffusion activations: what an SAE is, how it is kept, its codes."""
