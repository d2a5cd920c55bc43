"""Training text: a text file, JSON lines, "builtin", or a cached dataset of the hub; as windows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import InputRefused
from harness.documents import FIELD, digest, documents, joined_ids
from harness.text import Tokens, cut


@dataclass(frozen=True)
class Data:
    """Windows of a text, and what the record says of it."""

    rows: Tokens  # [n, length] int64
    source: str  # name without the folders of this machine
    sha256: str  # of the text
    tokens: int


def load_windows(
    tokenizer: Any, source: str, length: int, field: str = FIELD, longest: int | None = None
) -> Data:
    """Windows of `length` tokens, one after the other; a shorter rest is left out.

    Args:
        tokenizer: of transformers; documents are joined by its end token, text is one document.
        source: "builtin", a UTF-8 file, JSON lines, or `NAME[@CONFIG][:SPLIT]` of the hub.
        length: tokens per window.
        field: of a JSON line or a dataset's row: its text.
        longest: what the model reads.

    Raises:
        InputRefused: `data-invalid` for no or too little text or windows longer than the model
            reads, `input-missing` (also a dataset that is not in the cache), `json-invalid`.
    """
    if longest is not None and length > longest:
        raise InputRefused(
            "data-invalid",
            f"windows of {length} tokens",
            expected=f"at most the {longest} that the model reads",
            file="config.json",
            hint="Give a smaller --length.",
        )
    texts = documents(source, field)
    ids = joined_ids(tokenizer, texts)
    rows = cut(ids, length, source)
    name = Path(source).name if Path(source).exists() else source
    return Data(rows, name, digest(texts), int(ids.size))
