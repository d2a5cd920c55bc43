"""The kernel benchmark as one HTML page, and whether each ratio is what was aimed at."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from bench.render.html import page, table

__all__ = ["goal", "kernels_html", "verdicts"]

Ratio = dict[str, Any]


def goal(ratio: Ratio) -> float | None:
    """What a ratio should reach at least; None where nothing was set."""
    m, values, pattern, against = (ratio[key] for key in ("m", "values", "pattern", "against"))
    if against == "deepsparse":
        if m >= 128:
            return 1.1
        return 2.0 if values == "bf16" else 3.0
    if m == 1 and values == "bf16" and against == "dense-bf16":
        return {"50%": 1.3, "70%": 1.8}.get(pattern)
    if m == 1 and values == "bf16" and against == "read" and pattern == "50%":
        return 0.7
    return None


def verdicts(ratios: Iterable[Ratio]) -> list[list[str]]:
    """A table of all ratios that have a goal, head first."""
    rows = [["weight, M", "values", "zeros", "against", "ratio", "interval", "goal", "reached"]]
    for each in ratios:
        wanted = goal(each)
        if wanted is None:
            continue
        rows.append(
            [
                f"[{each['n']}, {each['k']}], {each['m']}",
                each["values"],
                each["pattern"],
                each["against"],
                f"{each['ratio']:.2f}",
                f"{each['low']:.2f} to {each['high']:.2f}",
                f"{wanted:g}",
                "yes" if each["ratio"] >= wanted else "no",
            ]
        )
    return rows


def kernels_html(found: dict[str, Any]) -> str:
    """The page of what `build/bench/kernels.json` holds."""
    head = ["weight, M", "case", "ms", "interval", "GB/s"]
    times = [
        [
            f"[{t['n']}, {t['k']}], {t['m']}",
            t["case"],
            f"{t['ms']['median']:.3f}",
            f"{t['ms']['low']:.3f} to {t['ms']['high']:.3f}",
            f"{t['gb_per_second']:.1f}",
        ]
        for t in found["times"]
    ]
    peer = found.get("deepsparse") or {}
    about = (
        f"<p>Instruction set {found['isa']}, {found['threads']} threads, {escape(found['cpu'])}. "
        f"DeepSparse {peer.get('version', 'not installed')} ({peer.get('isa', '-')}), fp32. "
        "A ratio is the other's seconds over ours in the same round: above 1 ours is faster; "
        "against `read` it is the share of the bandwidth of plain reading.</p>"
    ) + _stolen(found.get("blocks", []))
    parts = ["<h1>CPU kernels</h1>", about, "<h2>Goals</h2>", table(verdicts(found["ratios"]))]
    parts += ["<h2>Times of one call</h2>", table([head, *times])]
    return page("CPU kernels", parts)


def _stolen(blocks: list[dict[str, Any]]) -> str:
    told = [
        f"[{b['n']}, {b['k']}], {b['m']}: {b['stolen']:.0%}"
        for b in blocks
        if b["stolen"] is not None
    ]
    what = "CPU time that the host of this virtual machine gave to others meanwhile"
    return f"<p>{what}: {'; '.join(told)}.</p>" if told else ""
