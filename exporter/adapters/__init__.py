"""Adapters (PEFT LoRA, LoSA bundles) read strictly into deltas and replaced tensors."""
