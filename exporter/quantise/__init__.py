"""Quantised values on a mask: symmetric rounding, and error feedback; zeros stay zeros."""
