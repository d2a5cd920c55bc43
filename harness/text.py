"""Text for calibration and training: a file, or the one that every CPython carries; as windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.calibration.source import read_text
from exporter.errors import InputRefused

BUILTIN = "builtin"
MAX_BYTES = 256_000_000  # of a text file: it is tokenised in one piece

Tokens = NDArray[np.int64]


def load_text(source: str) -> str:
    """The text of `source`: a UTF-8 file, or "builtin".

    "builtin" is the language reference that CPython carries for `help()` (`pydoc_data.topics`,
    some 600 kB of English prose), its topics in the order of their names: no download, and the
    same text in each run of one Python version.

    Raises:
        InputRefused: `input-missing`, `input-unreadable`, `limit-exceeded`, `data-invalid` (no
            UTF-8, or empty).
    """
    if source == BUILTIN:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    return read_text(Path(source), MAX_BYTES)


def token_ids(tokenizer: Any, text: str) -> Tokens:
    """Token ids `[n]` int64 of `text`, tokenised in one piece, without special tokens."""
    encoded = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return np.asarray(encoded, dtype=np.int64)


def windows(tokenizer: Any, source: str, length: int) -> Tokens:
    """Token ids `[n, length]` int64: the text of `source` cut into windows one after the other.

    A rest shorter than `length` is left out.

    Args:
        tokenizer: of transformers; no special tokens are added.
        source: see `load_text`.
        length: tokens per window.

    Raises:
        InputRefused: those of `load_text`; `data-invalid` where not one window fits.
    """
    return cut(token_ids(tokenizer, load_text(source)), length, source)


def cut(ids: Tokens, length: int, source: str) -> Tokens:
    """Token ids `[n]` as windows `[n // length, length]` one after the other; the rest goes.

    Raises:
        InputRefused: `data-invalid` where not one window fits; `source` names the text.
    """
    count = ids.size // length
    if count == 0:
        raise InputRefused(
            "data-invalid",
            f"{ids.size} tokens",
            expected=f"at least one window of {length} tokens",
            file=source,
            hint="Give more text, or a smaller --length.",
        )
    return ids[: count * length].reshape(count, length)


def draw(rows: Tokens, count: int, seed: int) -> Tokens:
    """`count` different windows of `rows` (all where there are fewer), drawn by `seed`."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows[order[:count]]
