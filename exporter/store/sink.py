"""A new file that is hashed while it is written and synced when it is closed."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import InputRefused

Data = bytes | bytearray | memoryview | NDArray[Any]
_CHUNK = 4 << 20  # bytes handed to the hashing thread at once
_BUFFERS = 3  # chunks under way, used in turn: a writer's memory does not depend on the load


@dataclass(frozen=True)
class FileRecord:
    """A finished file: plain name, bytes, hex digest."""

    name: str
    nbytes: int
    sha256: str


class RunningHash:
    """sha256 in a thread of its own: hashlib lets go of the interpreter lock, so it overlaps."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._free: queue.Queue[bytearray] = queue.Queue()
        self._full: queue.Queue[tuple[bytearray, int] | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def update(self, data: memoryview) -> None:
        """Take a copy of `data` (bytes, contiguous); the caller may change it afterwards."""
        if self._thread is None:
            if len(data) < _CHUNK // 16:
                self._hash.update(data)
                return
            self._start()
        for start in range(0, len(data), _CHUNK):
            chunk = data[start : start + _CHUNK]
            buffer = self._free.get()
            memoryview(buffer)[: len(chunk)] = chunk  # slicing the bytearray would copy twice
            self._full.put((buffer, len(chunk)))

    def finish(self) -> str:
        """The hex digest of everything so far; ends the thread."""
        if self._thread is not None:
            self._full.put(None)
            self._thread.join()
            self._thread = None
        return self._hash.hexdigest()

    def _start(self) -> None:
        for _ in range(_BUFFERS):
            self._free.put(bytearray(_CHUNK))
        self._thread = threading.Thread(target=self._run, name="sha256", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (filled := self._full.get()) is not None:
            buffer, size = filled
            with memoryview(buffer) as view:
                self._hash.update(view[:size])
            self._free.put(buffer)


class RawWriter:
    """A new file of plain bytes: weights beside an ONNX graph, JSON, anything.

    The file must not exist. Its mode follows the umask (the safetensors library leaves 0600,
    which a container under another user cannot read). Leaving the `with` block without `close()`
    drops the descriptor; the file stays for the caller's folder to be removed.

    Raises:
        InputRefused: `output-failed`, from every method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self._hash = RunningHash()
        self._fd = -1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise output_failed(error, path) from error

    def write(self, buffer: Data) -> None:
        """Append the bytes of a C-contiguous buffer or array.

        Raises:
            ValueError: the buffer is not C-contiguous, or the writer is closed.
        """
        self._require_open()
        data = as_bytes(buffer)
        self._hash.update(data)
        done = 0
        while done < len(data):
            try:
                done += os.write(self._fd, data[done : done + (64 << 20)])
            except OSError as error:
                raise output_failed(error, self.path, len(data) - done) from error
        self.offset += len(data)

    def pad_to(self, alignment: int) -> int:
        """Append zeros up to a multiple of `alignment`; the new offset."""
        self.write(bytes(-self.offset % alignment))
        return self.offset

    def close(self) -> FileRecord:
        """Sync to disk and close.

        Raises:
            ValueError: closed before.
        """
        self._require_open()
        digest = self._hash.finish()
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise output_failed(error, self.path) from error
        finally:
            self.abort()
        return FileRecord(self.path.name, self.offset, digest)

    def abort(self) -> None:
        """Drop the descriptor and the hashing thread; may be called twice."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        self._hash.finish()

    def __enter__(self) -> RawWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.abort()

    def _require_open(self) -> None:
        if self._fd < 0:
            raise ValueError(f"{self.path.name} is closed")


def as_bytes(buffer: Data) -> memoryview:
    """The memory of a C-contiguous buffer as bytes, without a copy.

    Other layouts are refused, not copied: a transposed or broadcast view that slips through is
    how wrong weights, or bytes that lie beside the array, get into a file (safetensors 0.8.0).

    Raises:
        ValueError: not C-contiguous.
    """
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise ValueError(f"array of strides {buffer.strides} is not C-contiguous")
        # bfloat16 has no buffer protocol of its own: view the same memory as bytes.
        return buffer.reshape(-1).view(np.uint8).data
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise ValueError("buffer is not C-contiguous")
    return view.cast("B")


def output_failed(error: OSError, path: Path, needed: int | None = None) -> InputRefused:
    """The typed form of a failed write, with the space that is needed and free."""
    found = error.strerror or str(error)
    expected = None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = free_bytes(path)
        found += f"; {free if free is not None else 'unknown'} bytes free"
        if needed is not None:
            expected = f"at least {needed} bytes more"
    return InputRefused("output-failed", found, expected=expected, file=path.name)


def free_bytes(path: Path) -> int | None:
    """Bytes a user may still write on the file system that holds `path` or will hold it."""
    for folder in (path, *path.absolute().parents):
        try:
            found = os.statvfs(folder)
        except OSError:
            continue
        return found.f_bavail * found.f_frsize
    return None
