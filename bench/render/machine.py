"""Forms for machines: CSV, JSON lines, JUnit XML, github-action-benchmark, annotations."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import asdict, fields

from bench.comparison import Cell, CompareResult, RunResult, WorkloadFigures
from bench.render.rows import Result, Row, rows, sides

SUITE = "sparse-bench"


def to_csv(result: Result) -> str:
    """RFC 4180, a figure a line; what is not available is empty, and the note says why."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in fields(Row)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows(result))
    return out.getvalue()


def to_jsonl(result: Result) -> str:
    """The raw samples: readings and processes, one JSON object a line."""
    lines = [*result.readings, *result.processes]
    return "".join(line.model_dump_json() + "\n" for line in lines)


def to_junit(result: Result) -> str:
    """JUnit XML in the form that Jenkins, GitLab and GitHub actions read: a case a workload.

    failure: a confirmed regression. error: too noisy to decide. skipped: not run.
    """
    suite = ElementTree.Element("testsuite", name=SUITE)
    cases = list(_cases(result, suite))
    suite.set("tests", str(len(cases)))
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(kind) is not None for case in cases)))
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.6f}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def to_benchmark(result: Result) -> str:
    """The list that github-action-benchmark's tool "customSmallerIsBetter" reads."""
    out = [
        {
            "name": f"{row.label} {row.workload} {row.metric}".replace("  ", " "),
            "unit": row.unit,
            "value": row.value,
            "range": "" if row.low is None else f"{row.low:.6g} - {row.high:.6g}",
            "extra": f"{row.n} processes",
        }
        for row in rows(result)
        if row.value is not None and row.unit == "s" and _p_free(row.metric)
    ]
    return json.dumps(out, indent=2) + "\n"


def to_annotations(result: Result) -> str:
    """Workflow commands of GitHub actions: an error or a warning a cell, notices for the rest."""
    if isinstance(result, RunResult):
        return "".join(f"::notice title={SUITE}::{_escape(note)}\n" for note in result.notes)
    level = {"slower": "error", "noisy": "warning", "unconfirmed": "warning"}
    gate = result.verdict.status != "no-gate"
    lines = [
        (level.get(c.status, "notice") if gate else "notice", f"{c.workload}: {c.reason}")
        for c in result.cells
    ]
    final = "error" if result.verdict.exit_code == 1 else "notice"
    lines.append((final, f"{result.verdict.status}: {result.verdict.reason}"))
    return "".join(f"::{kind} title={SUITE}::{_escape(text)}\n" for kind, text in lines)


def _cases(result: Result, suite: ElementTree.Element) -> Iterator[ElementTree.Element]:
    cells = {c.workload: c for c in result.cells} if isinstance(result, CompareResult) else {}
    _, info, workloads = sides(result)[-1]
    for workload in workloads:
        case = ElementTree.SubElement(
            suite, "testcase", name=workload.workload, classname=f"{SUITE}.{_class(info.label)}",
            time=f"{_seconds(workload):.6f}",
        )  # fmt: skip
        if workload.left_out:
            ElementTree.SubElement(case, "skipped", message=workload.left_out)
        elif workload.workload in cells:
            _outcome(case, cells[workload.workload], result)
        yield case


def _outcome(case: ElementTree.Element, cell: Cell, result: Result) -> None:
    if isinstance(result, CompareResult) and result.verdict.status == "no-gate":
        ElementTree.SubElement(case, "system-out").text = cell.reason
        return
    if cell.status == "slower":
        ElementTree.SubElement(case, "failure", message=cell.reason, type="regression")
    elif cell.status == "noisy":
        ElementTree.SubElement(case, "error", message=cell.reason, type="undecided")
    else:
        ElementTree.SubElement(case, "system-out").text = cell.reason


def _seconds(workload: WorkloadFigures) -> float:
    figure = workload.figure(workload.gate)
    return figure.value if figure is not None and figure.value is not None else 0.0


def _p_free(metric: str) -> bool:
    return metric.rpartition("_p")[2].replace(".", "").isdecimal() is False


def _class(label: str) -> str:
    return label.replace(".", "_")


def _escape(text: str) -> str:
    """As actions/toolkit's `escapeData`."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
