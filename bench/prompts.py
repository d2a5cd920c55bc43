"""Prompts from a file: text lines, or JSON lines with "prompt" or "tokens"."""

from __future__ import annotations

import json
from pathlib import Path

from exporter.errors import InputRefused
from exporter.registry import load_calibrator

_MOST = 10_000


def read_prompts(path: Path, tokenizer: Path) -> tuple[tuple[int, ...], ...]:
    """Token ids of each prompt; text by the tokenizer of the folder `tokenizer`.

    `.jsonl`: an object a line, with "tokens" (ids) or "prompt" (text). Anything else: a prompt
    of text a line.

    Raises:
        InputRefused: `input-unreadable`, `data-invalid`; `input-missing` without a tokenizer.
    """
    try:
        lines = [t for t in path.read_text(encoding="utf-8").splitlines() if t.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused("input-unreadable", str(error), file=path.name) from None
    if not 1 <= len(lines) <= _MOST:
        found = f"{len(lines)} prompts"
        raise InputRefused("data-invalid", found, expected=f"1 to {_MOST}", file=path.name)
    if path.suffix == ".jsonl":
        return tuple(_entry(line, i, path.name, tokenizer) for i, line in enumerate(lines, 1))
    return tuple(_tokenise(line, tokenizer) for line in lines)


def _entry(line: str, number: int, file: str, tokenizer: Path) -> tuple[int, ...]:
    try:
        raw = json.loads(line)
        if isinstance(raw.get("prompt"), str) and raw["prompt"]:
            return _tokenise(raw["prompt"], tokenizer)
        tokens = raw["tokens"]
        if tokens and all(type(t) is int and t >= 0 for t in tokens):
            return tuple(tokens)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputRefused(
        "data-invalid",
        f"line {number}",
        expected='{"prompt": "text"} or {"tokens": [1, 2, 3]}',
        file=file,
    )


def _tokenise(text: str, folder: Path) -> tuple[int, ...]:
    return tuple(int(t) for t in load_calibrator().tokenise(folder, text))
