"""Training's products with a weight that is formed under its mask while it is multiplied.

`M . (W + s B A)`: LoSA equation 1 in its merged form (Huang et al. 2025, arXiv 2502.14816). A
product by torch needs the formed weight in memory first, and `G = (dy^T x) . M` after: passes over
both that weigh as much as the products themselves. src/masked.cpp has neither.
"""

from __future__ import annotations

import os
from ctypes import Structure, byref, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING

from backends.packed.kernels.library import Isa, Library, library
from exporter.errors import EngineUnfit

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MaskedProducts", "Way", "available"]

NO_MEMORY = 2  # SE_NO_MEMORY of src/abi.h


class Way(IntEnum):
    """How to multiply: SE_BY_MASK of src/abi.h and what follows it."""

    BY_MASK = 0  # by what was measured to be faster for so many zeros
    WHOLE = 1
    LISTS = 2  # of what is kept: zeros cost nothing


_PROCESS = os.getpid()  # that loaded this module, and so started OpenMP, if any did


class Formed(Structure):
    """`se_masked` of src/abi.h."""

    _fields_ = (
        ("isa", c_int32),
        ("way", c_int32),
        ("scale", c_float),
        ("out", c_int64),
        ("width", c_int64),
        ("rank", c_int64),
        ("weight", c_void_p),
        ("kept", c_void_p),
        ("a", c_void_p),
        ("b", c_void_p),
    )


class MaskedProducts:
    """Products with `M . (W + s B A)`, in float32 on the CPU, by as many threads as torch has."""

    def __init__(self, lib: Library, isa: Isa | None = None, way: Way = Way.BY_MASK) -> None:
        """By the best instruction set, or `isa`, and by the faster way, or `way`.

        Raises:
            EngineUnfit: `engine-unfit` for an instruction set that does not run here.
        """
        self._lib, self.isa, self.way = lib, lib.choose(isa), way
        self._shared = (0, 0)

    def takes(self, *tensors: Tensor) -> bool:
        """Whether all are what the kernels read: float32 on the CPU, with something in them."""
        return all(
            t.dtype.is_floating_point and t.itemsize == 4 and t.device.type == "cpu" and t.numel()
            for t in tensors
        )

    def forward(
        self, x: Tensor, weight: Tensor, kept: Tensor, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        """`y = x (M . (W + s B A))^T`: x `[tokens, in]`, kept bool `[out, in]`, y `[tokens, out]`.

        W `[out, in]`, A `[r, in]`, B `[out, r]`; all but `kept` float32.
        """
        x = _rows(x, weight.shape[1])
        y = x.new_empty(len(x), len(weight))
        held = self._formed(weight, kept, a, b, scale)
        _check(self._lib.masked_forward(byref(held.formed), _at(x), len(x), _at(y)))
        return y

    def input_gradient(
        self, dy: Tensor, weight: Tensor, kept: Tensor, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        """`dx = dy (M . (W + s B A))`: dy `[tokens, out]`, dx `[tokens, in]`."""
        dy = _rows(dy, len(weight))
        dx = dy.new_empty(len(dy), weight.shape[1])
        held = self._formed(weight, kept, a, b, scale)
        _check(self._lib.masked_backward(byref(held.formed), _at(dy), len(dy), _at(dx)))
        return dx

    def factor_gradients(
        self, x: Tensor, dy: Tensor, weight: Tensor, kept: Tensor, a: Tensor, b: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """`dA = s B^T G` and `dB = s G A^T` with `G = (dy^T x) . M`; equal for any threads."""
        x, dy = _rows(x, weight.shape[1]), _rows(dy, len(weight))
        da, db = a.new_empty(a.shape), b.new_empty(b.shape)
        held, read = self._formed(weight, kept, a, b, scale), (_at(x), _at(dy))
        _check(self._lib.masked_factors(byref(held.formed), *read, len(x), _at(da), _at(db)))
        return da, db

    def _formed(self, weight: Tensor, kept: Tensor, a: Tensor, b: Tensor, scale: float) -> _Held:
        out, width = weight.shape
        found = tuple(tuple(t.shape) for t in (kept, a, b))
        if found != ((out, width), (len(a), width), (out, len(a))) or kept.itemsize != 1:
            raise ValueError(
                f"mask, A and B of {found}, {kept.dtype}; expected bytes of [{out}, {width}], "
                f"[rank, {width}] and [{out}, rank]"
            )
        self._share_threads()
        tensors = tuple(t.contiguous() for t in (weight, kept, a, b))
        sizes = (*weight.shape, len(a))
        return _Held(Formed(self.isa, self.way, scale, *sizes, *map(_at, tensors)), tensors)

    def _share_threads(self) -> None:
        """Have torch's own threads run the parts: a second set of threads would fight for cores.

        A forked process has none of the threads that OpenMP thinks it has: it gets the own pool.
        """
        import torch

        wanted = torch.get_num_threads(), os.getpid()
        if wanted == self._shared:
            return
        own = wanted[0] == 1 or wanted[1] != _PROCESS
        if own or not self._lib.share_threads(wanted[0]):
            self._lib.share_threads(0)
            self._lib.threads = wanted[0]
        self._shared = wanted


@dataclass(frozen=True)
class _Held:
    formed: Formed
    tensors: tuple[Tensor, ...]  # that its addresses point into


def _rows(tensor: Tensor, width: int) -> Tensor:
    if tensor.dim() != 2 or tensor.shape[1] != width:
        raise ValueError(f"rows of {tuple(tensor.shape)}; expected [tokens, {width}]")
    return tensor.contiguous()


def _at(tensor: Tensor) -> int:
    return tensor.data_ptr()


def _check(code: int) -> None:
    if code == NO_MEMORY:
        raise MemoryError("no memory for the copies that a product with a masked weight works on")
    if code:
        raise ValueError(f"a product with a masked weight was refused with code {code}")


@cache
def available() -> MaskedProducts | None:
    """The kernels of this installation where they are faster than torch: with AVX2 and up.

    Raises:
        EngineUnfit: `engine-unfit`: SPARSE_EXPORT_ISA names what does not run here.
    """
    try:
        found = MaskedProducts(library())
    except EngineUnfit as error:
        if error.code != "engine-missing":
            raise
        return None
    return found if found.isa >= Isa.AVX2 else None
