"""What the engine is compared with: all logits of a live reference, or those in the self-test."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from exporter.errors import InputRefused
from exporter.store.dtypes import F32
from exporter.verify.rows import Rows, compare_full, compare_stored
from exporter.verify.selftest import SelfTest


class Truth(Protocol):
    """The reference's logits; row `r` of a prompt follows its token `r` (answer included)."""

    @property
    def kind(self) -> Literal["live reference", "stored self-test"]:
        """For the report."""
        ...

    def compare(self, prompt: int, first: int, engine: F32) -> Rows:
        """`engine [T, V]` against rows `[first : first + T]` of a prompt."""
        ...

    def gap(self, prompt: int, row: int, token: int) -> tuple[float, float]:
        """Reference: best logit less that of `token` (inf if unknown), and the row's peak."""
        ...


class Spill:
    """All logits of the reference in an unnamed file, so that it and the engine need not live
    in memory at one time; the file is gone when it is closed or the process dies."""

    kind: Literal["live reference", "stored self-test"] = "live reference"

    def __init__(self, folder: Path, vocab: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._vocab = vocab
        self._starts: list[int] = []  # first row of each prompt
        self._rows = 0

    def begin_prompt(self) -> None:
        """What is added from here on belongs to the next prompt."""
        self._starts.append(self._rows)

    def add(self, logits: F32) -> None:
        """Append rows `[T, V]`.

        Raises:
            InputRefused: `output-failed`.
        """
        try:
            self._file.write(np.ascontiguousarray(logits, dtype="<f4").data)
        except OSError as error:
            raise InputRefused("output-failed", f"the reference's logits: {error}") from None
        self._rows += len(logits)

    def read(self, prompt: int, first: int, count: int) -> F32:
        """Rows `[first : first + count]` of a prompt, `[count, V]`."""
        self._file.flush()
        out = np.empty((count, self._vocab), dtype="<f4")
        view, at = out.data.cast("B"), (self._starts[prompt] + first) * self._vocab * 4
        done = 0
        while done < len(view):
            done += (got := os.preadv(self._file.fileno(), [view[done:]], at + done))
            if not got:
                raise IndexError(f"prompt {prompt} has no row {first + count - 1}")
        return out

    def compare(self, prompt: int, first: int, engine: F32) -> Rows:
        """See `Truth`; KL over the whole vocabulary."""
        return compare_full(self.read(prompt, first, len(engine)), engine)

    def gap(self, prompt: int, row: int, token: int) -> tuple[float, float]:
        """See `Truth`."""
        logits = self.read(prompt, row, 1)[0].astype(np.float64)
        return float(logits.max() - logits[token]), float(np.abs(logits).max())

    def close(self) -> None:
        """Free the disk."""
        self._file.close()


class Stored:
    """The self-test as the truth: top logits everywhere, all logits at two places."""

    kind: Literal["live reference", "stored self-test"] = "stored self-test"

    def __init__(self, selftest: SelfTest) -> None:
        self._test = selftest
        self._last = len(selftest.prompts.tokens) - 1

    def compare(self, prompt: int, first: int, engine: F32) -> Rows:
        """See `Truth`; KL over the stored tokens and the rest of the mass."""
        test, start = self._test, self._test.start(prompt) + first
        part = slice(start, start + len(engine))
        rows = compare_stored(
            test.top_ids[part].astype(np.int64),
            test.top_logits[part],
            test.logsumexp[part].astype(np.float64),
            test.peak[part].astype(np.float64),
            engine,
        )
        for row, full in self._whole_rows() if prompt == self._last else ():
            if first <= row < first + len(engine):
                i = row - first
                error = compare_full(full[None], engine[i : i + 1])
                rows.max_abs[i] = max(rows.max_abs[i], error.max_abs[0])
                rows.max_rel[i] = max(rows.max_rel[i], error.max_rel[0])
        return rows

    def gap(self, prompt: int, row: int, token: int) -> tuple[float, float]:
        """See `Truth`."""
        at = self._test.start(prompt) + row
        place = np.flatnonzero(self._test.top_ids[at] == token)
        best = self._test.top_logits[at].astype(np.float64)
        gap = float(best[0] - best[place[0]]) if len(place) else float("inf")
        return gap, float(self._test.peak[at])

    def _whole_rows(self) -> tuple[tuple[int, F32], tuple[int, F32]]:
        length = len(self._test.prompts.tokens[self._last])
        step = length + self._test.prompts.new_tokens - 2
        return (length - 1, self._test.last_prefill), (step, self._test.last_decode)
