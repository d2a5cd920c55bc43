"""Activations of a model over calibration text, by torch and transformers, block by block."""
