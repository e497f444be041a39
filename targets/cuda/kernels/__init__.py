"""Kernels for the GPU, one family a file; they take the arguments of the shared ones."""
