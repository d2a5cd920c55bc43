"""What about the machine, and about how it was measured, could mislead a reader."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from bench.journal import Line
from bench.parts import Fingerprint
from bench.readings import ProcessLine

_MUCH_STOLEN = 0.05


def machine_notes(machine: Fingerprint) -> list[str]:
    """Whether others used the machine when it began."""
    load = machine.load_at_start
    if load is not None and load > 0.5 * machine.cores_usable:
        return [f"The machine was busy: load {load} at the start."]
    return []


def process_notes(lines: Sequence[Line]) -> list[str]:
    """How many processes had not settled when their warm-up ended, and what the host took."""
    processes = [line for line in lines if isinstance(line, ProcessLine)]
    cold = sum(not p.warm for p in processes)
    notes = [f"{cold} of {len(processes)} warm-ups ended unsettled."] if cold else []
    stolen = [p.stolen for p in processes if p.stolen is not None]
    if stolen and mean(stolen) > _MUCH_STOLEN:
        notes.append(
            f"The host gave {mean(stolen):.0%} of the CPU time that this virtual machine wanted to "
            f"others while it was timed (at most {max(stolen):.0%} in a process)."
        )
    return notes
