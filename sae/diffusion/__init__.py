"""Load a diffusers pipeline, run it, and read what its denoiser computes."""
