"""Target and Session: the whole contract between the compiler and an engine, on one screen.

These Protocols stand in `exporter` because the pipeline is written against them; backends
implement them and are found by name through entry points (`exporter.registry`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from exporter.model import FusedModel, QuantKind
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32

Progress = Callable[[str, int, int], None]  # (what, done, total) in bytes or steps
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class RuntimeWindow:
    """Which versions and which hardware an artefact is meant for, as text for people."""

    engine: str
    versions: str  # "1.8.0", ">=1.20"
    python: str  # ">=3.8,<3.12"
    hardware: str  # "x86-64 with AVX2"
    licence: str = ""  # a limit on use that the user must know


@dataclass(frozen=True)
class RuntimeStatus:
    """What this machine has of the engine."""

    available: bool
    reason: str  # why not, or "ready"
    version: str | None = None  # of the engine found
    python: str | None = None  # of the interpreter that runs it


@dataclass(frozen=True)
class Diagnostic:
    """What a target says about a model before anything is written."""

    level: Literal["note", "warning", "refusal"]
    message: str
    where: str = ""  # module or tensor


@dataclass(frozen=True)
class Tolerance:
    """Bounds of the numeric check; `max_rel` is max|a-b| / max|reference| over logits."""

    max_rel: float
    top1: float = 1.0  # share of positions whose argmax must agree (near ties excepted)


@dataclass(frozen=True)
class PlannedFile:
    """One file that lowering will write, and its size in bytes (estimate for text files)."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class LowerPlan:
    """What lowering will do: files, bytes, and a bound on memory above the interpreter's own."""

    files: tuple[PlannedFile, ...]
    peak_bytes: int
    actions: Mapping[str, str] = field(default_factory=dict)  # tensor -> copied | merged | ...
    # Weights that are stored packed -> bytes of all their parts; files are then planned exactly.
    packed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Packing:
    """How a weight is stored that is not one plain array.

    `kept(r0, r1)` gives rows of the stored mask, bool `[r1 - r0, in]`; None where there is none.
    """

    kind: str  # of storage: "ragged", "2:4", "dense"
    values: str  # type of values or codes: "bf16", "int8"
    quantised: bool = False  # `StoredTensor.rows` are codes times scales
    kept: Callable[[int, int], Bools] | None = None
    exact: bool = True  # the stored mask is the model's own; else it may keep more
    plus_zero: bool = False  # -0.0 is written as +0.0


@dataclass(frozen=True)
class StoredTensor:
    """A weight as re-read from an artefact by a path that shares no code with the writer."""

    name: str  # tensor name of the source model
    shape: tuple[int, ...]  # in the source's orientation, [out, in]
    dtype: str
    file: str
    nbytes: int
    rows: Callable[[int, int], F32]  # rows of axis 0 in the source's orientation
    sha256: Callable[[], str]  # of the stored bytes
    packing: Packing | None = None  # None: one plain array


@dataclass(frozen=True)
class Generation:
    """Greedy tokens and when each came, in seconds since the call (the first is the TTFT)."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Facts:
    """What ran, for reports."""

    engine: str
    version: str
    threads: int
    ops_share: float | None  # share of ops that the engine ran itself; None where unknown
    # Read by a decode step of one sequence, or the file that is all read; 0: not known.
    weight_bytes: int
    peak_rss_bytes: int
    load_seconds: float
    extra: Mapping[str, Any] = field(default_factory=dict)  # isa, cache kind, chunk


class Session(Protocol):
    """The one way to run anything: verification, benchmark and reference. Batch 1."""

    @property
    def max_tokens(self) -> int:
        """Longest sequence, prompt and answer together."""
        ...

    def prefill(self, tokens: Sequence[int], *, logits: Literal["all", "last"] = "all") -> F32:
        """Empty the cache, feed `tokens`; float32 logits `[T, V]`, or `[1, V]` for "last"."""
        ...

    def decode(self, token: int) -> F32:
        """Feed one token after what the cache holds; float32 logits `[V]`."""
        ...

    def generate(self, tokens: Sequence[int], n: int) -> Generation:
        """Empty the cache, feed `tokens`, then `n` greedy tokens (no stop token), timed inside."""
        ...

    def facts(self) -> Facts:
        """What runs here."""
        ...

    def close(self) -> None:
        """End the engine and free its memory. May be called twice."""
        ...


class Batches(Protocol):
    """A session that can run several sequences at once."""

    max_batch: int

    def generate_batch(self, prompts: Sequence[Sequence[int]], n: int) -> Sequence[Generation]:
        """As `Session.generate` for each prompt, all begun together; at most `max_batch`."""
        ...


class Target(Protocol):
    """A frozen dataclass whose fields are its options; `name` is how the user asks for it."""

    @property
    def name(self) -> str:
        """The name given to --target."""
        ...

    @property
    def window(self) -> RuntimeWindow:
        """Versions and hardware that the artefact is meant for."""
        ...

    @property
    def tolerance(self) -> Tolerance:
        """How far the engine may be from the float32 reference."""
        ...

    def runtime(self) -> RuntimeStatus:
        """Whether this machine can run the engine; starts nothing heavy."""
        ...

    def inspect(self, model: FusedModel) -> Sequence[Diagnostic]:
        """What stands against this model here; a "refusal" stops before anything is written."""
        ...

    def plan(self, model: FusedModel) -> LowerPlan:
        """Sizes and memory, from headers alone."""
        ...

    def lower(self, model: FusedModel, staging: Path, progress: Progress) -> None:
        """Write the engine's own layout into the empty folder `staging`."""
        ...

    def read_back(self, folder: Path) -> Iterable[StoredTensor]:
        """Every weight of an artefact, re-read from its final bytes."""
        ...

    def open(self, folder: Path, *, threads: int | None = None) -> Session:
        """Run an artefact.

        Raises:
            EngineUnfit: missing, unfit, crashed, or refused the artefact.
        """
        ...

    def probe(self, folder: Path, tokens: Sequence[int]) -> Mapping[str, F32]:
        """Hidden states `[T, hidden]` after each layer ("embedding", "layer.0", ..., "norm")."""
        ...


