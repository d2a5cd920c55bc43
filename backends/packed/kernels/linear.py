"""A packed linear on the CPU: built once from checked parts, called with any number of rows."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backends.packed.kernels.arrays import Activations, Rows, empty_like, rows
from backends.packed.kernels.library import Desc, Isa, Job, Library, library
from backends.packed.order import TILE_ROWS
from backends.packed.spec import KINDS, PackedLinear, Parts
from backends.packed.values import ValueType
from exporter.errors import EngineUnfit, InputRefused

__all__ = ["CpuLinear", "Precision", "run_jobs", "run_many"]

Array = NDArray[Any]
Precision = Literal["int8", "int16", "fp32"]
"""How wide activations are: for int8 and int4 values 8 bits, 16, and 16 again; bfloat16 values are
multiplied by activations rounded to bfloat16 but for "fp32"."""

_VALUES = tuple(ValueType)  # in the order of the library's numbers
_INVALID, _NO_MEMORY = 1, 2
_FLAGS: dict[Precision, int] = {"int8": 0, "int16": 1, "fp32": 3}


class CpuLinear:
    """y = x W^T + b for one packed linear, on this machine's best instruction set.

    bfloat16 values are multiplied by x rounded to bfloat16, or by x in float32 where `precision` is
    fp32; fp16, fp32 and fp8 ones by x in float32, int8 and int4 ones by x quantised row by row to 8
    or 16 bits; sums are float32 (of integers: exact, scaled in float32).

    Attributes:
        spec: what config.json says of it.
        isa: the instruction set.
        nbytes: memory it keeps, in bytes.
        row_nbytes: of these, what a call with one row of x reads.
        precision: width of activations.
    """

    def __init__(
        self, spec: PackedLinear, handle: int, isa: Isa, lib: Library, precision: Precision
    ) -> None:
        """Take over a handle of the library; `build` is the way to make one."""
        self.spec, self.isa, self._handle, self._library = spec, isa, handle, lib
        self.precision: Precision = precision
        self._flags = _FLAGS[precision]
        self.nbytes = int(lib.bytes(handle))
        self.row_nbytes = int(lib.row_bytes(handle))
        self._bias: Array | None = None
        self._bias_pointer: int | None = None
        self._release = weakref.finalize(self, lib.destroy, handle)

    @classmethod
    def build(
        cls,
        spec: PackedLinear,
        parts: Parts,
        isa: Isa | None = None,
        *,
        bias: Array | None = None,
        precision: Precision = "int8",
        lib: Library | None = None,
    ) -> CpuLinear:
        """Copy the parts into memory of the kernels' own; the arrays are free afterwards.

        Args:
            parts: as `pack` makes them and `check` passes them.
            isa: an instruction set; None: what SPARSE_EXPORT_ISA names, or the best.
            bias: [out], added in float32.
            precision: width of activations.
            lib: another build of the kernels.

        Raises:
            EngineUnfit: no kernels (`engine-missing`), or not for `isa` (`engine-unfit`).
            InputRefused: `packed-invalid` where lengths do not fit the mask or the shape.
        """
        lib = lib or library()
        chosen = lib.choose(isa)
        desc, held = _desc(spec, parts)
        handle = ctypes.c_void_p()
        status = lib.create(ctypes.byref(desc), int(chosen), ctypes.byref(handle))
        del held
        if status == _INVALID:
            raise InputRefused(
                "packed-invalid",
                "parts that do not belong to their entry",
                expected="parts that backends.packed.check passes",
            )
        if status or handle.value is None:
            raise EngineUnfit("engine-unfit", f"the kernels gave status {status}, out of memory")
        made = cls(spec, handle.value, chosen, lib, precision)
        if bias is not None:
            made._bias = np.ascontiguousarray(bias, np.float32)
            if made._bias.shape != (spec.shape[0],):
                raise ValueError(f"bias is {list(bias.shape)}, not [{spec.shape[0]}]")
            made._bias_pointer = made._bias.ctypes.data
        return made

    def __call__(self, x: Activations) -> Any:
        """x [..., in] to [..., out]: of x's library, bfloat16 where x is, otherwise float32."""
        given = rows(x, self.spec.shape[1])
        y, pointer, half = empty_like(x, self.spec.shape[0])
        self.into(given, pointer, half)
        return y

    def into(self, x: Rows, y: int, half: bool) -> None:
        """Write the products with `x` to contiguous rows at `y`, bfloat16 where `half`.

        Raises:
            MemoryError: no memory for prepared activations.
        """
        status = self._library.run_one(
            self._handle,
            self._bias_pointer,
            x.pointer,
            x.bf16,
            x.m,
            x.ld,
            y,
            self.spec.shape[0],
            half,
            self._flags,
        )
        _require_done(status)

    def job(self, y: int, ldy: int) -> Job:
        """This linear as one product of a call, into memory at `y`."""
        return Job(self._handle, y, ldy, self._bias_pointer)

    def unpack(self, b0: int = 0, b1: int | None = None) -> NDArray[np.float32]:
        """Rows of the row blocks [b0, b1), scales applied, by this instruction set's own reader."""
        b1 = self.spec.row_blocks if b1 is None else b1
        out = np.empty(((b1 - b0) * TILE_ROWS, self.spec.shape[1]), np.float32)
        pointer = out.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        if self._library.unpack(self._handle, b0, b1, pointer):
            raise ValueError(f"no row blocks [{b0}:{b1}] of {self.spec.row_blocks}")
        return out[: self.spec.shape[0] - b0 * TILE_ROWS]

    @property
    def handle(self) -> int:
        """Address of the library's own object; valid while this one lives."""
        return self._handle

    @property
    def flags(self) -> int:
        """Flags of a call of the library."""
        return self._flags

    @property
    def library(self) -> Library:
        """The library that runs it."""
        return self._library


