"""What the vLLM demo found: a table in the terminal, report.json, and a page of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from bench.render.html import page, table
from exporter.report.export import ExportReport
from scripts.demo_report import HEAD, ExportRow
from scripts.vllm_compare import BF16_STEP, Answer, Comparison, Difference
from scripts.vllm_server import CACHE_GIB

_STYLE = "td { white-space: nowrap } pre { background: #f4f4f4; padding: .7rem; overflow: auto }"
RULE = (
    "Greedy texts must be equal. A place may differ only where the dense run's two best logits lie "
    f"no further apart than one bfloat16 rounding of both, {BF16_STEP} of the larger."
)
SERVE_HEAD = ("folder", "size", "seconds to healthy", "seconds for all answers")
EQUAL_HEAD = ("pattern", "target", "texts equal", "tokens equal", "places that differ", "verdict")
DIFFERENCE_HEAD = ("prompt", "token", "dense", "packed", "gap", "allowed", "verdict")


class Side(BaseModel):
    """One served folder."""

    folder: str
    size_bytes: int
    start_seconds: float
    answer_seconds: float
    answers: list[Answer]
    export: ExportReport

    @classmethod
    def of(cls, folder: Path, export: ExportReport, seconds: float, answers: list[Answer]) -> Side:
        """From what was measured."""
        return cls(
            folder=folder.name,
            size_bytes=export.artefact.total_bytes,
            start_seconds=seconds,
            answer_seconds=sum(answer.seconds for answer in answers),
            answers=answers,
            export=export,
        )

    def cells(self) -> tuple[str, ...]:
        """As in `SERVE_HEAD`."""
        return (
            self.folder,
            f"{self.size_bytes / 1e6:.1f} MB",
            f"{self.start_seconds:.1f}",
            f"{self.answer_seconds:.1f}",
        )


class Run(BaseModel):
    """One pattern, packed beside dense."""

    pattern: str
    target: str
    packed: Side
    dense: Side
    comparison: Comparison

    def cells(self) -> tuple[str, ...]:
        """As in `EQUAL_HEAD`."""
        found = self.comparison
        return (
            self.pattern,
            self.target,
            f"{found.equal_texts} of {found.prompts}",
            f"{found.equal_tokens} of {found.tokens}",
            str(len(found.differences)),
            "passed" if found.passed else "FAILED",
        )


class Report(BaseModel):
    """report.json."""

    rule: str
    server_variables: dict[str, str]
    runs: list[Run]
    commands: list[str]
    seconds: dict[str, float]


def print_summary(console: Console, runs: Sequence[Run], seconds: Mapping[str, float]) -> None:
    """What came out, as tables."""
    for title, head, rows in _tables(runs, seconds):
        if rows:
            shown = Table(*head, title=title, title_justify="left")
            for row in rows:
                shown.add_row(*row)
            console.print()
            console.print(shown)
    console.print(RULE, markup=False)


def write_report(
    folder: Path, runs: Sequence[Run], commands: Sequence[str], seconds: Mapping[str, float]
) -> None:
    """report.json and report.html, which needs nothing else."""
    variables = {"VLLM_CPU_KVCACHE_SPACE": CACHE_GIB}
    report = Report(rule=RULE, server_variables=variables, runs=list(runs),
                    commands=list(commands), seconds=dict(seconds))  # fmt: skip
    (folder / "report.json").write_text(report.model_dump_json(indent=1), encoding="utf-8")
    tables = [
        f"<h2>{escape(title)}</h2>{table([head, *rows])}"
        for title, head, rows in _tables(runs, seconds)
        if rows
    ]
    parts = (
        "<h1>Sparse models, served by vLLM on a CPU</h1>",
        f"<p>SmolLM2-135M-Instruct, pruned by Wanda, served by <code>vllm serve FOLDER --port N"
        f"</code> with no other flag. {escape(RULE)}</p>",
        *tables,
        "<h2>Answers</h2>",
        *(_answers(run) for run in runs),
        f"<h2>Commands</h2><pre>{escape(chr(10).join(commands))}</pre>",
    )
    (folder / "report.html").write_text(
        page("sparse-export on vLLM", parts, _STYLE), encoding="utf-8"
    )


_Rows = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def _tables(runs: Sequence[Run], seconds: Mapping[str, float]) -> list[_Rows]:
    sides = [side for run in runs for side in (run.packed, run.dense)]
    differences = [_difference(d) for run in runs for d in run.comparison.differences]
    return [
        ("Greedy text, packed against dense", EQUAL_HEAD, [run.cells() for run in runs]),
        ("Places that differ", DIFFERENCE_HEAD, differences),
        ("Served", SERVE_HEAD, [side.cells() for side in sides]),
        ("Published and verified", HEAD,
         [ExportRow(side.folder, side.export).cells() for side in sides]),
        ("Seconds", ("stage", "s"), [(name, f"{value:.1f}") for name, value in seconds.items()]),
    ]  # fmt: skip


def _difference(found: Difference) -> tuple[str, ...]:
    return (
        found.prompt,
        str(found.place),
        str(found.dense),
        str(found.packed),
        f"{found.gap:.4f}",
        f"{found.allowed_gap:.4f}",
        "a tie in bfloat16" if found.allowed else "NOT explained by rounding",
    )


def _answers(run: Run) -> str:
    parts: list[str] = [f"<h3>{escape(run.pattern)}, {escape(run.target)}</h3>"]
    for packed, dense in zip(run.packed.answers, run.dense.answers, strict=True):
        told = f"{packed.prompt}|{packed.text}"
        if packed.text != dense.text:
            told += f"\n\ndense: {dense.prompt}|{dense.text}"
        parts.append(f"<pre>{escape(told)}</pre>")
    return "".join(parts)
