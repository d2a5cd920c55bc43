"""Measure, once at load, which way a packed linear is fastest for how many rows of x."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch

from backends.packed.spec import PackedLinear
from backends.packed.triton import half, ops
from backends.packed.triton.plan import ANY, Path, Plan, Step
from backends.packed.triton.weight import SparseWeight

_LOG = logging.getLogger(__name__)

Memory = Literal["fast", "low"]
Timer = Callable[[Callable[[], torch.Tensor]], float]
"""Microseconds of one call, launches and cold caches as at decode."""

ROWS = (1, 8, 16, 32, 64, ANY)
_MANY = 512  # rows that stand for "more than 64" when timed
_DECODE = 64  # most rows for which the Triton kernel is made
_SLAB = 1 << 22  # elements of a slab: 8 MB at 16 bits
_WAVES = 2  # programs for each processor that splitting the input aims at
_TOLERANCE = 0.05  # of the dense result's largest entry: finds wrong answers, not rounding


class Resident(NamedTuple):
    """One linear in each form that may be tried; dense and half are empty where they are not."""

    sparse: SparseWeight
    dense: torch.Tensor
    half: torch.Tensor

    def run(self, path: Path, args: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
        """x [M, in] one given way, without bias."""
        return ops.run(path, args, x, None, self.sparse, self.dense, self.half)


class _Trial(NamedTuple):
    """A candidate and what came of it."""

    path: Path
    args: tuple[int, ...]
    microseconds: float = 0.0
    problem: str = ""

    @property
    def name(self) -> str:
        """As a plan shows it."""
        return f"{self.path.name.lower()}{list(self.args) or ''}"


@dataclass
class Tuner:
    """Finds plans; layers of one form share what was measured.

    Everything that touches a device is a field, so that choices can be tested without one.

    Attributes:
        timer: what measures; None: nothing is measured and `fallback` decides.
        triton: whether the Triton kernels run on this device.
        sparse24: whether cuSPARSELt does.
        processors: of the device, for the number of splits.
        search: the algorithm for a compressed weight and an x.
    """

    timer: Timer | None
    triton: bool
    sparse24: bool
    processors: int
    search: Callable[[torch.Tensor, torch.Tensor], int] = half.search
    _plans: dict[tuple[object, ...], Plan] = field(default_factory=dict[tuple[object, ...], Plan])

    @classmethod
    def of_device(cls, device: torch.device) -> Tuner:
        """For a CUDA device of compute capability 8.0 or more; dense alone on others.

        Never run by the project's own tests on a real device.
        """
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        if torch.cuda.get_device_capability(device) < (8, 0) or find_spec("triton") is None:
            return cls(None, False, False, processors)
        from triton.testing import do_bench

        def timer(call: Callable[[], torch.Tensor]) -> float:
            # Clears the L2 cache between calls, as the other layers do at decode.
            found: Any = do_bench(call, warmup=5, rep=20, return_mode="median")
            return float(found) * 1e3

        return cls(timer, True, half.available(), processors)

    def compressed(
        self, spec: PackedLinear, dense: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """The 2:4 form of `dense`, or an empty tensor where there can be none."""
        if self.sparse24 and self.timer is not None and half.unfit(spec, dtype) is None:
            try:
                return half.compress(dense)
            except RuntimeError as problem:
                self.sparse24 = False
                _LOG.warning("cuSPARSELt is left out: %s", problem)
        return dense.new_empty(0)

    def plan(
        self, spec: PackedLinear, resident: Resident, dtype: torch.dtype, memory: Memory
    ) -> Plan:
        """The plan for a linear, measured the first time its form is seen.

        Args:
            resident: `dense` is always there in `fast`, and in `low` only to check answers.
        """
        sparse = resident.sparse
        density = round(20 * spec.nnz / (spec.shape[0] * spec.shape[1]))
        key = (sparse.layout, density, dtype, memory, resident.half.numel() > 0)
        if key not in self._plans:
            if self.timer is None:
                self._plans[key] = self.fallback(sparse, memory)
            else:
                steps = [self._step(rows, resident, dtype, memory) for rows in ROWS]
                self._plans[key] = Plan(tuple(steps))
        return self._plans[key]

    def fallback(self, sparse: SparseWeight, memory: Memory) -> Plan:
        """Without a measurement: dense where it may stay, else the kernel up to 64 rows."""
        if memory == "fast":
            return Plan((Step(ANY, Path.DENSE),))
        config = next(self._configs(sparse))
        many = Step(ANY, Path.SLABS, _slab(sparse))
        return Plan((Step(_DECODE, Path.TRITON, config), many))

    def _step(self, rows: int, resident: Resident, dtype: torch.dtype, memory: Memory) -> Step:
        m = min(rows, _MANY)
        x = _example(m, resident, dtype)
        want = resident.run(Path.DENSE, (), x)
        tried = [self._try(*c, resident, x, want) for c in self._candidates(m, resident, memory)]
        good = [trial for trial in tried if not trial.problem]
        refused = tuple((trial.name, trial.problem) for trial in tried if trial.problem)
        if not good:
            raise RuntimeError(f"no way to multiply works here: {refused}")
        best = min(good, key=lambda trial: trial.microseconds)
        times = tuple((trial.name, trial.microseconds) for trial in good)
        return Step(rows, best.path, best.args, times, refused)

    def _try(
        self,
        path: Path,
        args: tuple[int, ...],
        resident: Resident,
        x: torch.Tensor,
        want: torch.Tensor,
    ) -> _Trial:
        timer = self.timer
        try:
            if path is Path.HALF:
                args = (self.search(resident.half, x),)
            error = (resident.run(path, args, x) - want).abs().max()
            if not float(error) <= _TOLERANCE * float(want.abs().max()):  # NaN is wrong too
                return _Trial(path, args, problem=f"wrong by {float(error):.3g}")
            return _Trial(path, args, timer(lambda: resident.run(path, args, x)) if timer else 0.0)
        except self._refusals() as problem:
            return _Trial(path, args, problem=str(problem).partition("\n")[0][:200])

    def _refusals(self) -> tuple[type[Exception], ...]:
        """What torch and Triton raise where a device or a compiler refuses."""
        if not self.triton:
            return (RuntimeError,)
        from triton.errors import TritonError

        return RuntimeError, TritonError

    def _candidates(
        self, m: int, resident: Resident, memory: Memory
    ) -> Iterator[tuple[Path, tuple[int, ...]]]:
        sparse = resident.sparse
        if memory == "fast":
            yield Path.DENSE, ()
        elif m > _DECODE:
            yield Path.SLABS, _slab(sparse)
        if self.triton and m <= _DECODE:
            for config in self._configs(sparse):
                yield Path.TRITON, config
        if resident.half.numel():
            yield Path.HALF, ()

    def _configs(self, sparse: SparseWeight) -> Iterator[tuple[int, ...]]:
        """Row blocks of a program, splits, warps, stages."""
        layout = sparse.layout
        for block_rows in (2, 1, 4):
            programs = -(-layout.row_blocks // block_rows)
            wanted = -(-_WAVES * self.processors // programs)
            splits = 1 << (min(wanted, layout.column_tiles, 16).bit_length() - 1)
            yield block_rows, splits, 4, 2
            if splits > 1:
                yield block_rows, 1, 4, 2


def _slab(sparse: SparseWeight) -> tuple[int, ...]:
    return (max(16, _SLAB // sparse.layout.in_features // 16 * 16),)


def _example(rows: int, resident: Resident, dtype: torch.dtype) -> torch.Tensor:
    """Repeatable x of one sign pattern a row; no random numbers, whose state others may need."""
    shape = rows, resident.sparse.layout.in_features
    device = resident.sparse.values.device
    line = torch.arange(shape[0] * shape[1], device=device).reshape(shape)
    return torch.cos(line.to(torch.float32)).to(dtype)
