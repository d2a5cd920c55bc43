"""Loading a Hugging Face folder through transformers: local, safetensors only, no code from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from backends.calibration.tokens import load_tokenizer

__all__ = ["load_float32", "load_tokenizer"]


def load_float32(folder: Path) -> Any:
    """The folder's causal language model in float32 on the CPU, frozen, ready to train adapters.

    The folder must have passed `check_model`: its faults are named there, not here.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = cast(Any, AutoModelForCausalLM).from_pretrained(
        os.fspath(folder),
        dtype="float32",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    model.config.use_cache = False
    return model.requires_grad_(False)
