"""Evaluation: perplexity by a stated protocol, of torch models and of exported artefacts."""
