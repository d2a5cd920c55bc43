"""`report.html` of an artefact: one self-contained page, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from exporter.report.export import ExportReport
from exporter.report.heatmap import heatmap_svg
from exporter.report.inspect import InspectReport
from exporter.report.merge_html import merge_html
from exporter.report.quantised_html import quantised_html

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #d7dce2;
  vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.pass { color: #116329; font-weight: 600 } .fail { color: #a40e26; font-weight: 600 }
svg { max-width: 100%; height: auto }
"""


def write_html(path: Path, report: ExportReport, sparsity: InspectReport) -> None:
    """Write the page; `sparsity` gives the heat map of the base."""
    path.write_text(export_html(report, sparsity), encoding="utf-8")


def export_html(report: ExportReport, sparsity: InspectReport) -> str:
    """The page as text."""
    title = f"{report.model.family} for {report.target.name}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _verdict(report.verification),
        "<h2>What was made</h2>",
        _pairs(_made(report)),
        "<h2>Numbers against the float32 reference</h2>",
        _phases(report.verification),
        "<h2>Adapters</h2>",
        _adapters(report),
        merge_html(report),
        quantised_html(report.quantised),
        "<h2>Sparsity</h2>",
        heatmap_svg(sparsity),
        "<h2>What the target said</h2>",
        _diagnostics(report),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = "".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _verdict(verification: Mapping[str, Any]) -> str:
    passed = bool(verification.get("verdict", {}).get("passed"))
    word = "pass" if passed else "fail"
    return f'<p class="{word}">{escape(str(verification.get("summary", "")))}</p>'


def _made(report: ExportReport) -> Iterable[tuple[str, str]]:
    target, model, artefact = report.target, report.model, report.artefact
    options = ", ".join(f"{k}={v}" for k, v in target.options.items()) or "defaults"
    yield "engine", f"{target.engine} {target.versions} (Python {target.python}; {target.hardware})"
    if target.licence:
        yield "licence of the engine", target.licence
    yield "options", options
    yield "model", f"{model.family}, {model.layers} layers, {model.linears} linears"
    yield "pattern", f"{model.pattern}, {model.sparsity:.2%} zeros, mask from {model.mask_origin}"
    yield "zeros after the merge", f"{artefact.sparsity_after:.2%}"
    yield "merge policy", str(report.merge.get("policy"))
    ratio = artefact.total_bytes / max(artefact.tensor_bytes, 1)
    yield "size", f"{artefact.total_bytes / 1e6:,.1f} MB, {ratio:.4f} of its tensors"


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    return f"<table>{body}</table>"


def _phases(verification: Mapping[str, Any]) -> str:
    numbers = verification.get("numbers") or {}
    columns = ("positions", "max_abs", "max_rel", "kl_max", "top1")
    head = "".join(f"<th>{escape(c)}</th>" for c in ("phase", *columns))
    rows = "".join(
        f"<tr><td>{phase}</td>"
        + "".join(f'<td class="n">{escape(str(numbers[phase].get(c)))}</td>' for c in columns)
        + "</tr>"
        for phase in ("prefill", "decode")
        if phase in numbers
    )
    equal = sum(p["equal"] == p["compared"] for p in numbers.get("prompts", ()))
    ties = len(numbers.get("near_ties", ()))
    magnified = len(numbers.get("magnified", ()))
    tail = (
        f"<p>{equal} of {len(numbers.get('prompts', ()))} free greedy runs equal the reference, "
        f"{ties} near ties. Allowed max_rel: {escape(str(numbers.get('allowed_rel')))}; beyond it "
        f"by the model's own rounding: {magnified} positions.</p>"
    )
    return f"<table><tr>{head}</tr>{rows}</table>{tail}"


def _adapters(report: ExportReport) -> str:
    if not report.adapters:
        return "<p>none</p>"
    rows = "".join(
        f"<tr><td>{escape(a.family)}</td><td class=n>{a.weight:g}</td>"
        f"<td class=n>{a.modules}</td><td class=n>{a.tensors_used}</td></tr>"
        for a in report.adapters
    )
    head = "<tr><th>family</th><th>weight</th><th>modules</th><th>tensors used</th></tr>"
    books = "; ".join(report.accounting.lines())
    return f"<table>{head}{rows}</table><p>{escape(books)}</p>"


def _diagnostics(report: ExportReport) -> str:
    items = "".join(f"<li><b>{d.level}</b> {escape(d.message)}</li>" for d in report.diagnostics)
    return f"<ul>{items or '<li>nothing</li>'}</ul>"
