"""Give back pages of mapped weight files once their tensors have been used.

vLLM maps a weight file and leaves its pages in the process until the whole file is read, so at the
peak a process held the file on top of its weights. A page that is wanted again comes back from
the system's cache of the file.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

STEP = 16 << 20
"""Bytes used between two looks at the mappings."""
LOOKS = 64
"""Looks for the largest mapped file, whose page table each look reads."""

_MAPS = Path("/proc/self/maps")
_PAGES = Path("/proc/self/pagemap")
_SUFFIX = ".safetensors"
_FILE, _SWAPPED, _PRESENT = np.uint64(1 << 61), np.uint64(1 << 62), np.uint64(1 << 63)
_AT_ONCE = 1 << 17  # pages: a megabyte of their entries


@dataclass(frozen=True)
class Mapping:
    """A range of this process that shows a weight file."""

    start: int
    end: int


class UsedPages:
    """Counts what was used of mapped files, and gives their pages back from time to time."""

    def __init__(self, step: int = STEP) -> None:
        self._least = self._step = step
        self._used = 0

    def note(self, tensor: torch.Tensor) -> None:
        """Say that a tensor will not be looked at again; nothing happens to it if it is no window
        of a mapped file."""
        self._used += tensor.nbytes
        if self._used >= self._step:
            self._used = 0
            self._step = max(self._least, give_back() // LOOKS)


def give_back() -> int:
    """Drop the pages of every mapped weight file from this process, not from the system's cache.

    Only where no page of the mapping was written to: such a page would be lost (madvise(2),
    MADV_DONTNEED), where others are read again. Does nothing where the system does not tell.

    Returns:
        The bytes of the largest of these mappings.
    """
    libc, largest = _libc(), 0
    if libc is None:
        return 0
    for found in mappings():
        largest = max(largest, found.end - found.start)
        if not written_to(found):
            # A refusal changes nothing that matters: the pages stay.
            libc.madvise(found.start, found.end - found.start, mmap.MADV_DONTNEED)
    return largest


def mappings(maps: Path = _MAPS) -> Iterator[Mapping]:
    """The mapped weight files of this process, by /proc/self/maps (man 5 proc)."""
    try:
        lines = maps.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        if line.endswith(_SUFFIX):
            first, _, last = line.split(" ", 1)[0].partition("-")
            yield Mapping(int(first, 16), int(last, 16))


def written_to(mapping: Mapping) -> bool:
    """Whether a page of the range is this process's own and no longer the file's.

    By /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst of Linux): an own page is
    present or swapped, and not marked as a file's. True where the system does not tell.
    """
    page = mmap.PAGESIZE
    try:
        with _PAGES.open("rb", buffering=0) as table:
            for first in range(mapping.start // page, mapping.end // page, _AT_ONCE):
                count = min(_AT_ONCE, mapping.end // page - first)
                raw = os.pread(table.fileno(), count * 8, first * 8)
                entries = np.frombuffer(raw, np.uint64)
                own = (entries & (_PRESENT | _SWAPPED) != 0) & (entries & _FILE == 0)
                if len(entries) < count or own.any():
                    return True
    except OSError:
        return True
    return False


@cache
def _libc() -> Any:
    if os.name != "posix" or not _PAGES.exists():
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
