"""sparse-export beside optimum-onnx 0.1.0 on one model: wall time and peak RSS, interleaved."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

from pydantic import Field
from rich.table import Table

from bench.child import ChildRun, run_child
from bench.design import paired_order
from bench.fingerprint import fingerprint
from bench.memory import lower_argv
from bench.optimum.runtime import RUNTIME
from bench.results import SCHEMA_VERSION, Fingerprint, Frozen
from exporter.contract import Progress
from exporter.errors import EngineUnfit, UsageError
from exporter.store.sink import output_failed

Tool = Literal["sparse-export", "optimum-onnx"]
TIMES_FASTER = 4.0
SHARE_OF_PEAK = 0.25
# The words of optimum/exporters/onnx/convert.py where its own tolerance is missed and it
# ends with 0 all the same.
_WARNED = "succeeded with the warning"


class PeerRun(Frozen):
    """One export by one tool."""

    tool: Tool
    verified: bool
    seconds: float
    peak_rss_bytes: int = Field(description="of the tool's largest process")
    output_bytes: int = Field(description="0 where the tool throws its output away")
    tolerance_warning: bool = Field(description="ended with 0 in spite of a missed tolerance")


class PeerRatios(Frozen):
    """Medians of optimum-onnx over medians of sparse-export: above 1 sparse-export needs less."""

    verified: bool
    time: float
    peak_rss: float


class PeerResult(Frozen):
    """Everything of one `sparse-bench optimum`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["peers"] = "peers"
    model: str
    target: str
    peer: str
    runs: list[PeerRun]
    ratios: list[PeerRatios]
    wanted_time: float = TIMES_FASTER
    wanted_peak_rss: float = 1 / SHARE_OF_PEAK
    reached: bool = Field(description="both wishes, verification left out on both sides")
    fingerprint: Fingerprint


Runner = Callable[[Sequence[str], Mapping[str, str] | None], ChildRun]


def beside_optimum(
    model: Path,
    target: str = "onnxruntime",
    rounds: int = 3,
    scratch: Path | None = None,
    progress: Progress | None = None,
    *,
    runner: Runner | None = None,
    peer_python: Path | None = None,
) -> PeerResult:
    """Export `model` with both tools, `rounds` times each, with and without verification.

    The order within a round is drawn at random and balanced. Outputs are deleted after each run.

    Raises:
        UsageError: `usage`.
        InputRefused: `output-failed` where `scratch` cannot be written to.
        EngineUnfit: `engine-missing` where the peer's environment is not there (`install`),
            `engine-crashed` where an export fails.
    """
    if rounds < 1:
        raise UsageError("usage", f"{rounds} rounds")
    python = peer_python or RUNTIME.interpreter()
    machine = fingerprint()
    run = runner or _run
    runs: list[PeerRun] = []
    steps = [(v, o) for v in (False, True) for o in paired_order(rounds, seed=int(v))]
    for i, (verified, order) in enumerate(steps):
        for side in order:
            tool: Tool = "sparse-export" if side == "A" else "optimum-onnx"
            if progress is not None:
                progress(f"{tool}{', verified' if verified else ''}", i, len(steps))
            runs.append(_one(tool, verified, model, target, python, scratch, run))
    ratios = [_ratios(runs, verified) for verified in (False, True)]
    plain = ratios[0]
    return PeerResult(
        model=model.absolute().name,
        target=target,
        peer=f"{RUNTIME.engine} {RUNTIME.version}",
        runs=runs,
        ratios=ratios,
        reached=plain.time >= TIMES_FASTER and plain.peak_rss >= 1 / SHARE_OF_PEAK,
        fingerprint=machine,
    )


def install(progress: Progress | None = None) -> None:
    """Make the peer's environment outside the project; a second call is free.

    Raises:
        EngineUnfit: `install-failed`, `engine-unfit`.
    """
    RUNTIME.install(progress)


def peer_table(result: PeerResult) -> Table:
    """A row for each tool with and without verification, and the ratios."""
    table = Table(title=f"{result.model}: sparse-export beside {result.peer}")
    for head in ("", "seconds", "peak RSS, MB"):
        table.add_column(head, justify="right" if head else "left")
    for ratio in result.ratios:
        suffix = "with verification" if ratio.verified else "no verification"
        for tool in ("sparse-export", "optimum-onnx"):
            mine = _of(result.runs, tool, ratio.verified)
            table.add_row(
                f"{tool}, {suffix}",
                f"{statistics.median(r.seconds for r in mine):.2f}",
                f"{statistics.median(r.peak_rss_bytes for r in mine) / 1e6:,.0f}",
            )
        table.add_row("  optimum / ours", f"{ratio.time:.2f}x", f"{ratio.peak_rss:.2f}x")
    return table


def ours_argv(model: Path, target: str, out: Path, verified: bool) -> list[str]:
    """sparse-export as a command."""
    argv = lower_argv(model, target, out)
    return [a for a in argv if a != "--lower-only"] if verified else argv


def optimum_argv(python: Path, model: Path, out: Path, verified: bool) -> list[str]:
    """optimum-cli as a command; without its validation, the function under it."""
    if not verified:
        program = Path(__file__).parent / "optimum" / "export.py"
        return [str(python), "-I", str(program), str(model), str(out)]
    # By its module: the console script names the folder in which the environment was made.
    cli = ["-I", "-m", "optimum.commands.optimum_cli", "export", "onnx"]
    task = ["--task", "text-generation-with-past"]
    return [str(python), *cli, "--model", str(model), *task, str(out)]


def _one(
    tool: Tool,
    verified: bool,
    model: Path,
    target: str,
    python: Path,
    scratch: Path | None,
    run: Runner,
) -> PeerRun:
    place = scratch or model.absolute().parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="peer-", dir=place))
    except OSError as error:
        raise output_failed(error, place) from error
    out = work / "out"
    try:
        if tool == "sparse-export":
            done = run(ours_argv(model, target, out, verified), None)
        else:
            done = run(optimum_argv(python, model, out, verified), RUNTIME.environment())
        if done.failed:
            raise EngineUnfit("engine-crashed", f"{tool}: status {done.status}\n{done.log}")
        size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return PeerRun(
        tool=tool,
        verified=verified,
        seconds=done.seconds,
        peak_rss_bytes=done.peak_rss_bytes,
        output_bytes=size,
        tolerance_warning=_WARNED in done.log,
    )


def _ratios(runs: Sequence[PeerRun], verified: bool) -> PeerRatios:
    ours, theirs = (_of(runs, t, verified) for t in ("sparse-export", "optimum-onnx"))
    time = _median(theirs, "seconds") / _median(ours, "seconds")
    peak = _median(theirs, "peak_rss_bytes") / _median(ours, "peak_rss_bytes")
    return PeerRatios(verified=verified, time=time, peak_rss=peak)


def _of(runs: Sequence[PeerRun], tool: str, verified: bool) -> list[PeerRun]:
    return [r for r in runs if r.tool == tool and r.verified == verified]


def _median(runs: Sequence[PeerRun], field: str) -> float:
    return statistics.median(cast(float, getattr(r, field)) for r in runs)


def _run(argv: Sequence[str], env: Mapping[str, str] | None) -> ChildRun:
    return run_child(argv, env=env)
