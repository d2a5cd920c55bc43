"""Files that a command writes: `--out KIND=FILE`, or all of them into one folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.comparison import CompareResult, RunResult
from bench.extras import need
from bench.files import write_text
from bench.render.machine import to_annotations, to_benchmark, to_csv, to_jsonl, to_junit
from bench.render.markdown import to_markdown
from bench.results import AbResult
from exporter.errors import UsageError

Any_ = RunResult | CompareResult | AbResult

KINDS = {
    "json": "result.json",
    "jsonl": "samples.jsonl",
    "csv": "figures.csv",
    "markdown": "summary.md",
    "junit": "junit.xml",
    "benchmark": "github-action-benchmark.json",
    "annotations": "annotations.txt",
    "html": "report.html",
}


class Outputs:
    """What was asked for, checked before minutes of measuring.

    Args:
        pairs: "KIND=FILE"; FILE "-" is standard output.
        folder: all kinds, under their own names.

    Raises:
        UsageError: `usage` for a kind that is not known, or plots without matplotlib.
    """

    def __init__(
        self, pairs: Sequence[str], folder: Path | None, more: dict[str, Path | None]
    ) -> None:
        self.wanted: list[tuple[str, Path]] = []
        for pair in pairs:
            kind, equals, file = pair.partition("=")
            if kind not in KINDS or not equals or not file:
                raise UsageError(
                    "usage", f"--out {pair}", expected=f"KIND=FILE, KIND one of {', '.join(KINDS)}"
                )
            self.wanted.append((kind, Path(file)))
        if folder is not None:
            self.wanted += [(kind, folder / name) for kind, name in KINDS.items()]
        self.wanted += [(kind, path) for kind, path in more.items() if path is not None]
        if any(kind == "html" for kind, _ in self.wanted):
            need("matplotlib")

    def write(self, result: Any_) -> None:
        """Every file that was asked for.

        Raises:
            InputRefused: `output-failed`.
        """
        for kind, path in self.wanted:
            text = _text(kind, result)
            if str(path) == "-":
                sys.stdout.write(text)
            else:
                write_text(path, text)


def _text(kind: str, result: Any_) -> str:
    if kind == "json":
        return result.model_dump_json(indent=2) + "\n"
    if kind == "html":
        return _html(result)
    flat = result.comparison if isinstance(result, AbResult) else result
    if flat is None:
        raise UsageError("usage", "this result of an older version holds no comparison")
    forms: dict[str, Callable[[RunResult | CompareResult], str]] = {
        "jsonl": to_jsonl,
        "csv": to_csv,
        "markdown": to_markdown,
        "junit": to_junit,
        "benchmark": to_benchmark,
        "annotations": to_annotations,
    }
    return forms[kind](flat)


def _html(result: Any_) -> str:
    # matplotlib is slow to import: only a report pays for it.
    from bench.render.html import ab_html, result_html

    return ab_html([result]) if isinstance(result, AbResult) else result_html(result)
