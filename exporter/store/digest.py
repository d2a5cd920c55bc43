"""sha256 of files and of the tensors in them, in one reading."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from exporter.store.header import TensorEntry
from exporter.store.plainfile import Stamp, open_stamped, read_into
from exporter.store.sink import FileRecord, RunningHash

_BLOCK = 4 << 20
Step = Callable[[int], None]  # told the bytes of each block
Progress = Callable[[str, int, int], None]  # (what, done, total) in bytes


@dataclass(frozen=True)
class FileDigest:
    """One file and its tensors; `tensors` is empty for other than safetensors files."""

    record: FileRecord
    tensors: Mapping[str, str]  # name -> hex digest of the stored bytes


def digest_file(
    stamp: Stamp, entries: Iterable[TensorEntry] = (), step: Step | None = None
) -> FileDigest:
    """Read the file once; the file's hash runs beside those of its tensors.

    Raises:
        InputRefused: `input-unreadable`, `file-truncated`, `input-missing`, `input-kind`.
    """
    whole = RunningHash()
    tensors: dict[str, str] = {}
    block = memoryview(bytearray(_BLOCK))
    fd = open_stamped(stamp)
    try:
        at = 0
        for entry in sorted(entries, key=lambda e: (e.start, e.end)):
            for part in _blocks(fd, stamp, at, entry.start, block):
                whole.update(part)
            digest = hashlib.sha256()
            for part in _blocks(fd, stamp, entry.start, entry.end, block):
                whole.update(part)
                digest.update(part)
                if step is not None:
                    step(len(part))
            tensors[entry.name] = digest.hexdigest()
            at = entry.end
        for part in _blocks(fd, stamp, at, stamp.size, block):
            whole.update(part)
    finally:
        os.close(fd)
        sha256 = whole.finish()
    return FileDigest(FileRecord(stamp.name, stamp.size, sha256), tensors)


def digest_range(stamp: Stamp, start: int, end: int) -> str:
    """Hex digest of the bytes `[start, end)`."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(min(_BLOCK, max(end - start, 1))))
    fd = open_stamped(stamp)
    try:
        for part in _blocks(fd, stamp, start, end, block):
            digest.update(part)
    finally:
        os.close(fd)
    return digest.hexdigest()


def model_identity(entries: Mapping[str, TensorEntry], tensors: Mapping[str, str]) -> str:
    """One digest over (name, type, shape, bytes) of all tensors, sorted by name.

    Files and shards do not enter, so that saving a model with another shard size keeps it.
    """
    rows = [[n, e.dtype.value, list(e.shape), tensors[n]] for n, e in sorted(entries.items())]
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _blocks(fd: int, stamp: Stamp, start: int, end: int, block: memoryview) -> Iterable[memoryview]:
    """The bytes `[start, end)` in parts that are valid until the next one."""
    for at in range(start, end, len(block)):
        part = block[: min(len(block), end - at)]
        read_into(fd, at, part, stamp.name)
        yield part
