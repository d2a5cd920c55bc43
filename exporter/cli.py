"""`sparse-export`: parse, call, print. The first form needs no verb."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from exporter import __version__
from exporter.commands.convert import convert_command
from exporter.commands.export import export_command
from exporter.commands.inspect import inspect_command
from exporter.commands.policies import policies_command
from exporter.commands.targets import targets_app
from exporter.commands.terminal import run_app
from exporter.commands.verify import verify_command


class ExportByDefault(TyperGroup):
    """`sparse-export MODEL ...` means `sparse-export export MODEL ...`.

    A model folder that bears a command's name is given as `./inspect`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the verb in where the user left it out."""
        own = {"--help", "--version", "--install-completion", "--show-completion"}
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["export", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="sparse-export",
    cls=ExportByDefault,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make a sparse LLM deployable: `sparse-export MODEL --target NAME`.",
)
app.command("export")(export_command)
app.command("inspect")(inspect_command)
app.command("convert")(convert_command)
app.command("policies")(policies_command)
app.command("verify")(verify_command)
app.add_typer(targets_app, name="targets")


def _print_version(value: bool) -> None:
    if value:
        print(f"sparse-export {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Make a sparse LLM deployable: `sparse-export MODEL --target NAME`."""


def main(argv: list[str] | None = None) -> None:
    """Run and leave with the exit codes of docs/reference/errors.md."""
    args = sys.argv[1:] if argv is None else argv
    sys.exit(run(args))


def run(args: list[str]) -> int:
    """Run one command line and give its exit code."""
    return run_app(app, args, as_json="--json" in args)


if __name__ == "__main__":
    main()
