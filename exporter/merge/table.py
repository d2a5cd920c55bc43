"""The table of a refused merge: what lies outside the mask, and what each policy would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from exporter.merge.base import DeltaShare
from exporter.merge.policies import CHOICES


def render_shares(shares: Sequence[DeltaShare], console: Console) -> None:
    """Print one row for each module, the total, and one line for each policy."""
    table = Table(title="Share of the delta's norm outside the mask", box=None, pad_edge=False)
    table.add_column("module", overflow="fold")
    for title in ("norm", "outside", "density", "zeros filled"):
        table.add_column(title, justify="right")
    for share in shares:
        table.add_row(
            share.module,
            f"{share.norm:.4g}",
            f"{share.outside:.1%}",
            f"{share.density:.1%}",
            f"{share.new_nonzeros:,}",
        )
    norm, outside = total_share(shares)
    filled = sum(s.new_nonzeros for s in shares)
    table.add_section()
    table.add_row("all", f"{norm:.4g}", f"{outside:.1%}", "", f"{filled:,}")
    console.print(table)
    for policy in CHOICES:
        console.print(f"  --on-merge {policy.name:<9} {policy.cost}", markup=False)


def total_share(shares: Sequence[DeltaShare]) -> tuple[float, float]:
    """Norm of all deltas together, and the share of it outside the masks."""
    norm = math.sqrt(sum(s.norm**2 for s in shares))
    lost = math.sqrt(sum((s.norm * s.outside) ** 2 for s in shares))
    return norm, lost / norm if norm else 0.0
