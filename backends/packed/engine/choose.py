"""Sparse or dense: which form of a linear computes a step of so many rows.

Both are timed once a machine for each kind of linear, with weights that lie in memory and not in
a cache, as in a step over all layers; what was found is kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import numpy as np

from backends.packed.engine.record import read_record, write_record
from backends.packed.kernels.compile import LIBRARY
from backends.packed.kernels.decoder import CLASSES, ByRows
from backends.packed.kernels.library import library
from backends.packed.kernels.linear import CpuLinear
from backends.packed.pack import pack
from backends.packed.spec import PackedLinear, Parts
from backends.packed.unpack import unpack

__all__ = ["TIMED", "Build", "Chooser", "Execute", "as_dense", "kind_of"]

Execute = Literal["auto", "sparse", "dense"]
Build = Callable[[PackedLinear, Parts], CpuLinear]
Timed = Callable[[CpuLinear, CpuLinear, int], float]

TIMED = (1, 8, 64)
"""Rows that stand for each class of `CLASSES`."""
GAIN = (1.1, 1.1, 1.3)
"""How much faster dense must be in each class: it takes the memory of another copy."""
_ROUNDS = 15  # the smallest linears take tens of microseconds: seven chose by noise
_FLUSH_BYTES = 96 << 20  # read before each call: more than a last-level cache holds


@dataclass
class Chooser:
    """Gives each linear its forms, and remembers why.

    Args:
        execute: "sparse" or "dense" for every linear that is stored sparse; "auto" to time both.
        timed: sparse and dense form, rows -> seconds of sparse over those of dense.
    """

    execute: Execute = "auto"
    timed: Timed | None = None
    ratios: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    _known: dict[str, list[float]] | None = None

    def forms(self, spec: PackedLinear, parts: Parts, build: Build) -> ByRows:
        """The linear for steps of each class of rows.

        Raises:
            InputRefused, EngineUnfit: as `build`.
        """
        sparse = build(spec, parts)
        if spec.kind == "dense" or self.execute == "sparse":
            return sparse, sparse, sparse
        if self.execute == "dense":
            dense = build(*as_dense(spec, parts))
            return dense, dense, dense
        use, dense = self._preferred(spec, parts, sparse, build)
        if any(use) and dense is None:
            dense = build(*as_dense(spec, parts))
        one, few, many = (dense if wanted and dense else sparse for wanted in use)
        return one, few, many

    def form(self, spec: PackedLinear, parts: Parts, build: Build) -> CpuLinear:
        """One form for steps of any size, as steps of one row are fastest: no second copy.

        Raises:
            InputRefused, EngineUnfit: as `build`.
        """
        sparse = build(spec, parts)
        if spec.kind == "dense" or self.execute == "sparse":
            return sparse
        use, dense = [True], None
        if self.execute == "auto":
            use, dense = self._preferred(spec, parts, sparse, build)
        return (dense or build(*as_dense(spec, parts))) if use[0] else sparse

    def _preferred(
        self, spec: PackedLinear, parts: Parts, sparse: CpuLinear, build: Build
    ) -> tuple[list[bool], CpuLinear | None]:
        """Whether dense is to compute each class; the dense form where one was made to time it."""
        kind = kind_of(spec, sparse)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        dense = None
        if kind not in self.ratios:
            known = self._recorded().get(kind)
            if known is None:
                dense = build(*as_dense(spec, parts))
                known = [(self.timed or _timed)(sparse, dense, rows) for rows in TIMED]
                self._record(kind, known)
            self.ratios[kind] = known
        return self.dense_in(kind), dense

    def dense_in(self, kind: str) -> list[bool]:
        """Whether dense computes the steps of each class."""
        return [ratio >= gain for ratio, gain in zip(self.ratios[kind], GAIN, strict=True)]

    def told(self) -> Mapping[str, str]:
        """Kind of linear -> what runs it, and how much faster sparse was, for people."""
        found: dict[str, str] = {}
        for kind, ratios in self.ratios.items():
            words = [
                f"{rows} rows: {'dense' if dense else 'sparse'} ({1 / ratio:.2f})"
                for rows, dense, ratio in zip(TIMED, self.dense_in(kind), ratios, strict=True)
            ]
            found[kind] = f"{self.counts[kind]} linears; {', '.join(words)}"
        return found

    def _recorded(self) -> Mapping[str, list[float]]:
        if self._known is None:
            self._known = read_record(machine(), len(CLASSES)) if self.timed is None else {}
        return self._known

    def _record(self, kind: str, ratios: list[float]) -> None:
        if self.timed is None:
            write_record(machine(), kind, ratios, len(CLASSES))


def kind_of(spec: PackedLinear, linear: CpuLinear) -> str:
    """What linears are taken to be alike by: form, type, shape, density to 5 %, activations."""
    form = f"{spec.n}:{spec.m}" if spec.kind == "nm" else spec.kind
    kept = round(20 * spec.nnz / (spec.shape[0] * spec.shape[1])) * 5
    wide = linear.precision
    group = f" group {spec.group}" if spec.group else ""
    return f"{form} {spec.values.value}{group} {spec.shape[0]}x{spec.shape[1]} {kept} % {wide}"


def as_dense(spec: PackedLinear, parts: Parts) -> tuple[PackedLinear, Parts]:
    """The same numbers without a mask."""
    made = PackedLinear(
        "dense", spec.values, spec.shape, spec.shape[0] * spec.shape[1], group=spec.group
    )
    return made, pack(made, unpack(spec, parts), None, parts.get("scales"))


def machine() -> str:
    """What a measurement holds for: processor, threads, and this build of the kernels."""
    lib = library()
    build = hashlib.sha256(LIBRARY.read_bytes()).hexdigest()[:12]
    return f"{_processor()}, {lib.choose().label}, {lib.threads} threads, kernels {build}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            named = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
    except OSError:
        named = []
    return (named[0] if named else platform.processor() or platform.machine()).strip()


def _timed(sparse: CpuLinear, dense: CpuLinear, rows: int) -> float:
    """Median over rounds of seconds of sparse over those of dense, both in turn."""
    x = np.random.default_rng(0).standard_normal((rows, sparse.spec.shape[1]), np.float32)
    rest = np.ones(_FLUSH_BYTES, np.uint8)
    found: list[float] = []
    for turn in range(_ROUNDS + 1):
        pair = (sparse, dense) if turn % 2 else (dense, sparse)
        seconds: dict[int, float] = {}
        for linear in pair:
            sparse.library.read(rest.ctypes.data, rest.nbytes, 1)
            begin = time.perf_counter()
            linear(x)
            seconds[linear.handle] = time.perf_counter() - begin
        found.append(seconds[sparse.handle] / seconds[dense.handle])
    return median(found[1:])
