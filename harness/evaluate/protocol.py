"""What a perplexity is of: windows of a text, how far apart, and which of their tokens count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from exporter.errors import UsageError


@dataclass(frozen=True)
class Protocol:
    """Windows of `length` tokens that begin `stride` tokens apart, `tokens` of the text at most.

    Each token of the text is scored once, by the first window that holds it with at least one
    token before it; with `stride` equal to `length` (None) the windows do not overlap, and the
    first token of each is not scored: the protocol of the GPTQ, SparseGPT and Wanda code. A
    smaller stride gives each token at least `length - stride` tokens of context.
    """

    length: int = 1024
    stride: int | None = None
    tokens: int | None = None

    @property
    def step(self) -> int:
        """Tokens from the beginning of one window to that of the next."""
        return self.length if self.stride is None else self.stride

    def checked(self, longest: int) -> Protocol:
        """This protocol, if a model that reads `longest` tokens can be scored by it.

        Raises:
            UsageError: `usage`.
        """
        if not 2 <= self.length <= longest:
            raise _usage(f"windows of {self.length} tokens", f"from 2 to the model's {longest}")
        if not 1 <= self.step <= self.length:
            raise _usage(f"a stride of {self.step}", f"from 1 to the window's {self.length}")
        return self

    def windows(self, total: int) -> Iterator[tuple[int, int, int]]:
        """`(first, last, scored)` of a text of `total` tokens: token `first` to `last - 1` are
        read, those from `scored` on are predicted.

        A last window that is shorter is read too where windows overlap; where they do not it is
        left out, as in the code named above.
        """
        total = total if self.tokens is None else min(total, self.tokens)
        done = 0  # tokens before this one were scored, or never will be
        for first in range(0, total, self.step):
            last = min(first + self.length, total)
            scored = max(done, first + 1)
            short = last - first < self.length and self.step == self.length
            if scored >= last or short:
                return
            yield first, last, scored
            done = last


def _usage(found: str, expected: str) -> UsageError:
    return UsageError("usage", found, expected=expected, hint="Correct --length or --stride.")
