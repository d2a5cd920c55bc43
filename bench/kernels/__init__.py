"""Kernel benchmark: sparse against dense twins and torch, interleaved, as ratios."""
