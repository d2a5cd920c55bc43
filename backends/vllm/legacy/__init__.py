"""The old 2:4 checkpoints of compressed-tensors 0.14.0.1: written for old vLLMs, read for new."""
