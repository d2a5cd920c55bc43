"""Masks as packed bits, and the patterns found in them: unstructured, N:M, structured."""
