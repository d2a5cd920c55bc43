"""The eight prompts of the self-test: the same for everyone, and never outside the vocabulary."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LENGTHS = (5, 9, 16, 17, 40, 77, 128, 200)  # on and beside multiples of 16 and 64
NEW_TOKENS = 32
_SEED = 20260101

# Prose, a list, code, numbers and a dialogue: tokens of many kinds, not only frequent words.
_TEXT = (
    "The river had been rising since Tuesday, and by the time the ferry turned back there was "
    "no crossing left between the mill and the old stone bridge.",
    "Water boils at 100 degrees Celsius at sea level, but at 3,000 metres it already boils near "
    "90 degrees, which is why beans take so long to cook in the mountains.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values)\n",
    "Question: What is the capital of France, and which river runs through it?\nAnswer: The "
    "capital of France is Paris, and the Seine runs through it.",
    "Shopping list: 2 kg of potatoes, 1 l of milk, half a dozen eggs, black tea, rice, salt, "
    "three lemons and a bunch of parsley.",
    '"You are late," said the station master. "The clock is early," she replied, and neither of '
    "them looked up at the tower to see who was right.",
    "In 1905 four short papers changed physics: one on light, one on molecules in motion, one on "
    "moving bodies, and one of three pages on mass and energy.",
    "Once upon a time, in a town where every roof was blue, there lived a painter who had never "
    "seen the sky, for he slept by day and worked by the light of lamps.",
)


@dataclass(frozen=True)
class Prompts:
    """Token ids of each prompt and how many tokens to add to each."""

    tokens: tuple[tuple[int, ...], ...]
    new_tokens: int
    kind: Literal["text", "random ids"]


def make_prompts(tokenizer: Path | None, vocab: int, max_tokens: int) -> Prompts:
    """Eight prompts that with their answers fit into `max_tokens`, ids below `vocab`.

    Args:
        tokenizer: a tokenizer.json; where it is None, unreadable or of too few tokens, the ids
            are pseudo-random with a fixed seed, and `kind` says so.
        vocab: rows of the embedding.
        max_tokens: longest sequence of model and engine, prompt and answer together.
    """
    new = max(2, min(NEW_TOKENS, max_tokens // 2))
    longest = max(1, max_tokens - new)
    lengths = tuple(min(n, longest) for n in LENGTHS)
    texts = None if tokenizer is None else _encode(tokenizer, vocab, lengths)
    if texts is not None:
        return Prompts(texts, new, "text")
    draw = random.Random(_SEED)
    drawn = tuple(tuple(draw.randrange(vocab) for _ in range(n)) for n in lengths)
    return Prompts(drawn, new, "random ids")


def _encode(
    tokenizer: Path, vocab: int, lengths: tuple[int, ...]
) -> tuple[tuple[int, ...], ...] | None:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    try:
        encoder = Tokenizer.from_file(str(tokenizer))
        encoded = [tuple(encoder.encode(text).ids) for text in _texts()]
    except Exception:  # noqa: BLE001 - tokenizers raises plain Exception for a file it cannot use
        return None
    prompts = tuple(ids[:n] for ids, n in zip(encoded, lengths, strict=True))
    fits = all(len(p) == n for p, n in zip(prompts, lengths, strict=True))
    return prompts if fits and all(t < vocab for p in prompts for t in p) else None


def _texts() -> Iterator[str]:
    """One text a prompt, each beginning with another passage and long enough for all."""
    for first in range(len(LENGTHS)):
        turned = _TEXT[first:] + _TEXT[:first]
        yield "\n\n".join(turned)
