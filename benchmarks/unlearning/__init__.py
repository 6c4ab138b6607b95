"""What the ablation is compared with, and attacked by: each method as its paper has it, on any
StableDiffusionPipeline.

Not part of the installed packages: run from the repository's root, as
``python -m benchmarks.unlearning.results``.
"""
