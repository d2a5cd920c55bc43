"""An artefact folder as the benchmark sees it: what made it, how large, who can run it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from exporter.contract import Target
from exporter.errors import InputRefused, UsageError
from exporter.registry import load_target
from exporter.store.manifest import MANIFEST, META, read_manifest
from exporter.verify.files import list_files


@dataclass(frozen=True)
class Artefact:
    """A published folder and the target that can open it."""

    folder: Path
    target: Target
    options: dict[str, str]
    manifest_sha256: str
    nbytes: int  # of the engine's layout: everything beside .sparse-export

    @property
    def label(self) -> str:
        """The folder's own name; paths stay out of results."""
        return self.folder.absolute().name

    @property
    def target_text(self) -> str:
        """The target and its options as --target takes them."""
        return ",".join([self.target.name, *(f"{k}={v}" for k, v in self.options.items())])


def open_artefact(folder: Path) -> Artefact:
    """Read the manifest and find the target.

    Raises:
        InputRefused: `input-missing`, and what the manifest's reader raises.
        UsageError: `unknown-target`, `target-option`.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputRefused(
            "input-missing",
            "no manifest here",
            expected=f"a folder that sparse-export published, with {MANIFEST}",
            file=folder.name,
        )
    manifest = read_manifest(folder)
    options = dict(manifest.target.options)
    return Artefact(
        folder=folder,
        target=load_target(manifest.target.name, options),
        options=options,
        manifest_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        nbytes=_layout_bytes(folder),
    )


def require_pair(dense: Artefact, sparse: Artefact) -> None:
    """Refuse two artefacts of different targets: their ratio would compare engines.

    Raises:
        UsageError: `usage`.
    """
    if dense.target.name != sparse.target.name:
        raise UsageError(
            "usage",
            f"{dense.label} is made for {dense.target.name}, "
            f"{sparse.label} for {sparse.target.name}",
            expected="two artefacts of one target",
        )


def _layout_bytes(folder: Path) -> int:
    files, _ = list_files(folder)
    return sum(nbytes for name, nbytes in files.items() if not name.startswith(f"{META}/"))
