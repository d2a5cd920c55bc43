"""The whole way on a real model, by the commands a user would type; ends in report.html.

Each stage prints its command line and its time. Where DeepSparse cannot run, the demo says so
and goes on with ONNX Runtime alone. Everything lands in build/demo, the model in the user's cache.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bench.results import AbResult
from exporter.errors import SparseExportError
from exporter.report.export import ExportReport
from exporter.report.inspect import InspectReport
from exporter.report.inspect_table import render_table
from harness.models.smollm2 import fetch_smollm2
from scripts.demo_report import ExportRow, Refusal, print_summary, write_page

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("build", "demo")
REFUSED = 2  # exit code of sparse-export for a merge that needs a decision


@dataclass
class Demo:
    """Runs commands from the repo's root, prints each, and remembers how long it took."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)

    def run(
        self, stage: str, *command: str | Path, expect: int = 0, capture: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """One console script of this environment; the demo ends where its exit code differs."""
        words = [str(word) for word in command]
        line = shlex.join(words)
        self.commands.append(line)
        self.console.print(f"\n[bold]$ {escape(line)}[/bold]", soft_wrap=True, highlight=False)
        start = time.perf_counter()
        done = subprocess.run(
            [str(Path(sys.executable).parent / words[0]), *words[1:]],
            cwd=ROOT,
            stdout=subprocess.PIPE if capture else None,
            stderr=subprocess.STDOUT if capture and expect else None,
            text=True,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        self.note(stage, time.perf_counter() - start)
        if done.returncode != expect:
            if capture:
                self.console.print(done.stdout, markup=False)
            self.console.print(f"exit code {done.returncode}, expected {expect}: {line}")
            sys.exit(done.returncode or 1)
        return done

    def note(self, stage: str, seconds: float) -> None:
        """Print and keep the time of a stage."""
        self.seconds[stage] = seconds
        self.console.print(f"  ({stage}: {seconds:.1f} s)", markup=False, highlight=False)


def main(console: Console) -> int:
    """0 where every stage did what it should."""
    os.chdir(ROOT)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    demo = Demo(console)
    base = make_model(demo)
    sparse, masks = OUT / "smollm2-70", OUT / "smollm2-70" / "masks" / "masks.safetensors"
    demo.run("prune", "sparse-tune", "prune", base, "--method", "wanda", "--sparsity", "0.7",
             "-o", sparse)  # fmt: skip
    inspected = inspect(demo, sparse, masks)
    train = ("sparse-tune", "train", sparse, "--batch", "2", "--masks", masks)
    losa, lora = OUT / "adapter-losa", OUT / "adapter-lora"
    demo.run("train LoSA", *train, "--method", "losa", "--steps", "40", "-o", losa)
    demo.run("train LoRA", *train, "--method", "lora", "--steps", "24", "-o", lora)
    refusal = refuse_lora(demo, sparse, masks, lora)
    exports: list[ExportRow] = []
    results: list[AbResult] = []
    engines, why_not = usable_engines(demo)
    for engine in engines:
        exports += export_pair(demo, engine, base, sparse, masks, losa)
        results.append(compare(demo, engine))
    write_page(OUT / "report.html", inspected, exports, refusal, results, why_not,
               demo.commands, demo.seconds)  # fmt: skip
    print_summary(demo.console, exports, results, why_not, demo.seconds)
    demo.console.print(f"\nreport: {OUT / 'report.html'}", markup=False)
    return 0


def make_model(demo: Demo) -> Path:
    """SmolLM2 in the user's cache, seen from build/demo."""
    demo.commands.append("python scripts/fetch_smollm2.py")
    demo.console.print("\n[bold]$ python scripts/fetch_smollm2.py[/bold]")
    start = time.perf_counter()
    try:
        base = fetch_smollm2(say=lambda text: demo.console.print(f"  {text}", markup=False))
    except SparseExportError as error:
        demo.console.print(f"error {error}", markup=False)
        sys.exit(error.exit_code)
    demo.note("fetch", time.perf_counter() - start)
    return base


def inspect(demo: Demo, sparse: Path, masks: Path) -> InspectReport:
    """The sparsity table in the terminal, the same as data for the page."""
    done = demo.run("inspect", "sparse-export", "inspect", sparse, "--masks", masks, "--json",
                    capture=True)  # fmt: skip
    (OUT / "inspect.json").write_text(done.stdout)
    report = InspectReport.model_validate_json(done.stdout)
    render_table(report, demo.console)
    return report


def refuse_lora(demo: Demo, sparse: Path, masks: Path, lora: Path) -> Refusal:
    """Merging a plain LoRA must stop with its table, exit code 2 and no output folder."""
    out = OUT / "refused"
    done = demo.run("refusal", "sparse-export", sparse, "--target", "onnxruntime",
                    "--adapter", lora, "--masks", masks, "-o", out,
                    expect=REFUSED, capture=True)  # fmt: skip
    if out.exists() or "merge-policy-needed" not in done.stdout:
        demo.console.print(done.stdout, markup=False)
        demo.console.print(f"a refused merge must leave no {out} and name merge-policy-needed")
        sys.exit(1)
    (OUT / "refusal.txt").write_text(done.stdout)
    refusal = Refusal.of(done.stdout)
    for line in refusal.short():
        demo.console.print(line, markup=False, highlight=False, soft_wrap=True)
    demo.console.print(f"  refused with exit code {REFUSED}; {out} does not exist", markup=False)
    return refusal


def usable_engines(demo: Demo) -> tuple[list[str], str]:
    """Which of the two engines run here, and why DeepSparse does not ("" where it does)."""
    done = demo.run("targets", "sparse-export", "targets", "--json", capture=True)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    deepsparse = rows["deepsparse"]
    if deepsparse["available"]:
        version = deepsparse["runtime"]["version"]
        demo.console.print(f"  DeepSparse {version} runs here", markup=False)
        return ["deepsparse", "onnxruntime"], ""
    reason = (
        f"DeepSparse cannot run here, so its half of the demo is left out: {deepsparse['reason']}"
    )
    demo.console.print(f"  {reason}", markup=False)
    return ["onnxruntime"], reason


def export_pair(
    demo: Demo, engine: str, base: Path, sparse: Path, masks: Path, losa: Path
) -> list[ExportRow]:
    """The sparse model with its adapter, and the unpruned model as its dense twin."""
    rows: list[ExportRow] = []
    options = ("--masks", masks, "--adapter", losa)
    for side, model, more in (("sparse", sparse, options), ("dense", base, ())):
        out = OUT / f"{engine}-{side}"
        stage = f"export {engine} {side}"
        demo.run(stage, "sparse-export", model, "--target", engine, *more, "-o", out)
        report = json.loads((out / ".sparse-export" / "report.json").read_text())
        rows.append(ExportRow(out.name, ExportReport.model_validate(report)))
    return rows


def compare(demo: Demo, engine: str) -> AbResult:
    """Dense against sparse on one engine, in interleaved rounds."""
    result = OUT / f"ab-{engine}.json"
    demo.run(f"bench {engine}", "sparse-bench", "ab", OUT / f"{engine}-dense",
             OUT / f"{engine}-sparse", "--title", f"SmolLM2-135M, 70 % zeros, {engine}",
             "--rounds", "8", "--processes", "1", "--warmup", "1",
             "--new-tokens", "48", "--json", result,
             "--html", result.with_suffix(".html"))  # fmt: skip
    return AbResult.model_validate_json(result.read_text())


if __name__ == "__main__":
    sys.exit(main(Console()))
