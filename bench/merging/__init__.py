"""What merging a LoRA costs: beside a plain copy, an export without adapter, and peft."""
