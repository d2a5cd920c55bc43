"""Kernels that load sparse weights and compute densely, and the operator that calls them."""
