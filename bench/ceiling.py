"""The fastest that this machine reads memory, by the read loop of our own kernels."""

from __future__ import annotations

import time

import numpy as np

from exporter.errors import EngineUnfit

_BYTES = 256 << 20  # above most last-level caches
_LEAST = 5
_SECONDS = 0.5  # a shared machine can be busy for longer than five readings take


def read_bytes_per_second() -> float | None:
    """Bytes a second, the fastest reading in half a second; None where no kernels are built."""
    # Only measuring loads the kernels; reading and comparing results does not need them.
    from backends.packed.kernels.library import library

    try:
        lib = library()
    except EngineUnfit:
        return None
    data = np.ones(_BYTES, np.uint8)
    seconds: list[float] = []
    while len(seconds) < _LEAST or sum(seconds) < _SECONDS:
        start = time.perf_counter()
        lib.read(data.ctypes.data, data.nbytes)
        seconds.append(time.perf_counter() - start)
    return data.nbytes / min(seconds)
