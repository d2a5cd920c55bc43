"""The sparse model and LoRA of the command line's tests, and vLLM for one test at a time."""

from __future__ import annotations

from tests.cli.conftest import plain_lora, sparse_model
from tests.vllm.conftest import vllm_alone, vllm_python

__all__ = ["plain_lora", "sparse_model", "vllm_alone", "vllm_python"]