def run_many(linears: Sequence[CpuLinear], x: Activations) -> list[Any]:
    """All of `linears` on one x, in one pass of the threads: q, k and v, or gate and up.

    Raises:
        ValueError: x of another width, linears of several widths, instruction sets or precisions,
            or more than 16 of them.
    """
    first = linears[0]
    given = rows(x, first.spec.shape[1])
    made = [empty_like(x, linear.spec.shape[0]) for linear in linears]
    jobs = (Job * len(linears))(
        *[
            linear.job(pointer, linear.spec.shape[0])
            for linear, (_, pointer, _) in zip(linears, made, strict=True)
        ]
    )
    run_jobs(linears, jobs, given, made[0][2])
    return [y for y, _, _ in made]


def run_jobs(linears: Sequence[CpuLinear], jobs: Any, x: Rows, half: bool) -> None:
    """One call of the library for the products of `linears` with x, into where `jobs` say.

    Args:
        linears: those of the jobs, in their order.
        jobs: array of `Job`; one for each linear.
        x: what all of them take.
        half: whether results are bfloat16, otherwise float32.

    Raises:
        MemoryError: no memory for prepared activations.
        ValueError: linears that cannot share x.
    """
    first, status = linears[0], _INVALID
    if all(each.flags == first.flags and each.library is first.library for each in linears):
        status = first.library.run(jobs, len(jobs), x.pointer, x.bf16, x.m, x.ld, half, first.flags)
    if status == _INVALID:
        shapes = ", ".join(str(list(linear.spec.shape)) for linear in linears)
        raise ValueError(f"linears of one width, instruction set and precision, not {shapes}")
    _require_done(status)


def _require_done(status: int) -> None:
    if status == _NO_MEMORY:
        raise MemoryError("no memory for activations")
    if status:
        raise ValueError(f"the kernels gave status {status}")


def _desc(spec: PackedLinear, parts: Parts) -> tuple[Desc, list[Array]]:
    """The C description, and the arrays whose memory it points to."""
    held = {part: np.ascontiguousarray(array) for part, array in parts.items()}
    if missing := {"values", *_NEEDED[spec.kind]} - held.keys():
        raise InputRefused("packed-invalid", f"no {min(missing)}", expected="all parts of the kind")
    desc = Desc(
        kind=KINDS.index(spec.kind),
        values_type=_VALUES.index(spec.values),
        n=spec.n,
        m=spec.m,
        rows=spec.shape[0],
        cols=spec.shape[1],
        group=spec.group,
    )
    for part, counted, unit in _POINTERS:
        if part in held:
            setattr(desc, part, held[part].ctypes.data)
            setattr(desc, counted, held[part].nbytes // unit)
    return desc, list(held.values())


_NEEDED = {"ragged": {"mask", "starts"}, "nm": {"mask"}, "dense": set[str]()}
_POINTERS = (
    ("mask", "mask_bytes", 1),
    ("values", "values_bytes", 1),
    ("starts", "starts_count", 8),
    ("scales", "scales_count", 2),
)
