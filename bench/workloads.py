"""What is run: a prompt of random tokens and a number of greedy tokens after it, batch 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.errors import UsageError


@dataclass(frozen=True)
class Workload:
    """One request: `prompt_tokens` in, `new_tokens` out. Random tokens repeat by `seed`."""

    prompt_tokens: int = 128
    new_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise UsageError("usage", f"{self.prompt_tokens} prompt tokens", expected="at least 1")
        if self.new_tokens < 2:
            raise UsageError(
                "usage",
                f"{self.new_tokens} new tokens",
                expected="at least 2: the time between tokens needs two",
            )

    def prompt(self, vocab: int) -> tuple[int, ...]:
        """Token ids, uniform over `[0, vocab)`.

        A decoder without conditional layers does the same work for every token id, so random
        ids time as real text does; no tokenizer is needed.
        """
        draw = np.random.default_rng(self.seed)
        return tuple(int(t) for t in draw.integers(0, vocab, size=self.prompt_tokens))

    def fits(self, max_tokens: int) -> None:
        """Refuse a workload that is longer than the artefact's cache.

        Raises:
            UsageError: `usage`.
        """
        need = self.prompt_tokens + self.new_tokens
        if need > max_tokens:
            raise UsageError(
                "usage",
                f"{self.prompt_tokens} prompt and {self.new_tokens} new tokens are {need}",
                expected=f"at most {max_tokens}, the longest sequence of the artefact",
                hint="Lower --prompt-tokens or --new-tokens, or export with a longer sequence.",
            )
