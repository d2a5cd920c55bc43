"""The tuning side (`sparse-tune`): pruning and training of adapters on Hugging Face folders."""
