"""`sparse-export targets`: which engines there are, which run here, and making their homes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from exporter import registry
from exporter.commands.terminal import TerminalListener, interruptible, print_json

targets_app = typer.Typer(help="List the engines; `install NAME` makes an engine's environment.")


def describe_targets() -> list[dict[str, object]]:
    """One entry per target: name, available, reason, runtime {engine, version, python, window}."""
    rows: list[dict[str, object]] = []
    for name in registry.target_names():
        target = registry.load_target(name)
        status = target.runtime()
        window = target.window
        rows.append(
            {
                "name": name,
                "available": status.available,
                "reason": status.reason,
                "runtime": {
                    "engine": window.engine,
                    "version": status.version,
                    "python": status.python,
                    "window": {
                        "versions": window.versions,
                        "python": window.python,
                        "hardware": window.hardware,
                        "licence": window.licence,
                    },
                },
            }
        )
    return rows


@targets_app.callback(invoke_without_command=True)
def targets_command(
    context: typer.Context,
    json_out: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """List the targets, whether this machine can run each, and why not."""
    if context.invoked_subcommand is not None:
        return
    rows = describe_targets()
    if json_out:
        print_json(rows)
        return
    table = Table("target", "runs here", "engine", "made for", "note")
    for row in rows:
        target = registry.load_target(str(row["name"]))
        status, window = target.runtime(), target.window
        made_for = f"{window.engine} {window.versions}, Python {window.python}, {window.hardware}"
        note = status.reason + (f". {window.licence}" if window.licence else "")
        table.add_row(
            str(row["name"]),
            "yes" if status.available else "no",
            status.version or "-",
            made_for,
            note,
        )
    Console().print(table)


@targets_app.command("install")
def install_command(
    name: Annotated[str, typer.Argument(help="Target whose engine lives in its own environment.")],
) -> None:
    """Make the engine's environment from its lock, whole or not at all."""
    runtime = registry.load_runtime(name)
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        listener.stage(f"install {name}")
        status = runtime.install(listener.progress)
    Console().print(f"{name} {status.version}: {status.reason}", markup=False)
