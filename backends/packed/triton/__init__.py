"""Kernels that load sparse weights and compute densely on a GPU; import `.ops`, never `triton` here."""
