"""Perplexity of SmolLM2 at 70 % zeros with quantised values; ends in build/quantised.

Makes what it needs by the commands a user would type: the model, pruned by Wanda, and a LoRA that
heals it, merged by `refit`: the perplexity of a model that pruning has ruined says nothing of its
values. `--text` and `--held-out` give the texts that inputs are observed and perplexity is taken
on; by default the text that CPython carries, its end held out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from exporter import registry
from exporter.calibration.request import CalibrationRequest
from exporter.calibration.values import Compared, compare_values
from exporter.check.model import check_model
from exporter.commands.terminal import TerminalListener, interruptible
from exporter.contract import QuantiseRequest
from exporter.inputs import read_adapters
from exporter.report.values import HEAD, ValuesReport, cells, notes, values_html
from exporter.request import AdapterRequest, ExportRequest
from exporter.store.checkpoint import Checkpoint
from exporter.store.jsonio import dump_json
from harness.text import BUILTIN
from scripts.smollm2_70 import builtin_text, masks_of, pruned, tuned
from scripts.steps import ROOT, main_of

OUT = ROOT / "build" / "quantised"
AMOUNTS = "tokens=16384,held_out=16384,length=512"
REQUESTS = (
    QuantiseRequest("int8"),
    QuantiseRequest("fp8"),
    QuantiseRequest("int4", 128),
    QuantiseRequest("int4", 128, "gptq"),
)


def main(args: list[str]) -> int:
    """0 where int4 by error feedback came out better than by rounding, else 1."""
    options = _parser().parse_args(args)
    OUT.mkdir(parents=True, exist_ok=True)
    sparse = options.sparse or pruned(OUT)
    lora = options.adapter or tuned(OUT, sparse, options.train, options.steps)
    text = f"{options.text or builtin_text(OUT)}:{options.amounts}"
    masks = masks_of(sparse) if masks_of(sparse).exists() else None
    request = ExportRequest(sparse, "none", OUT, {}, (AdapterRequest(lora),), masks)
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        listener.stage("check")
        checked = check_model(Checkpoint.open(sparse), masks=masks)
        adapters = read_adapters(request, checked.checkpoint, checked.spec)
        measured = CalibrationRequest.parse(text, options.held_out)
        compared = Compared(checked, measured, adapters, "refit")
        with tempfile.TemporaryDirectory(dir=OUT) as work:
            report = compare_values(
                compared, REQUESTS, registry.load_calibrator(), Path(work), listener
            )
    (OUT / "values.json").write_bytes(dump_json(report.model_dump(mode="json", by_alias=True)))
    (OUT / "values.html").write_text(values_html(report), encoding="utf-8")
    show(report, Console())
    print(f"report: {(OUT / 'values.html').relative_to(ROOT)}")
    return 0 if feedback_wins(report) else 1


def feedback_wins(report: ValuesReport) -> bool:
    """Whether int4 loses less perplexity with error feedback than without."""
    int4 = {row.method: row.perplexity for row in report.rows if row.kind == "int4"}
    return int4["gptq"] < int4["round"]


def show(report: ValuesReport, console: Console) -> None:
    """The table that a person reads."""
    table = Table(title="Quantised values", box=None, pad_edge=False)
    for i, title in enumerate(HEAD):
        table.add_column(title, justify="left" if i == 0 else "right", no_wrap=True)
    for row in cells(report):
        table.add_row(*row)
    console.print(table)
    for line in notes(report):
        console.print(line, markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="UTF-8 text to observe inputs on")
    parser.add_argument("--held-out", type=Path, help="UTF-8 text for the perplexity")
    parser.add_argument("--train", default=BUILTIN, help="text to train the LoRA on")
    parser.add_argument("--steps", type=int, default=100, help="of that training")
    parser.add_argument("--amounts", default=AMOUNTS)
    parser.add_argument("--sparse", type=Path, help="a pruned model")
    parser.add_argument("--adapter", type=Path, help="a LoRA on it")
    return parser


if __name__ == "__main__":
    sys.exit(main_of(lambda: main(sys.argv[1:])))
