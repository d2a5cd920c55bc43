"""Activations as pointers: NumPy arrays and torch CPU tensors, float32 or bfloat16."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, Union, cast

import numpy as np
from numpy.typing import NDArray

from exporter.store.dtypes import DType

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]
Activations = Union[Array, "torch.Tensor"]

BF16 = DType.BF16.numpy


class Rows(NamedTuple):
    """Rows of x as the library takes them; `held` keeps the memory alive."""

    held: Any
    pointer: int
    bf16: bool
    m: int
    ld: int


def is_tensor(x: object) -> bool:
    """Whether x is a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def rows(x: Activations, columns: int) -> Rows:
    """x [..., columns] as rows. Other types become float32; only strided rows stay uncopied.

    Raises:
        ValueError: another last dimension, or a tensor that is not on the CPU.
    """
    if x.ndim < 1 or x.shape[-1] != columns:
        raise ValueError(f"x is {list(x.shape)}, not [..., {columns}]")
    if is_tensor(x):
        return _tensor_rows(cast("torch.Tensor", x), columns)
    array = cast("Array", x)
    if array.ndim == 2 and array.flags.c_contiguous and array.dtype == np.float32:
        return Rows(array, address(array), False, array.shape[0], columns)
    if array.dtype not in (np.float32, BF16):
        array = array.astype(np.float32)
    flat = array.reshape(-1, columns)
    if flat.strides[-1] != flat.itemsize or flat.strides[0] < columns * flat.itemsize:
        flat = np.ascontiguousarray(flat)
    ld = flat.strides[0] // flat.itemsize
    if ld * flat.itemsize != flat.strides[0]:
        flat, ld = np.ascontiguousarray(flat), columns
    return Rows(flat, address(flat), flat.dtype == BF16, flat.shape[0], ld)


def address(array: Array) -> int:
    """Where an array begins; a third of what `array.ctypes.data` costs."""
    return int(array.__array_interface__["data"][0])


def _tensor_rows(x: torch.Tensor, columns: int) -> Rows:
    import torch

    if x.device.type != "cpu":
        raise ValueError(f"x is on {x.device}, not on the CPU")
    flat = x.detach()
    if flat.dtype not in (torch.float32, torch.bfloat16):
        flat = flat.float()
    flat = flat.reshape(-1, columns)
    if flat.stride(-1) != 1 or flat.stride(0) < columns:
        flat = flat.contiguous()
    return Rows(flat, flat.data_ptr(), flat.dtype == torch.bfloat16, flat.shape[0], flat.stride(0))


def empty_like(x: Activations, columns: int) -> tuple[Activations, int, bool]:
    """Room for a result [..., columns]: it, its address, and whether it is bfloat16.

    bfloat16 where x is, otherwise float32.
    """
    shape = (*x.shape[:-1], columns)
    if is_tensor(x):
        import torch

        half = cast("torch.Tensor", x).dtype == torch.bfloat16
        made = torch.empty(shape, dtype=torch.bfloat16 if half else torch.float32)
        return made, made.data_ptr(), half
    half = cast("Array", x).dtype == BF16
    array = np.empty(shape, BF16 if half else np.float32)
    return array, address(array), half
