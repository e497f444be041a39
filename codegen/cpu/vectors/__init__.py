"""What kernels are written with: vectors, their math, and what a processor's unit can do."""
