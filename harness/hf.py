"""Loading a Hugging Face folder through transformers: local, safetensors only, no code from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from exporter.errors import InputRefused


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer.

    Raises:
        InputRefused: `input-missing` where transformers cannot make one of the files.
    """
    from transformers import AutoTokenizer

    try:
        return cast(Any, AutoTokenizer).from_pretrained(
            os.fspath(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputRefused(
            "input-missing",
            f"no usable tokenizer: {error}",
            expected="tokenizer.json as save_pretrained writes it",
            file=folder.name,
        ) from error


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
