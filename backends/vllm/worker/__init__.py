"""Programs for vLLM's own environment; run by path, with nothing of ours on the import path."""
