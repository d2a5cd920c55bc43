"""Packed linears of one width whose results stand side by side: q, k and v, or gate and up."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backends.packed.kernels.arrays import rows
from backends.packed.kernels.library import Job
from backends.packed.kernels.linear import CpuLinear, run_jobs

__all__ = ["FusedLinear"]

_MOST = 16  # jobs of a call (src/run.cpp, kMostJobs)
_SCRATCH_BYTES = 32 << 20  # of prepared activations: 4 bytes each at most
_LEAST_ROWS = 128  # where decompressing a weight once a call no longer shows


class FusedLinear:
    """x `[..., in]` to `[..., out]` of all linears together, in one call of the library.

    Args:
        linears: in the order of their rows; of one width, instruction set and precision.

    Raises:
        ValueError: none, more than 16, or linears that do not share x.
    """

    def __init__(self, linears: Sequence[CpuLinear]) -> None:
        """Hold the linears."""
        self.linears = tuple(linears)
        alike = {(each.spec.shape[1], each.isa, each.flags) for each in linears}
        if len(alike) != 1 or len(linears) > _MOST:
            raise ValueError(f"{len(linears)} linears, of {len(alike)} kinds of activations")
        self.columns = linears[0].spec.shape[1]
        self.rows = sum(each.spec.shape[0] for each in linears)
        self.nbytes = sum(each.nbytes for each in linears)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The products, in the type of x; float16 is computed from and to float32.

        Many rows are taken some at a time, since the library keeps the memory for activations.

        Raises:
            MemoryError: no memory for them.
        """
        given = x.reshape(-1, self.columns)
        kept = x.dtype if x.dtype == torch.bfloat16 else torch.float32
        y = x.new_empty((given.shape[0], self.rows), dtype=kept)
        wide = None if bias is None else bias.to(torch.float32).contiguous()
        step = max(_LEAST_ROWS, _SCRATCH_BYTES // (4 * self.columns))
        for start in range(0, given.shape[0], step):
            self._into(given[start : start + step], y[start : start + step], wide)
        return y.view(*x.shape[:-1], self.rows).to(x.dtype)

    def _into(self, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None) -> None:
        taken = rows(x, self.columns)
        jobs = (Job * len(self.linears))()
        at, each = y.data_ptr(), y.element_size()
        term = None if bias is None else bias.data_ptr()
        for i, linear in enumerate(self.linears):
            jobs[i] = Job(linear.handle, at, self.rows, term)
            at += linear.spec.shape[0] * each
            term = None if term is None else term + linear.spec.shape[0] * 4
        run_jobs(self.linears, jobs, taken, y.dtype == torch.bfloat16)
