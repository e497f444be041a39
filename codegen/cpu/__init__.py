"""Kernels for processors with vector units, and what they are written with."""
