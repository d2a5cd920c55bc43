"""The manifest of an artefact: what went in, what came out, made by which versions.

No time, no absolute path, no name of a user, host or folder: equal inputs give equal bytes.
Page of the format: docs/reference/store.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from exporter.errors import InputRefused, VerificationFailed
from exporter.store.checkpoint import Checkpoint
from exporter.store.digest import FileDigest, Progress, digest_file
from exporter.store.header import read_stamped_header
from exporter.store.jsonio import read_json, write_json
from exporter.store.plainfile import stamp_file
from exporter.store.sink import FileRecord

META = ".sparse-export"  # engines glob the top level; ours stay out of their sight
MANIFEST = f"{META}/manifest.json"
# They shape the bytes of every artefact; a target adds its own.
LIBRARIES = ("ml_dtypes", "numpy")


def _plain_parts(name: str) -> str:
    """A relative name of plain parts; "a/b" is one, "../b", "/b" and "a//b" are not."""
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or any(p in ("", ".", "..") for p in parts):
        raise ValueError("not a plain relative name")
    return name


Name = Annotated[str, AfterValidator(_plain_parts)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Role = Literal["model", "adapter", "masks", "calibration"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class FileEntry(_Entry):
    """One file."""

    name: Name  # relative to the folder it was found in
    nbytes: Count
    sha256: Sha256


class InputEntry(_Entry):
    """One thing the artefact was made from; folders stay unnamed, digests tell them apart."""

    role: Role
    files: tuple[FileEntry, ...]
    tensors: dict[str, Sha256]  # of the stored bytes
    weight: float | None = None  # an adapter's


class OutputEntry(_Entry):
    """What the folder holds, the manifest itself excepted."""

    files: tuple[FileEntry, ...]
    tensors: dict[str, Sha256]


class TargetEntry(_Entry):
    """Which target wrote it, with every option that was given."""

    name: str
    options: dict[str, str] = {}
    needs: dict[str, str] = {}  # beside the engine -> version: the operators of a graph


class Manifest(_Entry):
    """The whole manifest; unknown fields are refused, the version says how to read it."""

    schema_version: Literal[1] = Field(1, alias="schema")
    tool: str  # version of sparse-export
    libraries: dict[str, str]  # package -> version, those that shape the bytes
    target: TargetEntry
    policy: str | None
    inputs: tuple[InputEntry, ...]  # model, masks, adapters in the order they were given, text
    outputs: OutputEntry


def describe_model(checkpoint: Checkpoint, progress: Progress | None = None) -> InputEntry:
    """The model's files and tensors; reads everything once.

    Raises:
        InputRefused: `input-unreadable`, `file-truncated`.
    """
    return _input("model", checkpoint.digests(progress), None)


def describe_files(
    role: Literal["adapter", "masks", "calibration"],
    folder: Path,
    names: Sequence[str],
    weight: float | None = None,
) -> InputEntry:
    """Plain files of `folder`, those in safetensors with their tensors.

    Raises:
        InputRefused: those of `read_header` and of a file that cannot be read.
    """
    return _input(role, [_digest(folder / name) for name in sorted(names)], weight)


def describe_outputs(folder: Path, tensors: Mapping[str, str]) -> OutputEntry:
    """Every file below `folder` but the manifest.

    Raises:
        InputRefused: `input-kind` for a link or anything else that is no plain file.
    """
    digests = {name: digest_file(stamp_file(folder / name, folder)) for name in _walk(folder)}
    files = [_file(digest.record, name) for name, digest in digests.items() if name != MANIFEST]
    return OutputEntry(files=tuple(files), tensors=dict(sorted(tensors.items())))


def library_versions(extra: Iterable[str] = ()) -> dict[str, str]:
    """Installed versions of `LIBRARIES` and `extra`; a package that is not here is left out."""
    out: dict[str, str] = {}
    for name in sorted({*LIBRARIES, *extra}):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def write_manifest(folder: Path, manifest: Manifest) -> FileRecord:
    """Write it as the last file: its presence says that the rest is complete.

    Raises:
        InputRefused: `output-failed`.
    """
    path = folder / MANIFEST
    path.parent.mkdir(exist_ok=True)
    return write_json(path, manifest.model_dump(mode="json", by_alias=True))


def read_manifest(folder: Path) -> Manifest:
    """Read strictly.

    Raises:
        InputRefused: `manifest-invalid`, `input-missing` where there is no such folder.
    """
    if not folder.is_dir():
        raise InputRefused("input-missing", "no such folder", file=str(folder))
    path = folder / MANIFEST
    try:
        stamp_file(path, folder)
        # A second reading, as JSON: in its strict mode pydantic takes lists for tuples only there.
        read_json(path)
        return Manifest.model_validate_json(path.read_bytes())
    except InputRefused as error:
        raise InputRefused("manifest-invalid", error.found, file=MANIFEST) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(p) for p in first["loc"])
        found = f"{where[:200]}: {first['msg']}"
        raise InputRefused("manifest-invalid", found, file=MANIFEST) from error


def check_files(folder: Path, manifest: Manifest) -> None:
    """Every listed file is there with its bytes, and nothing else is.

    Raises:
        VerificationFailed: `verify-hash`, naming the first file that differs.
    """
    listed = {entry.name: entry for entry in manifest.outputs.files}
    try:
        present = set(_walk(folder)) - {MANIFEST}
    except InputRefused as error:
        raise VerificationFailed("verify-hash", error.found, file=error.file) from error
    for name in sorted(listed.keys() | present):
        _check_file(folder, name, listed.get(name))


def _check_file(folder: Path, name: str, entry: FileEntry | None) -> None:
    if entry is None:
        raise VerificationFailed("verify-hash", "the manifest does not list it", file=name)
    try:
        record = digest_file(stamp_file(folder / name, folder)).record
    except InputRefused as error:  # missing, or no plain file
        raise VerificationFailed("verify-hash", error.found, file=name) from error
    if (record.nbytes, record.sha256) != (entry.nbytes, entry.sha256):
        raise VerificationFailed(
            "verify-hash",
            f"{record.nbytes} bytes, sha256 {record.sha256}",
            expected=f"{entry.nbytes} bytes, sha256 {entry.sha256}",
            file=name,
        )


def _walk(folder: Path) -> list[str]:
    """Relative names of everything below `folder` that is no folder, sorted.

    Raises:
        InputRefused: `input-kind` for a link: an artefact holds plain files only.
    """
    out: list[str] = []
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise InputRefused("input-kind", "a link, not a plain file", file=relative)
            if name in names:
                out.append(relative)
    return sorted(out)


def _digest(path: Path) -> FileDigest:
    stamp = stamp_file(path)
    tensors = read_stamped_header(stamp).entries if path.suffix == ".safetensors" else {}
    return digest_file(stamp, tensors.values())


def _input(role: Role, digests: Iterable[FileDigest], weight: float | None) -> InputEntry:
    digests = list(digests)
    tensors = {name: sha for digest in digests for name, sha in digest.tensors.items()}
    return InputEntry(
        role=role,
        files=tuple(_file(d.record, d.record.name) for d in digests),
        tensors=dict(sorted(tensors.items())),
        weight=weight,
    )


def _file(record: FileRecord, name: str) -> FileEntry:
    return FileEntry(name=name, nbytes=record.nbytes, sha256=record.sha256)
