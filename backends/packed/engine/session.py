"""Session on the CPU kernels, in process: a step is one native call, a cache for each sequence."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from backends.packed.engine.choose import Chooser
from backends.packed.engine.load import Settings, load
from backends.packed.kernels.decoder import Decoder, Plan, Rows
from backends.packed.kernels.library import library
from exporter.contract import Facts, Generation
from exporter.errors import EngineUnfit, InputRefused
from exporter.memory import peak_rss_bytes
from exporter.store.dtypes import F32

__all__ = ["PackedSession", "open_session"]

_CHUNK = 64  # rows of a step of a prompt


def open_session(
    folder: Path, settings: Settings, chooser: Chooser, threads: int | None = None
) -> PackedSession:
    """Load a packed folder.

    Args:
        threads: of the kernels, the caller's included; None: OMP_NUM_THREADS, or the affinity.

    Raises:
        EngineUnfit: `engine-missing`, `engine-unfit`; `engine-refused` for a folder that is not
            whole or not ours.
    """
    start, before = time.perf_counter(), library().threads
    if threads is not None:
        library().threads = threads
    try:
        plan = load(folder, settings, chooser)
        told = chooser.told()
        return PackedSession(plan, before, told, lambda: time.perf_counter() - start)
    except EngineUnfit:
        library().threads = before
        raise
    except (InputRefused, MemoryError) as error:
        library().threads = before
        raise EngineUnfit("engine-refused", str(error)[:2000]) from error


class PackedSession:
    """A decoder of the library and the sequences it holds; also `contract.Batches`."""

    def __init__(
        self, plan: Plan, threads: int, told: Mapping[str, str], seconds: Callable[[], float]
    ) -> None:
        """Build the plan.

        Args:
            plan: what `load` made.
            threads: to go back to when it is closed.
            told: what was chosen for each kind of linear.
            seconds: since loading began.
        """
        self._lib = library()
        self._plan: Plan | None = plan
        self._decoder = Decoder(plan, self._lib)
        self._before, self._threads = threads, self._lib.threads
        self._told = told
        self._length = 0  # tokens in the cache of slot 0
        self._linears = plan.linears()
        self._load_seconds = seconds()
        self.max_batch = plan.slots

    @property
    def max_tokens(self) -> int:
        """Longest sequence, prompt and answer together."""
        return len(self._open.tables[0])

    def prefill(self, tokens: Sequence[int], *, logits: Literal["all", "last"] = "all") -> F32:
        """Empty the cache, feed `tokens`; float32 logits `[T, V]`, or `[1, V]` for "last".

        Raises:
            EngineUnfit: `engine-refused`: closed, too long, or a token outside the vocabulary.
        """
        self._length = 0
        found: list[F32] = []
        for rows, last in self._prompt(tokens):
            first = 0 if logits == "all" else len(rows.tokens) - last
            found.append(self._decoder.logits(rows, first))
        self._length = len(tokens)
        return np.concatenate(found)

    def decode(self, token: int) -> F32:
        """Feed one token after what the cache holds; float32 logits `[V]`. Errors as `prefill`."""
        rows = self._checked([token], 0, self._length)
        found = self._decoder.logits(rows, 0)[0]
        self._length += 1
        return found

    def generate(self, tokens: Sequence[int], n: int) -> Generation:
        """As `Session.generate`. Errors as `prefill`."""
        return self.generate_batch([tokens], n)[0]

    def generate_batch(self, prompts: Sequence[Sequence[int]], n: int) -> list[Generation]:
        """As `Batches.generate_batch`: prompts one after the other, then all step together.

        Raises:
            EngineUnfit: `engine-refused`, also for more than `max_batch` prompts.
        """
        if not 0 < len(prompts) <= self.max_batch:
            raise _refused(f"{len(prompts)} sequences at once", f"1 to {self.max_batch}")
        start = time.perf_counter()
        found: list[list[int]] = [[] for _ in prompts]
        seconds: list[list[float]] = [[] for _ in prompts]
        for slot, prompt in enumerate(prompts):
            if n:
                self._check_length(len(prompt) + n - 1)
                found[slot] += self._first_token(prompt, slot)
                seconds[slot].append(time.perf_counter() - start)
        slots = list(range(len(prompts)))
        for step in range(n - 1):
            at = [len(prompt) + step for prompt in prompts]
            best = self._decoder.greedy(Rows([each[-1] for each in found], slots, at), 0)
            now = time.perf_counter() - start
            for slot, token in enumerate(best):
                found[slot].append(token)
                seconds[slot].append(now)
        self._length = len(prompts[0]) + max(0, n - 1)
        return [Generation(tuple(f), tuple(s)) for f, s in zip(found, seconds, strict=True)]

    def hidden_states(self, tokens: Sequence[int]) -> Mapping[str, F32]:
        """As `Target.probe`; ends the sequence that the session holds. Errors as `prefill`."""
        self._length = 0
        chunks = [self._decoder.states(rows) for rows, _ in self._prompt(tokens)]
        states = np.concatenate(chunks, axis=1)
        layers = [f"layer.{i}" for i in range(self._open.spec.layers)]
        return dict(zip(("embedding", *layers, "norm"), states, strict=True))

    def facts(self) -> Facts:
        """What runs here."""
        return Facts(
            engine="sparse-export packed",
            version=version("sparse-export"),
            threads=self._threads,
            ops_share=1.0,  # all of it runs in the library
            weight_bytes=self._open.step_bytes(),
            peak_rss_bytes=peak_rss_bytes(),
            load_seconds=self._load_seconds,
            extra={
                "isa": self._linears[0].isa.label,
                "cache": f"float32, {self.max_batch} sequences",
                "chunk": _CHUNK,
                "choices": dict(self._told),
                "activations": self._linears[0].precision,
            },
        )

    def close(self) -> None:
        """Free weights and cache; the threads that were before come back. May be called twice."""
        if self._plan is not None:
            self._decoder.close()
            self._lib.threads = self._before
        self._plan, self._linears = None, []

    @property
    def _open(self) -> Plan:
        if self._plan is None:
            raise _refused("the session is closed", "an open one")
        return self._plan

    def _first_token(self, prompt: Sequence[int], slot: int) -> list[int]:
        found: list[int] = []
        for rows, last in self._prompt(prompt, slot):
            found = self._decoder.greedy(rows, len(rows.tokens) - last)
        return found

    def _prompt(self, tokens: Sequence[int], slot: int = 0) -> list[tuple[Rows, int]]:
        """Steps that feed a prompt from position 0, and whether each is the last: 0 or 1."""
        starts = range(0, max(1, len(tokens)), _CHUNK)
        self._check_length(len(tokens))
        return [
            (self._checked(tokens[at : at + _CHUNK], slot, at), int(at == starts[-1]))
            for at in starts
        ]

    def _checked(self, tokens: Sequence[int], slot: int, at: int) -> Rows:
        """Rows of one sequence."""
        self._check_length(at + len(tokens))
        vocab = self._open.spec.vocab
        for token in tokens:
            if not 0 <= int(token) < vocab:
                raise _refused(f"token {token}", f"0 to {vocab - 1}")
        count = len(tokens)
        return Rows([int(t) for t in tokens], [slot] * count, list(range(at, at + count)))

    def _check_length(self, length: int) -> None:
        if not 0 < length <= self.max_tokens:
            raise _refused(f"a sequence of {length} tokens", f"1 to {self.max_tokens}")


def _refused(found: str, expected: str) -> EngineUnfit:
    return EngineUnfit("engine-refused", found, expected=expected)
