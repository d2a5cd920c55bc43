"""A result as GitHub-flavoured Markdown, for a job's summary or a comment."""

from __future__ import annotations

from bench.comparison import CompareResult, RunResult
from bench.render.rows import Result, facts, sides
from bench.render.text import cell_rows, figure_table


def to_markdown(result: Result) -> str:
    """Verdict, cells, figures and notes."""
    parts = [f"## {_plain(result.title)}"]
    if isinstance(result, CompareResult):
        parts.append(f"**{result.verdict.status}**: {_plain(result.verdict.reason)}")
        parts.append(_table(cell_rows(result)))
    parts.append(_table(figure_table(result)))
    parts.append(_table(_facts(result)))
    parts += [f"- {_plain(note)}" for note in result.notes]
    machine = result.fingerprint if isinstance(result, RunResult) else result.new_fingerprint
    parts.append(f"{_plain(machine.cpu)}, {machine.cores_usable} cores")
    return "\n\n".join(parts) + "\n"


def _facts(result: Result) -> list[list[str]]:
    found = [(info.label, facts(info)) for _, info, _ in sides(result)]
    head = ["", *(label for label, _ in found)]
    body = [
        [f"{row[0]}{f', {row[1]}' if row[1] else ''}", *(_value(f[i][2]) for _, f in found)]
        for i, row in enumerate(found[0][1])
    ]
    return [head, *body]


def _value(value: float | None) -> str:
    return "not available" if value is None else f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"


def _table(rows: list[list[str]]) -> str:
    head, *body = [[_plain(c) for c in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Nothing of it is markup."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")
