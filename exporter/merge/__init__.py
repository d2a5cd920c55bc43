"""Merging of adapters into sparse weights: the policies, and fused tensors on demand."""
