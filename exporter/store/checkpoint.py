"""A Hugging Face folder seen through its headers; tensors are read on demand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import InputRefused
from exporter.limits import LIMITS, Limits
from exporter.store.columns import read_columns
from exporter.store.digest import FileDigest, Progress, digest_file, digest_range, model_identity
from exporter.store.dtypes import F32, to_float32
from exporter.store.header import Header, TensorEntry, read_stamped_header
from exporter.store.index import INDEX, check_index
from exporter.store.listing import CONFIG, Listing, check_sidecar, list_folder, read_config
from exporter.store.mapping import MapPool
from exporter.store.plainfile import Stamp, open_stamped, read_into, stamp_file

__all__ = ["Checkpoint", "Sidecar", "TensorEntry"]


@dataclass(frozen=True)
class Sidecar:
    """A file that travels with the weights as bytes: tokenizer, template, generation config."""

    name: str  # relative to the folder: plain, or below additional_chat_templates
    path: Path


@dataclass(frozen=True)
class Checkpoint:
    """Headers, config and sidecars of one model folder. Nothing is loaded.

    Reads are thread-safe. A file that changes after `open` is refused when it is read.
    """

    root: Path
    entries: Mapping[str, TensorEntry]  # sorted by name
    config: Mapping[str, Any]  # config.json as parsed, never executed
    sidecars: tuple[Sidecar, ...]
    files: Mapping[str, Stamp] = field(default_factory=dict[str, Stamp], repr=False)
    ignored: tuple[str, ...] = ()  # names at the top level that play no part
    transposed: frozenset[str] = frozenset()  # matrices whose `rows` are the stored columns
    _maps: MapPool = field(default_factory=MapPool, repr=False, compare=False)
    _digests: dict[str, FileDigest] = field(
        default_factory=dict[str, FileDigest], repr=False, compare=False
    )

    @classmethod
    def open(cls, root: Path, limits: Limits = LIMITS) -> Checkpoint:
        """Read all headers of `root`, strictly; the size of every file is checked before any work.

        Raises:
            InputRefused: every fault of the input-folder list (docs/reference/store.md).
        """
        listing = list_folder(root, limits)
        config = read_config(root, limits)
        stamps = {name: stamp_file(root / name, root) for name in listing.weights}
        headers = {name: read_stamped_header(stamps[name], limits) for name in listing.weights}
        if listing.index is not None:
            check_index(listing.index, headers, root / INDEX)
            stamps[INDEX] = stamp_file(root / INDEX, root)
        entries = _merge(headers, limits)
        sidecars = _sidecars(root, listing, stamps, limits)
        stamps[CONFIG] = stamp_file(root / CONFIG, root)
        return cls(root, entries, config, sidecars, dict(sorted(stamps.items())), listing.ignored)

    def arranged(self, names: Mapping[str, str], transposed: Iterable[str]) -> Checkpoint:
        """The same files as an architecture sees them.

        Args:
            names: tensors that go by another name from here on, by the name they are stored by.
            transposed: matrices, by their new names, whose `rows` are the columns of the file.
        """
        entries = {
            names.get(n, n): replace(e, name=names.get(n, n)) for n, e in self.entries.items()
        }
        return replace(
            self,
            entries=dict(sorted(entries.items())),
            transposed=frozenset(transposed),
            _digests={},  # they hold tensors by name
        )

    def view(self, name: str, r0: int = 0, r1: int | None = None) -> NDArray[np.generic]:
        """Rows `[r0:r1]` of axis 0 as a read-only array in the stored dtype (scalars: whole),
        as they lie in the file, `transposed` or not.

        The array is a window of the mapped file: should another program cut the file short
        while the window is in use, the system ends this process. `rows` has no such risk.

        Raises:
            InputRefused: `input-unreadable`.
        """
        entry = self.entries[name]
        start, shape = _block(entry, r0, r1)
        count = int(np.prod(shape, dtype=np.int64))
        if count == 0:
            return np.zeros(shape, entry.dtype.numpy)
        mapped = self._maps.get(self.files[entry.file])
        # A byte view first: numpy reads elements at any address, aligned or not.
        raw = np.frombuffer(mapped, np.uint8, count * entry.dtype.nbytes, start)
        return raw.view(entry.dtype.numpy).reshape(shape)

    def rows(self, name: str, r0: int = 0, r1: int | None = None) -> F32:
        """Rows `[r0:r1]` of axis 0 as fresh float32 (scalars: whole); of a tensor in
        `transposed`, those of its transpose.

        Read, not mapped: memory stays that of the block, and an error of the disk is an error
        here, where a mapped page would end the process.

        Raises:
            InputRefused: `input-unreadable`, `file-truncated`.
        """
        entry = self.entries[name]
        if name in self.transposed:
            end = entry.shape[1] if r1 is None else r1
            return read_columns(self.files[entry.file], entry, r0, end)
        start, shape = _block(entry, r0, r1)
        stored = np.empty(shape, entry.dtype.numpy)
        stamp = self.files[entry.file]
        fd = open_stamped(stamp)
        try:
            read_into(fd, start, stored.reshape(-1).view(np.uint8).data, entry.file)
        finally:
            os.close(fd)
        if stored.dtype == np.float32:
            return stored.view(np.float32)
        return to_float32(stored)

    def tensor_sha256(self, name: str) -> str:
        """Hex digest of a tensor's stored bytes."""
        entry = self.entries[name]
        known = self._digests.get(entry.file)
        if known is not None:
            return known.tensors[name]
        return digest_range(self.files[entry.file], entry.start, entry.end)

    def digests(self, progress: Progress | None = None) -> list[FileDigest]:
        """Every file that belongs to the model, with its tensors; read once, then remembered.

        Raises:
            InputRefused: `input-unreadable`, `file-truncated`.
        """
        by_file: dict[str, list[TensorEntry]] = {}
        for entry in self.entries.values():
            by_file.setdefault(entry.file, []).append(entry)
        total, done = sum(e.nbytes for e in self.entries.values()), 0

        def step(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            if progress is not None:
                progress("hash inputs", done, total)

        for name, stamp in self.files.items():
            if name not in self._digests:
                self._digests[name] = digest_file(stamp, by_file.get(name, ()), step)
        return [self._digests[name] for name in self.files]

    def identity(self) -> str:
        """sha256 over (name, dtype, shape, bytes) of all tensors, whatever the sharding."""
        tensors = {n: sha for digest in self.digests() for n, sha in digest.tensors.items()}
        return model_identity(self.entries, tensors)

    def close(self) -> None:
        """Unmap all files. A later read maps them again."""
        self._maps.close()


def _merge(headers: Mapping[str, Header], limits: Limits) -> dict[str, TensorEntry]:
    entries = {n: e for header in headers.values() for n, e in header.entries.items()}
    if len(entries) > limits.tensors:
        raise InputRefused(
            "limit-exceeded", f"{len(entries)} tensors", expected=f"at most {limits.tensors}"
        )
    if not entries:
        file = next(iter(headers))
        raise InputRefused("tensor-missing", "no tensor in the file", file=file)
    return dict(sorted(entries.items()))


def _sidecars(
    root: Path, listing: Listing, stamps: dict[str, Stamp], limits: Limits
) -> tuple[Sidecar, ...]:
    for name in listing.sidecars:
        stamps[name] = stamp_file(root / name, root)
        if stamps[name].size > limits.sidecar_bytes:
            found, expected = f"{stamps[name].size} bytes", f"at most {limits.sidecar_bytes}"
            raise InputRefused("limit-exceeded", found, expected=expected, file=name)
        check_sidecar(root / name, limits)
    return tuple(Sidecar(name, root / name) for name in listing.sidecars)


def _block(entry: TensorEntry, r0: int, r1: int | None) -> tuple[int, tuple[int, ...]]:
    """First byte and shape of rows `[r0:r1]`; IndexError outside the tensor."""
    if not entry.shape:
        return entry.start, ()
    length = entry.shape[0]
    r1 = length if r1 is None else r1
    if not 0 <= r0 <= r1 <= length:
        raise IndexError(f"rows {r0}:{r1} of {entry.name} with {length} rows")
    width = entry.nbytes // length if length else 0
    return entry.start + r0 * width, (r1 - r0, *entry.shape[1:])
