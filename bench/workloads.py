"""What is run: a prompt, a number of greedy tokens after it, so many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exporter.errors import UsageError

Measures = Literal["prefill", "generate", "both"]
Gate = Literal["itl", "tpot", "prefill", "ttft", "e2e"]

BATCHES = (1, 4, 16)
PREFILLS = (128, 512, 2048)


@dataclass(frozen=True)
class Workload:
    """`prompt_tokens` in, `new_tokens` out, `batch` at once. Random tokens repeat by `seed`.

    `gate` is the figure by which two sides are judged; all others are told. `prompts` replaces
    the random tokens (real text, already tokenised) and is taken in turn.
    """

    prompt_tokens: int = 128
    new_tokens: int = 64
    seed: int = 0
    name: str = "both"
    batch: int = 1
    measures: Measures = "both"
    gate: Gate = "tpot"
    prompts: tuple[tuple[int, ...], ...] = ()
    slo_ttft_ms: float | None = None
    slo_tpot_ms: float | None = None

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise UsageError("usage", f"{self.prompt_tokens} prompt tokens", expected="at least 1")
        if self.batch < 1:
            raise UsageError("usage", f"a batch of {self.batch}", expected="at least 1")
        if self.measures != "prefill" and self.new_tokens < 2:
            raise UsageError(
                "usage",
                f"{self.new_tokens} new tokens",
                expected="at least 2: the time between tokens needs two",
            )

    def prompt(self, vocab: int) -> tuple[int, ...]:
        """Token ids of the first sequence: see `sequences`."""
        return self.sequences(vocab, 0)[0]

    def sequences(self, vocab: int, round_: int) -> list[tuple[int, ...]]:
        """One prompt for each sequence of the batch, uniform over `[0, vocab)`.

        A decoder without conditional layers does the same work for every token id, so random
        ids time as real text does; no tokenizer is needed. Prompts of a file move on by the
        batch each round, so that both sides see each of them.
        """
        if self.prompts:
            start = round_ * self.batch
            return [self.prompts[(start + i) % len(self.prompts)] for i in range(self.batch)]
        draw = np.random.default_rng(self.seed)
        size = (self.batch, self.prompt_tokens)
        return [tuple(int(t) for t in row) for row in draw.integers(0, vocab, size=size)]

    def fits(self, max_tokens: int) -> None:
        """Refuse a workload that is longer than the artefact's cache.

        Raises:
            UsageError: `usage`.
        """
        need = self.length
        if need > max_tokens:
            raise UsageError(
                "usage",
                f"{need - self.new_after} prompt and {self.new_after} new tokens are {need}",
                expected=f"at most {max_tokens}, the longest sequence of the artefact",
                hint="Lower --prompt-tokens or --new-tokens, or export with a longer sequence.",
            )

    @property
    def new_after(self) -> int:
        """New tokens; none where only the prompt is fed."""
        return 0 if self.measures == "prefill" else self.new_tokens

    @property
    def length(self) -> int:
        """Longest sequence, prompt and answer."""
        longest = max((len(p) for p in self.prompts), default=self.prompt_tokens)
        return longest + self.new_after


def decode(batch: int = 1, prompt_tokens: int = 128, new_tokens: int = 64) -> Workload:
    """Tokens after a prompt, judged by the median time between two."""
    return Workload(
        prompt_tokens,
        new_tokens,
        name=f"decode-b{batch}",
        batch=batch,
        measures="generate",
        gate="itl",
    )


def prefill(prompt_tokens: int) -> Workload:
    """A prompt alone."""
    return Workload(
        prompt_tokens, 0, name=f"prefill-{prompt_tokens}", measures="prefill", gate="prefill"
    )


def mixed(prompt_tokens: int = 512, new_tokens: int = 64) -> Workload:
    """A whole request, judged end to end."""
    return Workload(
        prompt_tokens,
        new_tokens,
        name=f"mixed-{prompt_tokens}-{new_tokens}",
        measures="generate",
        gate="e2e",
    )


def standard() -> tuple[Workload, ...]:
    """Decode at batch 1, 4 and 16, prefill of 128, 512 and 2048 tokens, and both together."""
    return (*map(decode, BATCHES), *map(prefill, PREFILLS), mixed())


def why_not(workload: Workload, max_tokens: Sequence[int], max_batch: Sequence[int]) -> str | None:
    """Why a workload cannot be run on these sessions, or None."""
    if workload.length > min(max_tokens):
        return f"needs {workload.length} tokens, the artefact takes {min(max_tokens)}"
    if workload.batch > min(max_batch):
        return f"needs batch {workload.batch}, the session takes {min(max_batch)}"
    return None
