"""Which way a linear is computed for how many rows of x: a table, and its form as a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch

ANY = 1 << 62
"""Upper end of a table's last line."""
_ARGS = 4


class Path(IntEnum):
    """Ways to compute y = x W^T + b."""

    DENSE = 0  # weight decompressed at load, torch's linear
    TRITON = 1  # packed weight; args: row blocks of a program, splits, warps, stages
    HALF = 2  # 2:4 compressed for cuSPARSELt; args: algorithm
    SLABS = 3  # packed weight, decompressed slab by slab in every call; args: rows of a slab


@dataclass(frozen=True)
class Step:
    """One line: up to `rows` rows of x go `path` with `args`."""

    rows: int
    path: Path
    args: tuple[int, ...] = ()
    microseconds: tuple[tuple[str, float], ...] = ()  # what was measured, by name; may be empty
    refused: tuple[tuple[str, str], ...] = ()  # candidate -> why it was left out

    def __str__(self) -> str:
        """As the log shows it."""
        upto = "more" if self.rows == ANY else f"<= {self.rows}"
        times = ", ".join(f"{name} {us:.1f} us" for name, us in self.microseconds)
        notes = "; ".join(f"{name}: {why}" for name, why in self.refused)
        found = f"M {upto}: {self.path.name.lower()}{list(self.args) or ''}"
        return f"{found} ({times or 'not measured'})" + (f" [left out: {notes}]" if notes else "")


@dataclass(frozen=True)
class Plan:
    """Steps in ascending `rows`; the last holds for any number."""

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        """Refuse a table with holes."""
        ends = [step.rows for step in self.steps]
        if not ends or ends[-1] != ANY or ends != sorted(set(ends)):
            raise ValueError(f"a plan ends at any number of rows and ascends, not {ends}")

    def step(self, rows: int) -> Step:
        """The line for `rows` rows of x."""
        return next(step for step in self.steps if rows <= step.rows)

    def uses(self, *paths: Path) -> bool:
        """Whether some number of rows goes one of these ways."""
        return any(step.path in paths for step in self.steps)

    def tensor(self) -> torch.Tensor:
        """int64 [steps, 2 + 4] on the CPU.

        A tensor, not numbers in the graph: a compiled graph that is stored and loaded again
        must follow what *this* process measured. On the CPU, so that reading it waits for nothing.
        """
        lines = [[s.rows, s.path, *s.args] + [0] * (_ARGS - len(s.args)) for s in self.steps]
        return torch.tensor(lines, dtype=torch.int64)

    def __str__(self) -> str:
        """One step a line."""
        return "\n".join(str(step) for step in self.steps)


def read_step(plan: torch.Tensor, rows: int) -> tuple[Path, Sequence[int]]:
    """Path and arguments for `rows` rows from `Plan.tensor()`."""
    lines: list[list[int]] = plan.tolist()
    line = next(line for line in lines if rows <= line[0])
    return Path(line[1]), line[2:]
