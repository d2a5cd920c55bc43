"""`sparse-export MODEL --target NAME`: the main command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from exporter.calibration.request import CalibrationRequest
from exporter.check.claims import EXPECT_HELP, parse_expected
from exporter.commands.terminal import TerminalListener, interruptible, print_json
from exporter.commands.trained import expand_trained
from exporter.errors import UsageError
from exporter.pipeline import Outcome, export
from exporter.provenance import target_options
from exporter.registry import load_target, parse_target
from exporter.report.costs import merge_lines
from exporter.report.export import AdapterPart, ExportReport
from exporter.report.inspect_table import note_lines
from exporter.report.plan import plan_report, render_plan
from exporter.request import AdapterRequest, ExportRequest

POLICIES = "exact, mask, refit, reprune, separate, densify"
CALIBRATION_HELP = (
    "UTF-8 text, or token ids (.json, .safetensors), as FILE or FILE:tokens=N,held_out=N,length=N: "
    "what refit and quantise=gptq solve on, and what merging and quantising cost on it."
)
HELD_OUT_HELP = "Text for the perplexity; else the end of the calibration text is held out."


def export_command(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder with safetensors weights.")],
    target: Annotated[
        str, typer.Option("--target", "-t", help="Engine: NAME or NAME,option=value,...")
    ],
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", help="Adapter folder, PATH or PATH=WEIGHT.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Masks file; else the zeros are the mask.")
    ] = None,
    expect: Annotated[
        str | None, typer.Option("--expect", help=EXPECT_HELP, metavar="PATTERN")
    ] = None,
    on_merge: Annotated[
        str | None, typer.Option("--on-merge", help=f"Merge policy: {POLICIES}.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option("--calibration", help=CALIBRATION_HELP, metavar="FILE")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option("--held-out", help=HELD_OUT_HELP, metavar="FILE")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder [MODEL-TARGET].")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="Type of the written weights (hf: as in MODEL; others float32)."
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", "--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="On a miss, name the first layer that differs.")
    ] = False,
    lower_only: Annotated[
        bool,
        typer.Option("--lower-only", help="Lower, measure, and throw away: for benchmarks."),
    ] = False,
    json_out: Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")] = False,
) -> None:
    """Fuse adapters into a sparse model, lower it, verify the bytes, and publish the folder."""
    name, options = parse_target(target)
    request = ExportRequest(
        model=model,
        target=name,
        output=output or _beside(model, name),
        target_options=_with_dtype(name, options, dtype),
        adapters=tuple(AdapterRequest.parse(a) for a in adapter or ()),
        masks=masks,
        calibration=parse_calibration(calibration, held_out),
        expect=None if expect is None else parse_expected(expect),
        policy=on_merge,
        force=force,
        bisect=bisect,
        lower_only=lower_only,
    )
    request = expand_trained(request)
    if plan and expect is not None:
        raise UsageError("usage", "--plan with --expect", expected="--expect reads the weights")
    if plan:
        _show_plan(request, json_out)
    else:
        _run(request, json_out)


def parse_calibration(text: str | None, held_out: Path | None) -> CalibrationRequest | None:
    """The two options as one request.

    Raises:
        UsageError: `usage`.
    """
    if text is not None:
        return CalibrationRequest.parse(text, held_out)
    if held_out is not None:
        raise UsageError("usage", "--held-out without --calibration", expected="both")
    return None


def _with_dtype(name: str, options: dict[str, str], dtype: str | None) -> dict[str, str]:
    """`--dtype` as an option of the target, where it has that."""
    if dtype is None:
        return options
    if "dtype" in target_options(load_target(name, options)):
        if "dtype" in options:
            raise UsageError("usage", "--dtype and the target's dtype", expected="one of them")
        return {**options, "dtype": dtype}
    if dtype != "float32":
        raise UsageError(
            "usage",
            f"--dtype {dtype} for target {name}",
            expected="float32: DeepSparse computes in float32 and so does the shared graph",
        )
    return options


def _beside(model: Path, target: str) -> Path:
    place = Path(os.path.abspath(model))  # "." and ".." have no name of their own
    return place.with_name(f"{place.name}-{target}") if place.name else Path(target)


def _show_plan(request: ExportRequest, json_out: bool) -> None:
    report = plan_report(request)
    if json_out:
        print_json(report)
    else:
        render_plan(report, Console())


def _run(request: ExportRequest, json_out: bool) -> None:
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        outcome = export(request, listener)
    if json_out:
        print_json(_as_json(outcome))
    elif outcome.report is not None:
        render_outcome(outcome, request, Console())
    else:
        Console().print("lowered and thrown away, as asked: nothing was verified or published")


def _as_json(outcome: Outcome) -> dict[str, object]:
    report = outcome.report.model_dump(mode="json", by_alias=True) if outcome.report else None
    return {"report": report, "measured": outcome.measured.model_dump(mode="json")}


def render_outcome(outcome: Outcome, request: ExportRequest, console: Console) -> None:
    """The table that a person reads after an export."""
    report = outcome.report
    if report is None:
        return
    for part in outcome.diagnostics:
        console.print(f"{part.level}: {part.message}", markup=False)
    for line in note_lines(report.model.notes):
        console.print(f"note: {line}", markup=False)
    if report.verification.get("fallback"):
        console.print(f"warning: {report.verification['fallback']}", markup=False)
    table = Table(title=f"{request.model.name} -> {report.target.name}", show_header=False)
    for row in _rows(report, outcome):
        table.add_row(*row)
    console.print(table)
    console.print(f"published {request.output}", markup=False)


def _adapter(part: AdapterPart) -> str:
    weight = "" if part.weight == 1.0 else f" at weight {part.weight:g}"
    return f"{part.family}{weight}, {part.modules} modules"


def _rows(report: ExportReport, outcome: Outcome) -> list[tuple[str, str]]:
    verification = report.verification
    return [
        ("linears", f"{report.model.linears}, {report.model.pattern}"),
        (
            "sparsity",
            f"{report.model.sparsity:.2%} before, {report.artefact.sparsity_after:.2%} after",
        ),
        (
            "adapters",
            "; ".join(_adapter(a) for a in report.adapters) or "none",
        ),
        ("merge", str(report.merge.get("policy", "none"))),
        *merge_lines(report.merge.get("figures", {})),
        *(report.costs.lines() if report.costs else ()),
        *(report.quantised.lines() if report.quantised else ()),
        *([("accounting", "; ".join(lines))] if (lines := report.accounting.lines()) else ()),
        ("artefact", f"{report.artefact.total_bytes / 1e6:.1f} MB"),
        ("verified by", str(verification.get("engine", ""))),
        ("verdict", str(verification.get("summary", ""))),
        *((f"runs {kind}", how) for kind, how in outcome.measured.choices.items()),
        ("seconds", ", ".join(f"{k} {v:.1f}" for k, v in outcome.measured.seconds.items())),
        ("peak memory", f"{outcome.measured.peak_rss_bytes / 1e6:.0f} MB (this process)"),
    ]
