"""`sparse-export verify OUT`: prove an artefact again, without its source model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from exporter import registry
from exporter.commands.terminal import TerminalListener, interruptible, print_json
from exporter.store.manifest import read_manifest
from exporter.verify.run import verify_folder


def verify_command(
    folder: Annotated[Path, typer.Argument(help="A folder that sparse-export published.")],
    json_out: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Check every byte against the manifest, the structure, and the numbers of the self-test."""
    manifest = read_manifest(folder)
    target = registry.load_target(manifest.target.name, manifest.target.options)
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        listener.stage("verify")
        report = verify_folder(
            folder, target, load_target=registry.load_target, progress=listener.progress
        )
    if json_out:
        print_json(report.model_dump(mode="json"))
    else:
        Console().print(f"{folder}: {report.summary}", markup=False)
