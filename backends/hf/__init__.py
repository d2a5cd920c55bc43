"""Target `hf`: the fused model as a plain Hugging Face folder."""
