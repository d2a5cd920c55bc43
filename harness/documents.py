"""Texts of a source: a text file, JSON lines, "builtin", or a dataset of the hub in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from exporter.calibration.source import read_text
from exporter.errors import InputRefused, UsageError
from harness.text import BUILTIN, MAX_BYTES, Tokens, load_text, token_ids

FIELD = "text"  # of a JSON line or a dataset's row, where no other is named
_LINES = (".jsonl", ".ndjson")
_FILES = (*_LINES, ".txt", ".md", ".text", ".json")


def documents(source: str, field: str = FIELD) -> list[str]:
    """The texts of a source, in its order.

    Raises:
        InputRefused: `data-invalid`, `json-invalid`, `input-missing` (also a dataset that is not in
            the cache), `input-*`, `limit-exceeded`.
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


def json_lines(text: str) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank.

    Not `splitlines`: a JSON text may hold U+2028 and its kin.
    """
    lines = enumerate(text.split("\n"), start=1)
    return ((number, line) for number, line in lines if line.strip())


def _lines(text: str, field: str, file: str) -> list[str]:
    found: list[str] = []
    for number, line in json_lines(text):
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
        from datasets import load_dataset
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
        with _offline():
            rows = cast(
                Iterable[dict[str, Any]], load_dataset(name, config or None, split=split or "train")
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


@contextmanager
def _offline() -> Generator[None]:
    """No request leaves, whatever the environment says: the libraries read these when they ask.

    `local_files_only` alone still asks the hub for the dataset's newest revision.
    """
    import datasets.config
    import huggingface_hub.constants

    places: list[Any] = [datasets.config, huggingface_hub.constants]
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def digest(texts: list[str]) -> str:
    """sha256 of the texts; of one text, that of its UTF-8 bytes."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def joined_ids(tokenizer: Any, texts: list[str]) -> Tokens:
    """Token ids `[n]` int64: each text, and the end token behind each where there are several."""
    end = tokenizer.eos_token_id
    stop = [end] if len(texts) > 1 and end is not None else []
    parts = [np.append(token_ids(tokenizer, text), np.asarray(stop, np.int64)) for text in texts]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
