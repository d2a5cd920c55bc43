"""Pruning: scores, selection, and the pass over a model folder. One method a file."""
