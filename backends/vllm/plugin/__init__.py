"""vLLM's plugin: the quantisation method `sparse-export`, found by vLLM through its entry point.

vLLM calls `register` once in every process it starts (vllm/plugins/__init__.py, group
`vllm.general_plugins`). This module imports nothing until then.
"""

from __future__ import annotations

METHOD = "sparse-export"


def register() -> None:
    """Make `METHOD` known to vLLM; calling it again changes nothing."""
    from vllm.model_executor.layers.quantization import (
        QUANTIZATION_METHODS,
        register_quantization_config,
    )

    if METHOD in QUANTIZATION_METHODS:
        return
    from backends.vllm.plugin.config import SparseExportConfig

    register_quantization_config(METHOD)(SparseExportConfig)
