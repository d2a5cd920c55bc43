"""Whole decoders against one another: ours, DeepSparse, onnxruntime, torch and llama.cpp."""
