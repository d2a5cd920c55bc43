"""What both kinds of model share under lm-eval: progress, cut prompts counted, no NaN scored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exporter.contract import Progress
from exporter.errors import UsageError, VerificationFailed

Request = tuple[object, list[int], list[int]]  # (key, context ids, continuation ids)
MAX_NEW = 256  # tokens of an answer, where its task does not say: lm-eval's number


@dataclass
class Watch:
    """Counts of one run."""

    longest: int  # what the model reads
    progress: Progress | None = None
    cut: int = 0  # requests whose context lost its beginning
    done: int = 0
    total: int = 0

    def begin(self, requests: Sequence[object]) -> None:
        """More work is known."""
        self.total += len(requests)

    def step(self, count: int, what: str) -> None:
        """Some of it is done."""
        self.done = min(self.done + count, self.total)
        if self.progress is not None:
            self.progress(what, self.done, self.total)

    def count_cut(self, requests: Iterable[Request]) -> None:
        """The last token is predicted, not read: one more fits."""
        self.cut += sum(len(c) + len(t) > self.longest + 1 for _, c, t in requests)

    def room(self, new: int) -> int:
        """Tokens of a prompt that `new` tokens of an answer leave room for.

        Raises:
            UsageError: `usage` where none are left.
        """
        if new >= self.longest:
            raise UsageError(
                "usage", f"answers of {new} tokens",
                expected=f"fewer than the {self.longest} that the model reads",
                hint="Set max_gen_toks in the task's file.",
            )  # fmt: skip
        return self.longest - new


def require_finite(values: Iterable[float]) -> None:
    """Stop where a likelihood is none.

    Raises:
        VerificationFailed: `values-not-finite`.
    """
    bad = next((v for v in values if not math.isfinite(v)), None)
    if bad is not None:
        raise VerificationFailed(
            "values-not-finite", f"evaluation: the likelihood of an answer is {bad}",
            expected="finite logits", tensor="logits",
        )  # fmt: skip
