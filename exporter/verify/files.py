"""The folder as a whole: which files must be there, which may, and how large they are."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from exporter.store.manifest import META

__all__ = [
    "META",
    "META_FILES",
    "Fingerprint",
    "changed_files",
    "check_file_set",
    "fingerprints",
    "list_files",
]

META_FILES = ("manifest.json", "report.json", "report.html", "selftest.safetensors")


@dataclass(frozen=True)
class Fingerprint:
    """What the system says about a file: changes when anything writes to it."""

    size: int
    mtime_ns: int
    inode: int


def list_files(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Plain files below `folder` as relative name -> bytes, and what is there besides them.

    Links are not followed: an artefact holds files only.
    """
    files: dict[str, int] = {}
    odd: list[str] = []
    for root, folders, names in os.walk(folder):
        for name in sorted(names) + [d for d in folders if os.path.islink(os.path.join(root, d))]:
            path = Path(root, name)
            found = path.lstat()
            relative = path.relative_to(folder).as_posix()
            if stat.S_ISREG(found.st_mode):
                files[relative] = found.st_size
            else:
                odd.append(relative)
    return dict(sorted(files.items())), sorted(odd)


def check_file_set(
    files: Mapping[str, int], odd: Iterable[str], required: Iterable[str], allowed: Iterable[str]
) -> list[str]:
    """Failures: files that are missing, stray, empty or not plain files."""
    needed = set(required)
    known = needed | set(allowed) | {f"{META}/{name}" for name in META_FILES}
    out = [f"{name} is missing" for name in sorted(needed - files.keys())]
    out += [f"{name} does not belong here" for name in sorted(files.keys() - known)]
    out += [f"{name} is empty" for name in sorted(needed & files.keys()) if not files[name]]
    return out + [f"{name} is not a plain file" for name in odd]


def fingerprints(folder: Path) -> dict[str, Fingerprint]:
    """One per file; see `changed_files`."""
    out: dict[str, Fingerprint] = {}
    for name in list_files(folder)[0]:
        found = (folder / name).lstat()
        out[name] = Fingerprint(found.st_size, found.st_mtime_ns, found.st_ino)
    return out


def changed_files(folder: Path, before: Mapping[str, Fingerprint]) -> list[str]:
    """Failures: files that the engine wrote to, added or removed while it ran.

    What was verified must be what is shipped, and some engines rewrite the model they open.
    """
    after = fingerprints(folder)
    names = sorted(before.keys() | after.keys())
    return [
        f"{name} was changed while the engine ran"
        for name in names
        if before.get(name) != after.get(name)
    ]
