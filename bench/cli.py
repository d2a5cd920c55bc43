"""`sparse-bench`: parse, call, print; exit codes in docs/reference/bench.md."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.commands import memory_command, merge_command, optimum_command
from bench.comparison import schemas
from bench.flow import Keep
from bench.looking import history_command, overhead_command
from bench.measuring import (
    HtmlOut,
    JsonOut,
    Out,
    OutDir,
    Resume,
    Samples,
    SuiteFile,
    compare_command,
    run_command,
    with_bar,
)
from bench.outputs import Outputs
from bench.progress import Bar
from bench.results import AbResult, ab_schema
from bench.run import AbOptions, ab
from bench.suite import read_suite, suite_schema
from bench.verdict import exit_of
from bench.whatif.command import what_if_command
from bench.whatif.estimate import WhatIf
from bench.workloads import Workload
from exporter.commands.terminal import interruptible, run_app
from exporter.errors import UsageError

app = typer.Typer(
    name="sparse-bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Is the sparse artefact faster than its dense twin, on this machine?",
)
app.command("memory")(memory_command)
app.command("optimum")(optimum_command)
app.command("merge")(merge_command)
app.command("run")(run_command)
app.command("compare")(compare_command)
app.command("history")(history_command)
app.command("overhead")(overhead_command)
app.command("what-if")(what_if_command)


@app.command("ab")
def ab_command(
    dense: Annotated[Path, typer.Argument(help="Artefact folder of the dense twin.")],
    sparse: Annotated[Path, typer.Argument(help="Artefact folder of the sparse model.")],
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved, over all processes.")] = 16,
    processes: Annotated[int, typer.Option(min=1, help="Pairs of fresh processes.")] = 8,
    max_processes: Annotated[int, typer.Option(min=1, help="Where 8 leave it too wide.")] = 24,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=2, help="Greedy tokens after it.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="Engine threads.")] = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="Exit 1 where decode is confirmed below this.")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds that are thrown away.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of prompt, order and bootstrap.")] = 0,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "",
    suite: SuiteFile = None,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
    out: Out = None,
    out_dir: OutDir = None,
    samples: Samples = None,
    resume: Resume = False,
) -> None:
    """Compare two artefacts of one target: outputs first, then speed in interleaved pairs."""
    options = AbOptions(
        rounds=rounds,
        warmup_rounds=warmup,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        threads=threads,
        min_speedup=min_speedup,
        seed=seed,
        title=title,
        processes=processes,
        max_processes=max_processes,
    )
    outputs = Outputs(out or [], out_dir, {"json": json_out, "html": html_out})
    keep = Keep(samples, resume)
    more: tuple[Workload, ...] = ()
    if suite is not None:
        more = read_suite(suite).plan(suite.parent, sparse).workloads
    options = replace(options, more=more)
    result = with_bar(lambda tell: ab(dense, sparse, options, tell, keep=keep), keep)
    write_outputs(result, outputs)
    raise typer.Exit(result.verdict.exit_code)


@app.command("schema")
def schema_command(
    kind: Annotated[str, typer.Argument(help="ab, run, compare, what-if or suite.")] = "ab",
) -> None:
    """Print the JSON schema of a result, or of a suite file."""
    known = {"ab": ab_schema(), "suite": suite_schema(), **schemas()}
    known["what-if"] = WhatIf.model_json_schema(mode="serialization")
    if kind not in known:
        raise UsageError("usage", f"{kind!r}", expected=f"one of {', '.join(known)}")
    print(json.dumps(known[kind], indent=2, sort_keys=True))


@app.command("make-mock")
def make_mock_command(
    out: Annotated[Path, typer.Option("-o", "--out", help="A folder that is not there yet.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="NAME=VALUE of mock.json, as in tpot_ms=4.")
    ] = None,
) -> None:
    """Write an artefact whose engine has a set speed and noise, to try a benchmark on."""
    from backends.mock.make import make_mock, parse_settings

    make_mock(out, parse_settings(settings or []))
    print(out)


@app.command("make-random")
def make_random_command(
    shape: Annotated[str, typer.Argument(help="tinyllama-1.1b, or 1gb, 2gb, 4gb, 8gb.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A folder that is not there yet.")],
    sparsity: Annotated[float, typer.Option(help="Fraction of zeros in the linears.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write a Llama-shaped model of random bfloat16 weights, for measurements only."""
    from bench.random_model import make_random
    from bench.shapes import find_shape

    with interruptible(), Bar(Console(stderr=True)) as bar:
        nbytes = make_random(find_shape(shape), out, sparsity, seed, bar.progress)
    print(f"{out}: {nbytes / 1e9:.2f} GB")


def write_outputs(result: AbResult, outputs: Outputs) -> None:
    """Print the tables, then write what was asked for.

    Raises:
        InputRefused: `output-failed`.
    """
    from bench.render.terminal import print_ab
    from bench.render.text import print_result

    console = Console()
    print_ab(result, console)
    if result.comparison is not None and len(result.comparison.base_workloads) > 1:
        print_result(result.comparison, console)
    outputs.write(result)


def main(argv: list[str] | None = None) -> None:
    """Run and leave with an exit code of `bench.verdict.Exit`."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(args: list[str]) -> int:
    """Run one command line and give its exit code."""
    return run_app(app, args, exit_of=exit_of)
