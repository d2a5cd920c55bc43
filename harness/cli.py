"""`sparse-tune`: prune a model folder, train on it, score it, compare. No logic here."""

from __future__ import annotations

import sys

import typer

from exporter.commands.terminal import run_app
from harness.compare.command import compare_command
from harness.evaluate.command import eval_command
from harness.methods.command import train_command
from harness.prune.command import compact_command, prune_command

app = typer.Typer(
    name="sparse-tune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make sparse models and adapters for them: prune, train, evaluate, compare.",
)
app.command("prune")(prune_command)
app.command("compact")(compact_command)
app.command("train")(train_command)
app.command("eval")(eval_command)
app.command("compare")(compare_command)


def main(argv: list[str] | None = None) -> None:
    """Run and leave with the exit codes of `sparse-export` (docs/reference/errors.md)."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(args: list[str]) -> int:
    """Run one command line and give its exit code."""
    return run_app(app, args)
