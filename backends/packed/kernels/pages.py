"""Large pages under tensors that kernels visit line by line, far apart."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["collapse"]

MADV_COLLAPSE = 25  # Linux 6.1: linux/mman.h
LARGE = 2 << 20  # bytes of a large page on x86-64


def collapse(*tensors: Tensor) -> None:
    """Move the memory of `tensors` to large pages, as far as it fills them; nothing else changes.

    An advice: systems that have none, and memory that cannot be moved, are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    for tensor in tensors:
        if tensor.device.type != "cpu":
            continue
        storage = tensor.untyped_storage()
        first = -(-storage.data_ptr() // LARGE) * LARGE
        size = (storage.data_ptr() + storage.nbytes()) // LARGE * LARGE - first
        if size > 0:
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), MADV_COLLAPSE)
