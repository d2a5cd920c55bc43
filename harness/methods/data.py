"""Training text: a text file, JSON lines, "builtin", or a cached dataset of the hub; as windows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from exporter.calibration.source import read_text
from exporter.errors import InputRefused, UsageError
from harness.text import BUILTIN, MAX_BYTES, Tokens, load_text

_LINES = (".jsonl", ".ndjson")
_FILES = (*_LINES, ".txt", ".md", ".text", ".json")


@dataclass(frozen=True)
class Data:
    """Windows of a text, and what the record says of it."""

    rows: Tokens  # [n, length] int64
    source: str  # name without the folders of this machine
    sha256: str  # of the text
    tokens: int


def load_windows(
    tokenizer: Any, source: str, length: int, field: str = "text", longest: int | None = None
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
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    ids = _token_ids(tokenizer, texts)
    count = ids.size // length
    if count == 0:
        raise InputRefused(
            "data-invalid",
            f"{ids.size} tokens",
            expected=f"at least one window of {length} tokens",
            file=source,
            hint="Give more text, or a smaller --length.",
        )
    name = Path(source).name if Path(source).exists() else source
    return Data(ids[: count * length].reshape(count, length), name, digest, int(ids.size))


def documents(source: str, field: str) -> list[str]:
    """The texts of a source, in its order.

    Raises:
        InputRefused: see `load_windows`.
        UsageError: a name of the hub, without the library that knows it.
    """
    if source == BUILTIN:
        return [load_text(source)]
    path = Path(source)
    if path.suffix in _LINES:
        return _lines(read_text(path, MAX_BYTES), field, path.name)
    if path.exists() or path.suffix in _FILES:
        return [load_text(source)]
    return _from_hub(source, field)


def _lines(text: str, field: str, file: str) -> list[str]:
    found: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputRefused("json-invalid", f"line {number}: {error}", file=file) from error
        value: Any = cast(dict[str, Any], row).get(field) if isinstance(row, dict) else None
        if not isinstance(value, str):
            raise InputRefused(
                "data-invalid",
                f"line {number} has no text {field!r}",
                expected=f'{{"{field}": "..."}} in each line',
                file=file,
                hint="Name the field with --field.",
            )
        found.append(value)
    return _some(found, file)


def _from_hub(source: str, field: str) -> list[str]:
    """Rows of a dataset in this machine's cache; nothing is downloaded."""
    try:
        from datasets import DownloadConfig, load_dataset
    except ImportError:
        raise UsageError(
            "usage",
            f"{source!r} is no file, and datasets is not installed",
            expected="a file, or the libraries of the extra `tune`",
            hint='pip install "sparse-export[tune]"',
        ) from None
    name, _, split = source.partition(":")
    name, _, config = name.partition("@")
    try:
        rows = cast(
            Iterable[dict[str, Any]],
            load_dataset(
                name,
                config or None,
                split=split or "train",
                download_config=DownloadConfig(local_files_only=True),
            ),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputRefused(
            "input-missing",
            f"no such file, and no such dataset in the cache ({type(error).__name__})",
            expected="a text, JSON lines, or NAME[@CONFIG][:SPLIT] of a dataset that was fetched",
            file=source,
            hint="Fetch it where there is a network: datasets.load_dataset(NAME).",
        ) from error
    return _some([row[field] for row in rows if isinstance(row.get(field), str)], source)


def _some(texts: list[str], file: str) -> list[str]:
    if not any(text.strip() for text in texts):
        raise InputRefused("data-invalid", "the text is empty", expected="text", file=file)
    return texts


def _token_ids(tokenizer: Any, texts: list[str]) -> Tokens:
    end = tokenizer.eos_token_id
    parts: list[Tokens] = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(texts) > 1 and end is not None:
            ids = [*ids, end]
        parts.append(np.asarray(ids, dtype=np.int64))
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
