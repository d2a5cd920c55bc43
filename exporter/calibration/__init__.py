"""Calibration: which text, what is measured on it, and what the merge policies cost by it."""
