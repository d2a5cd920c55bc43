"""Is each answer of a server that of its own request? Each is asked to begin with its prompt."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporter.errors import InputRefused

ECHO = ["--disable-shuffle", "--extra-body", json.dumps({"echo": True})]


def take_prompts(path: Path, count: int) -> list[str]:
    """So many prompts of a file of JSON lines with "prompt", from the top, again and again.

    Raises:
        InputRefused: `input-unreadable`, `json-invalid`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused("input-unreadable", str(error), file=str(path)) from None
    try:
        lines: list[Any] = [json.loads(line) for line in text.splitlines() if line.strip()]
        found = [line["prompt"] for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise InputRefused(
            "json-invalid", f"{error!r:.200}", expected='lines of {"prompt": TEXT}', file=str(path)
        ) from None
    if not found or not all(isinstance(prompt, str) and prompt for prompt in found):
        raise InputRefused("json-invalid", "no prompts, or one that is no text", file=str(path))
    return list(itertools.islice(itertools.cycle(found), count))


def write_prompts(prompts: Sequence[str], path: Path) -> None:
    """The file as `vllm bench serve --dataset-name custom` reads it."""
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts), encoding="utf-8")


def count_foreign(
    prompts: Sequence[str], texts: Sequence[str], errors: Sequence[str]
) -> int | None:
    """Answers that do not begin with the prompt of their own request; lost ones are not counted.

    None where none begins with any: a server that does not know `echo`.
    """
    each = list(zip(prompts, texts, errors, strict=True))
    if not any(text.startswith(prompt) for prompt in set(prompts) for text in texts):
        return None
    return sum(not error and not text.startswith(prompt) for prompt, text, error in each)
