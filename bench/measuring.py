"""Commands `run` and `compare`, and the options that `ab` shares with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from bench.comparison import CompareResult, RunResult
from bench.flow import How, Keep, compare_now, compare_results, compare_with, run_one
from bench.load import read_run
from bench.looking import serve_and_tell
from bench.outputs import Outputs
from bench.progress import Bar
from bench.render.text import print_result
from bench.served import Load
from bench.suite import Suite, read_suite
from exporter.commands.terminal import interruptible
from exporter.contract import Progress
from exporter.errors import InputRefused, UsageError

T = TypeVar("T")

SuiteFile = Annotated[Path | None, typer.Option("--suite", help="What to measure (TOML).")]
Out = Annotated[list[str] | None, typer.Option("--out", help="KIND=FILE, may be repeated.")]
OutDir = Annotated[Path | None, typer.Option("--out-dir", help="Write every kind here.")]
JsonOut = Annotated[Path | None, typer.Option("--json", help="Write the result here.")]
HtmlOut = Annotated[Path | None, typer.Option("--html", help="Write a report here.")]
Samples = Annotated[
    Path | None, typer.Option("--samples", help="Keep raw samples here, line by line.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from a run that was stopped.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Fresh processes a side.")]
MaxProcesses = Annotated[
    int | None, typer.Option(min=1, help="So many where the interval stays wide.")
]
Rounds = Annotated[int | None, typer.Option(min=1, help="Rounds of each process.")]
Title = Annotated[str, typer.Option(help="Heading of the report.")]


def run_command(
    artefact: Annotated[Path, typer.Argument(help="Artefact folder.")],
    suite: SuiteFile = None,
    processes: Processes = None,
    rounds: Rounds = None,
    title: Title = "",
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
    out: Out = None,
    out_dir: OutDir = None,
    samples: Samples = None,
    resume: Resume = False,
    serve: Annotated[str | None, typer.Option(help="URL of a server of this artefact.")] = None,
    model: Annotated[str | None, typer.Option(help="Its name there [ARTEFACT].")] = None,
    requests: Annotated[int, typer.Option(min=1, help="With --serve.")] = 64,
    concurrency: Annotated[int, typer.Option(min=1, help="Closed loop: clients.")] = 8,
    rate: Annotated[float | None, typer.Option(help="Open loop: requests/s, Poisson.")] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="With --serve.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="With --serve.")] = 64,
    prompts: Annotated[Path | None, typer.Option(help="With --serve: JSON lines.")] = None,
    slo_ttft_ms: Annotated[float | None, typer.Option(help="With --serve: for goodput.")] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="With --serve: for goodput.")] = None,
) -> None:
    """Measure one artefact: its outputs first, then every workload of the suite.

    With --serve the load is sent to a server that is up, by vLLM's own client.
    """
    if serve is not None:
        load = Load(
            serve, model or str(artefact), artefact, requests, concurrency, rate, prompt_tokens,
            new_tokens, prompts, slo_ttft_ms, slo_tpot_ms,
        )  # fmt: skip
        serve_and_tell(load, json_out)
        return
    outputs = Outputs(out or [], out_dir, {"json": json_out, "html": html_out})
    found, folder = _suite(suite)
    chosen = _chosen(found, processes, processes, rounds)
    keep = Keep(samples, resume)

    def work(tell: Progress) -> RunResult:
        plan = chosen.plan(folder, artefact)
        how = How(plan, chosen.rule(), keep, title or chosen.title, tell=tell)
        return run_one(artefact, how)

    result = with_bar(work, keep)
    print_result(result, Console())
    outputs.write(result)


def compare_command(
    base: Annotated[Path | None, typer.Argument(help="Artefact folder or result of `run`.")] = None,
    new: Annotated[Path | None, typer.Argument(help="Artefact folder or result of `run`.")] = None,
    suite: SuiteFile = None,
    confirm: Annotated[
        Path | None, typer.Option(help="Second result of NEW, where both are files.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare unlike machines.")] = False,
    allow_inconclusive: Annotated[
        bool, typer.Option("--allow-inconclusive", help="Exit 0 where noise hides the answer.")
    ] = False,
    min_effect: Annotated[float | None, typer.Option(help="Smallest change of note.")] = None,
    processes: Processes = None,
    max_processes: MaxProcesses = None,
    rounds: Rounds = None,
    title: Title = "",
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
    out: Out = None,
    out_dir: OutDir = None,
    samples: Samples = None,
    resume: Resume = False,
) -> None:
    """Is NEW slower than BASE? Two artefacts are measured side by side, now."""
    outputs = Outputs(out or [], out_dir, {"json": json_out, "html": html_out})
    found, folder = _suite(suite)
    chosen = _chosen(found, processes, max_processes, rounds)
    if min_effect is not None:
        chosen = Suite.model_validate({**chosen.model_dump(), "min_effect": min_effect})
    sides = _side(base, chosen.base, folder), _side(new, chosen.new, folder)
    keep = Keep(samples, resume)

    def work(tell: Progress) -> CompareResult:
        tokenizer = next((side for side in sides if side.is_dir()), folder)
        how = How(
            chosen.plan(folder, tokenizer), chosen.rule(), keep, title or chosen.title, force,
            tell=tell,
        )  # fmt: skip
        return _compare(sides[0], sides[1], confirm, how)

    result = with_bar(work, keep)
    print_result(result, Console())
    outputs.write(result)
    code = result.verdict.exit_code
    raise typer.Exit(0 if code == 4 and allow_inconclusive else code)


def _compare(base: Path, new: Path, confirm: Path | None, how: How) -> CompareResult:
    if base.is_dir() and new.is_dir():
        return compare_now(base, new, how)
    if base.is_dir():
        raise UsageError(
            "usage",
            "an artefact as BASE and a result as NEW",
            expected="a result as BASE and an artefact as NEW, or two of a kind",
        )
    if new.is_dir():
        return compare_with(read_run(base), new, how)
    again = read_run(confirm) if confirm is not None else None
    return compare_results(read_run(base), read_run(new), how.rule, force=how.force, again=again)


def with_bar(work: Callable[[Progress], T], keep: Keep) -> T:
    """Run under a bar; after an interruption say where the samples are."""
    with interruptible(), Bar(Console(stderr=True)) as bar:
        try:
            return work(bar.progress)
        except KeyboardInterrupt:
            where = keep.path or "sparse-bench-*.jsonl, here"
            Console(stderr=True, highlight=False).print(
                f"samples so far: {where}; --resume goes on from them", markup=False
            )
            raise


def _suite(path: Path | None) -> tuple[Suite, Path]:
    """The suite and the folder that its own paths begin at."""
    return (Suite(), Path()) if path is None else (read_suite(path), path.parent)


def _chosen(suite: Suite, processes: int | None, most: int | None, rounds: int | None) -> Suite:
    """The suite, where the command line says otherwise."""
    given = {"processes": processes, "max_processes": most, "rounds": rounds}
    return suite.model_copy(update={k: v for k, v in given.items() if v is not None})


def _side(given: Path | None, named: str | None, folder: Path) -> Path:
    path = given if given is not None else folder / named if named is not None else None
    if path is None:
        raise UsageError(
            "usage",
            "one side is missing",
            expected="BASE and NEW, or a suite that names them",
        )
    if not path.exists():
        raise InputRefused("input-missing", "no such file or folder", file=str(path))
    return path
