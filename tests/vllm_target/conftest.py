"""The sparse model and the LoRA of the command line's tests."""

from __future__ import annotations

from tests.cli.conftest import plain_lora, sparse_model

__all__ = ["plain_lora", "sparse_model"]
