"""`sparse-export policies`: what each merge policy costs on a text, before one is chosen."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from exporter import registry
from exporter.calibration.compare import compare_policies
from exporter.calibration.request import CalibrationRequest
from exporter.check.model import check_model
from exporter.commands.export import CALIBRATION_HELP, HELD_OUT_HELP
from exporter.commands.terminal import TerminalListener, interruptible, print_json
from exporter.inputs import read_adapters
from exporter.merge.policies import CHOICES, policy_by_name
from exporter.report.policies import HEAD, PoliciesReport, cells, notes
from exporter.report.policies_html import policies_html
from exporter.request import AdapterRequest, ExportRequest
from exporter.store.checkpoint import Checkpoint
from exporter.store.jsonio import dump_json


def policies_command(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder with safetensors weights.")],
    adapter: Annotated[
        list[str], typer.Option("--adapter", help="Adapter folder, PATH or PATH=WEIGHT.")
    ],
    calibration: Annotated[
        str, typer.Option("--calibration", help=CALIBRATION_HELP, metavar="FILE")
    ],
    held_out: Annotated[
        Path | None, typer.Option("--held-out", help=HELD_OUT_HELP, metavar="FILE")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Masks file; else the zeros are the mask.")
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option("--policy", help="Only this one; may be given again.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option("--work", help="Where Gram matrices lie for a while (the system's own)."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page there.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json-file", help="Write the report there.")
    ] = None,
    json_out: Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")] = False,
) -> None:
    """Merge by every policy and compare: norm lost, output error, perplexity. Exports nothing."""
    request = ExportRequest(
        model,
        "none",
        Path("none"),
        adapters=tuple(AdapterRequest.parse(a) for a in adapter),
        masks=masks,
    )
    text = CalibrationRequest.parse(calibration, held_out)
    names = [policy_by_name(p).name for p in policy or [c.name for c in CHOICES]]
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        report = _compare(request, text, names, work, listener)
    data = report.model_dump(mode="json", by_alias=True)
    if json_file is not None:
        json_file.write_bytes(dump_json(data))
    if html is not None:
        html.write_text(policies_html(report), encoding="utf-8")
    if json_out:
        print_json(data)
    else:
        render_policies(report, Console())


def _compare(
    request: ExportRequest,
    text: CalibrationRequest,
    names: list[str],
    work: Path | None,
    listener: TerminalListener,
) -> PoliciesReport:
    listener.stage("check")
    checked = check_model(
        Checkpoint.open(request.model), masks=request.masks, progress=listener.progress
    )
    adapters = read_adapters(request, checked.checkpoint, checked.spec)
    with tempfile.TemporaryDirectory(prefix="sparse-export-", dir=work) as folder:
        return compare_policies(
            checked,
            adapters,
            text,
            names,
            registry.load_calibrator(),
            Path(folder),
            listener,
        )


def render_policies(report: PoliciesReport, console: Console) -> None:
    """The table that a person reads."""
    table = Table(title="Merge policies", box=None, pad_edge=False)
    for i, title in enumerate(HEAD):
        width = max(map(len, title.split()))  # no word of a title is cut
        table.add_column(title, justify="left" if i == 0 else "right", min_width=width)
    for row in cells(report):
        table.add_row(*row)
    console.print(table)
    for line in notes(report):
        console.print(line, markup=False)
