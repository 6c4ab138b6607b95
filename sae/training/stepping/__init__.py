"""Take a step of a training: by kernels in a CUDA graph where they fit, else by automatic
differentiation."""
