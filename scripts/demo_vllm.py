"""SmolLM2 pruned 2:4 and 70 %, packed, served by `vllm serve`, asked by the OpenAI client.

Beside each packed folder the same weights stored dense (`--target hf`) are served in the same way,
and the greedy answers are compared. Everything lands in build/demo-vllm.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from backends.hf.session import open_session
from backends.vllm.plugin.settings import EXECUTE
from backends.vllm.runtime import RUNTIME
from exporter.errors import EngineUnfit, SparseExportError
from exporter.report.export import ExportReport
from scripts.demo import ROOT, Demo, make_model
from scripts.demo_vllm_report import Run, Side, print_summary, write_report
from scripts.vllm_compare import Answer, Comparison, compare
from scripts.vllm_server import served

OUT = Path("build", "demo-vllm")
NEW_TOKENS = 48
PROMPTS = (
    "The capital of France is",
    "Water boils at 100 degrees Celsius because",
    "Once upon a time, in a village by the sea, there lived",
    "def fibonacci(n):\n    ",
)
ASK = Path(__file__).with_name("vllm_ask.py")
_ASK_SECONDS = 1800


@dataclass(frozen=True)
class Pattern:
    """How the model is pruned, and the target that packs it."""

    name: str
    sparsity: str
    target: str


PATTERNS = (Pattern("24", "2:4", "vllm-24"), Pattern("70", "0.7", "vllm-sparse"))


def main(console: Console) -> int:
    """0 where all answers are equal, or differ only where bfloat16 cannot tell two tokens apart."""
    os.chdir(ROOT)
    try:
        python = RUNTIME.interpreter()
    except EngineUnfit as error:
        console.print(f"error {error}", markup=False)
        return error.exit_code
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    demo = Demo(console)
    base = make_model(demo)
    try:
        runs = [run_pattern(demo, python, base, pattern) for pattern in PATTERNS]
    except SparseExportError as error:
        console.print(f"error {error}", markup=False)
        return error.exit_code
    write_report(OUT, runs, demo.commands, demo.seconds)
    print_summary(console, runs, demo.seconds)
    console.print(f"\nreport: {OUT / 'report.html'}", markup=False)
    return 0 if all(run.comparison.passed for run in runs) else 1


def run_pattern(demo: Demo, python: Path, base: Path, pattern: Pattern) -> Run:
    """Prune, export both ways, serve both, compare."""
    pruned = OUT / f"smollm2-{pattern.name}"
    masks = pruned / "masks" / "masks.safetensors"
    demo.run(f"prune {pattern.sparsity}", "sparse-tune", "prune", base, "--sparsity",
             pattern.sparsity, "-o", pruned)  # fmt: skip
    sides: dict[str, Side] = {}
    answers: dict[str, list[Answer]] = {}
    for side, target in (("packed", pattern.target), ("dense", "hf")):
        folder = OUT / f"{pruned.name}-{side}"
        demo.run(f"export {folder.name}", "sparse-export", pruned, "--target", target,
                 "--masks", masks, "-o", folder)  # fmt: skip
        seconds, answers[side] = serve_and_ask(demo, python, folder)
        sides[side] = Side.of(folder, _report(folder), seconds, answers[side])
    compared = judge(compare(answers["dense"], answers["packed"]), answers["dense"],
                     OUT / f"{pruned.name}-dense")  # fmt: skip
    return Run(pattern=pattern.sparsity, target=pattern.target, packed=sides["packed"],
               dense=sides["dense"], comparison=compared)  # fmt: skip


class Progress:
    """Says how a server's start goes: every second on a terminal, else twice a minute."""

    def __init__(self, console: Console, status: Status) -> None:
        self._console, self._status, self._said = console, status, 0.0

    def __call__(self, seconds: float, last: str) -> None:
        """Told each second: seconds since the start, the log's last line."""
        text = escape(f"{seconds:.0f} s, compiling takes minutes; {last[-100:]}")
        self._status.update(text)
        if not self._console.is_terminal and seconds - self._said > 30:
            self._said = seconds
            self._console.print(f"  {text}", highlight=False)


def serve_and_ask(demo: Demo, python: Path, folder: Path) -> tuple[float, list[Answer]]:
    """Seconds until the server was healthy, and its answers."""
    binary, log = python.with_name("vllm"), OUT / f"{folder.name}.log"
    line = f"{binary.name} serve {folder} --port N"
    demo.commands.append(line)
    demo.console.print(f"\n[bold]$ {line}[/bold]", soft_wrap=True, highlight=False)
    # Linears as vLLM's own dense ones: other sums would hide what the folder holds.
    environment = {**RUNTIME.environment(), EXECUTE: "dense"}
    with demo.console.status("starting") as status:
        tell = Progress(demo.console, status)
        with served(binary, folder, log, env=environment, tell=tell) as server:
            demo.note(f"start {folder.name}", server.seconds)
            status.update("asking")
            answers = ask(python, server.url, server.model, PROMPTS, environment)
    demo.note(f"answers {folder.name}", sum(answer.seconds for answer in answers))
    return server.seconds, answers


def ask(
    python: Path, url: str, model: str, prompts: Sequence[str], environment: dict[str, str]
) -> list[Answer]:
    """Run the OpenAI client in the environment that has it.

    Raises:
        EngineUnfit: `engine-refused` where it ends with an error, `engine-timeout`.
    """
    try:
        done = subprocess.run(
            [str(python), "-I", str(ASK), url, model, str(NEW_TOKENS)],
            input=json.dumps(list(prompts)),
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineUnfit("engine-timeout", f"no answers in {_ASK_SECONDS} s") from None
    if done.returncode:
        raise EngineUnfit("engine-refused", f"the client failed: {done.stderr.strip()[-2000:]}")
    return [Answer.model_validate(raw) for raw in json.loads(done.stdout.splitlines()[-1])]


def judge(found: Comparison, dense: Sequence[Answer], folder: Path) -> Comparison:
    """With the size of the logits at each difference, by transformers in float32."""
    if not found.differences:
        return found
    by_prompt = {answer.prompt: answer for answer in dense}
    session = open_session(folder)
    try:
        judged = [
            difference.judged(
                float(session.prefill(_before(by_prompt[difference.prompt], difference.place),
                                      logits="last").max())
            )
            for difference in found.differences
        ]  # fmt: skip
    finally:
        session.close()
    return found.model_copy(update={"differences": judged})


def _before(answer: Answer, place: int) -> list[int]:
    return [*answer.prompt_tokens, *answer.tokens[:place]]


def _report(folder: Path) -> ExportReport:
    raw = json.loads((folder / ".sparse-export" / "report.json").read_text())
    return ExportReport.model_validate(raw)


if __name__ == "__main__":
    sys.exit(main(Console()))
