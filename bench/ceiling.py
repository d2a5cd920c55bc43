"""The fastest that this machine reads memory, by the read loop of our own kernels."""

from __future__ import annotations

import time

from exporter.errors import EngineUnfit

_LEAST = 5
_SECONDS = 0.5  # a shared machine can be busy for longer than five readings take


def read_bytes_per_second() -> float | None:
    """Bytes a second, the fastest reading in half a second; None where no kernels are built."""
    # Only measuring loads the kernels; reading and comparing results does not need them.
    from bench.kernels.run import read_ceiling

    try:
        case = read_ceiling()
    except EngineUnfit:
        return None
    seconds: list[float] = []
    while len(seconds) < _LEAST or sum(seconds) < _SECONDS:
        start = time.perf_counter()
        case.calls[0]()
        seconds.append(time.perf_counter() - start)
    return case.bytes / min(seconds)
