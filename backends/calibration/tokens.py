"""The tokenizer of a model folder, through transformers: local files, no code from the folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from exporter.errors import InputRefused


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer.

    Raises:
        InputRefused: `input-missing` where there is no folder, or transformers cannot make one of
            its files.
    """
    if not folder.is_dir():  # transformers would take the path for a name of the hub
        raise InputRefused("input-missing", "no such folder", file=os.fspath(folder))
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


def tokenise(folder: Path, text: str) -> NDArray[np.int64]:
    """Token ids `[n]` of `text`, without special tokens.

    Raises:
        InputRefused: as `load_tokenizer`.
    """
    encoded = load_tokenizer(folder)(text, add_special_tokens=False, verbose=False)["input_ids"]
    return np.asarray(encoded, dtype=np.int64)
