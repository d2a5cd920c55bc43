"""The fastest that this machine reads memory, by the read loop of our own kernels."""

from __future__ import annotations

import time

import numpy as np

from exporter.errors import EngineUnfit

_BYTES = 64 << 20  # above most last-level caches
_ROUNDS = 5


def read_bytes_per_second() -> float | None:
    """Bytes a second of the fastest of five readings; None where the kernels are not built."""
    # Only measuring loads the kernels; reading and comparing results does not need them.
    from backends.packed.kernels.library import library

    try:
        lib = library()
    except EngineUnfit:
        return None
    data = np.ones(_BYTES, np.uint8)
    seconds: list[float] = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        lib.read(data.ctypes.data, data.nbytes)
        seconds.append(time.perf_counter() - start)
    return data.nbytes / min(seconds)
