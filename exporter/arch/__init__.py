"""Decoder families as data files, and the one loader that turns a config into a spec."""
