"""What this machine's processor offers, read from the kernel: no engine is loaded for it."""

from __future__ import annotations

import platform
import sys
from functools import cache
from pathlib import Path

_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"})


@cache
def cpu_flags(path: str = "/proc/cpuinfo") -> frozenset[str]:
    """Flags of the first processor; empty where there is no such file."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def isa(flags: frozenset[str] | None = None) -> str:
    """ "avx512_vnni", "avx512", "avx2" or "none": the classes by which CPU engines differ."""
    have = cpu_flags() if flags is None else flags
    if have >= _AVX512:
        return "avx512_vnni" if "avx512_vnni" in have else "avx512"
    return "avx2" if "avx2" in have else "none"


def linux_x86_avx2() -> str | None:
    """Why this machine cannot run an engine made for Linux on x86-64 with AVX2, or None."""
    machine = platform.machine()
    if not sys.platform.startswith("linux") or machine not in ("x86_64", "AMD64"):
        return f"needs Linux on x86-64, this is {sys.platform} on {machine}"
    if isa() == "none":
        return "the CPU has no AVX2"
    return None
