"""Whether two results may be compared: the same machine, software and workload, or say so."""

from __future__ import annotations

from bench.comparison import RunResult
from bench.parts import Fingerprint
from exporter.errors import EngineUnfit, UsageError

# What a time depends on. Load is told in a note; packages of ours may differ: they are compared.
_MACHINE = (
    "cpu",
    "cpu_flags",
    "microcode",
    "cores_usable",
    "cores_total",
    "cpu_quota",
    "memory_limit",
    "governor",
    "turbo",
    "smt",
    "gpus",
    "system",
)
_MEMORY_SLACK = 0.02  # a kernel's reserved pages differ from boot to boot


def differences(base: Fingerprint, new: Fingerprint) -> list[str]:
    """ "cpu: A, now B" for each that matters."""
    found = [
        f"{name}: {getattr(base, name)}, now {getattr(new, name)}"
        for name in _MACHINE
        if getattr(base, name) != getattr(new, name)
    ]
    a, b = base.memory_bytes, new.memory_bytes
    if (a is None) != (b is None) or (a and b and abs(a - b) > _MEMORY_SLACK * a):
        found.append(f"memory_bytes: {a}, now {b}")
    return found


def require_like(base: Fingerprint, new: Fingerprint, *, force: bool) -> list[str]:
    """Notes on what differs where `force` is given.

    Raises:
        EngineUnfit: `machine-unlike`.
    """
    found = differences(base, new)
    if found and not force:
        raise EngineUnfit(
            "machine-unlike",
            "; ".join(found),
            expected="two results of one machine",
            hint="Measure both here (`sparse-bench compare BASE_FOLDER NEW_FOLDER`).",
        )
    return [f"Unlike machines, compared by force: {text}." for text in found]


def require_same_work(base: RunResult, new: RunResult) -> None:
    """Refuse results of other workloads: their seconds are of other work.

    Raises:
        UsageError: `usage`.
    """
    names = ("workloads", "seed", "threads")
    odd = [n for n in names if getattr(base.settings, n) != getattr(new.settings, n)]
    if odd:
        raise UsageError(
            "usage",
            f"the two results differ in {', '.join(odd)}",
            expected="two results of one suite",
        )
