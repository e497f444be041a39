"""The kernels, one family a file, written once for every vector unit."""
