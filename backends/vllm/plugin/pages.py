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

import torch

STEP = 16 << 20  # bytes used between two looks at the mappings, each of which takes a millisecond
_SMAPS = Path("/proc/self/smaps")
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Mapping:
    """A range of this process that shows a weight file; `changed`: bytes of it that differ."""

    start: int
    end: int
    changed: int


class UsedPages:
    """Counts what was used of mapped files, and gives their pages back from time to time."""

    def __init__(self, step: int = STEP) -> None:
        self._step = step
        self._used = 0

    def note(self, tensor: torch.Tensor) -> None:
        """Say that a tensor will not be looked at again; nothing happens to it if it is no window
        of a mapped file."""
        self._used += tensor.nbytes
        if self._used >= self._step:
            self._used = 0
            give_back()


def give_back() -> None:
    """Drop the pages of every mapped weight file from this process, not from the system's cache.

    Only where no page of the mapping was written to: such a page would be lost (madvise(2),
    MADV_DONTNEED), where others are read again. Does nothing where the system does not tell.
    """
    libc = _libc()
    if libc is None:
        return
    for found in mappings():
        if not found.changed:
            # A refusal changes nothing that matters: the pages stay.
            libc.madvise(found.start, found.end - found.start, mmap.MADV_DONTNEED)


def mappings(smaps: Path = _SMAPS) -> Iterator[Mapping]:
    """The mapped weight files of this process, by /proc/self/smaps (man 5 proc)."""
    try:
        lines = smaps.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    span: tuple[int, int] | None = None
    for line in lines:
        head, _, rest = line.partition(" ")
        if not head.endswith(":"):  # the first line of a mapping: "start-end perms ... path"
            first, _, last = head.partition("-")
            span = (int(first, 16), int(last, 16)) if rest.endswith(_SUFFIX) else None
        elif head == "Anonymous:" and span is not None:
            yield Mapping(*span, changed=int(rest.split()[0]) << 10)
            span = None


@cache
def _libc() -> Any:
    if os.name != "posix" or not _SMAPS.exists():
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