class ReferenceSession(Session, Protocol):
    """The float32 reference: a session that also shows its hidden states."""

    def hidden_states(self, tokens: Sequence[int]) -> Mapping[str, F32]:
        """Float32 `[T, hidden]` by the keys of `Target.probe`."""
        ...

    def spread(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """How far rounding alone moves each row of logits, of its largest logit; `[T]`."""
        ...


class KeepGram(Protocol):
    """Takes what calibration measured."""

    def __call__(self, modules: Sequence[str], gram: F32, /) -> None:
        """Store `X^T X`, float32 `[in, in]`, of modules that read the same input `X`."""
        ...


class Calibrator(Protocol):
    """Runs a fused model over text, in memory that follows one block and the hidden states."""

    def tokenise(self, folder: Path, text: str) -> Tokens:
        """Token ids `[n]` by the tokenizer of a model folder, without special tokens.

        Raises:
            InputRefused: `input-missing`.
        """
        ...

    def observe(
        self,
        model: FusedModel,
        windows: Tokens,
        held_out: int,
        gram_of: Collection[str],
        keep: KeepGram,
        progress: Progress | None = None,
    ) -> float:
        """Mean negative log-likelihood in nats per predicted token of the last windows.

        Args:
            model: a branch kept apart is computed with its weight.
            windows: token ids `[n, length]`.
            held_out: how many of the last windows the loss is taken on, at least 1; inputs are
                observed on those before them.
            gram_of: modules whose inputs are observed.
            keep: given each Gram matrix as soon as its block is done.

        Raises:
            InputRefused: `arch-unsupported`, `config-invalid`, `tensor-*`.
        """
        ...


class Runtime(Protocol):
    """An engine in an environment of its own that we make and check."""

    def status(self) -> RuntimeStatus:
        """What is here; quick."""
        ...

    def install(self, progress: Progress | None = None) -> RuntimeStatus:
        """Make the environment from its lock, whole or not at all; a second call is free.

        Raises:
            EngineUnfit: `install-failed`, `engine-unfit`.
        """
        ...


class Rounds(Protocol):
    """A target that stores weights in fewer bits than float32."""

    def as_written(self, model: FusedModel) -> FusedModel:
        """`model` with the values that the target stores, each rounded once, in float32.

        The reference then runs these, so that the tolerance need not allow for the rounding,
        which is checked by itself, value by value.
        """
        ...


@dataclass(frozen=True)
class QuantiseRequest:
    """How a target wants the values of pruned linears."""

    kind: QuantKind
    group: int = 0  # columns that share a scale, a multiple of 64; 0: one scale for a row
    method: Literal["round", "gptq"] = "round"  # gptq: error feedback, on calibration text
    dense: bool = False  # linears without a mask too


class Quantises(Protocol):
    """A target that stores codes and scales; asked once, before `inspect`."""

    def quantisation(self) -> QuantiseRequest | None:
        """None: the values as they are. The model given to `inspect`, `plan` and `lower` then has
        `FusedTensor.quantised` (that of `--plan` does not: it has headers alone).

        Raises:
            UsageError: `target-option`.
        """
        ...


class VerifiesBy(Protocol):
    """A target whose own engine is absent may name another that can run the same bytes."""

    def fallback(self) -> str:
        """Name of the target to verify with, "onnxruntime"."""
        ...
