"""Opening of files that others wrote: plain files only, inside their folder, checked as opened.

A path check alone can be walked around (onnx's advisories CVE-2024-27318 and CVE-2026-27489 are
two string checks that were), so the opened object itself is what is looked at.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import InputRefused

LFS_MAGIC = b"version https://git-lfs.github.com/spec/"
_HEAD_BYTES = len(LFS_MAGIC)


@dataclass(frozen=True)
class Stamp:
    """Which file it was when it was first opened; a later read must find the same one."""

    name: str  # plain name, for messages
    path: Path  # resolved
    size: int
    device: int
    inode: int
    mtime_ns: int


def stamp_file(path: Path, root: Path | None = None) -> Stamp:
    """Look at `path`, which must be a plain file inside `root` (or its Hugging Face cache folder).

    Raises:
        InputRefused: `input-missing`, `input-kind`, `input-unreadable`, `escape`, `lfs-pointer`.
    """
    real = real_path(path)
    if root is not None and not _inside(real, real_path(root)):
        raise InputRefused(
            "escape",
            f"leads to {_shorten(real)}",
            expected=f"a file inside {root.name or 'the folder'}",
            file=path.name,
        )
    fd = open_plain(real, path.name)
    try:
        found = os.fstat(fd)
        head = read_at(fd, 0, min(_HEAD_BYTES, found.st_size), path.name)
    finally:
        os.close(fd)
    if bytes(head) == LFS_MAGIC:
        raise InputRefused("lfs-pointer", f"{found.st_size} bytes of text", file=path.name)
    return Stamp(path.name, real, found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns)


def real_path(path: Path) -> Path:
    """`path` with all links followed, whether it exists or not.

    Raises:
        InputRefused: `input-missing` for a path that no file can have.
    """
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a NUL
        raise InputRefused("input-missing", str(error), file=repr(str(path))) from error


def open_stamped(stamp: Stamp) -> int:
    """A descriptor of the same, unchanged file.

    Raises:
        InputRefused: `input-unreadable` where the file was changed or replaced meanwhile.
    """
    fd = open_plain(stamp.path, stamp.name)
    found = os.fstat(fd)
    now = (found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns)
    if now != (stamp.size, stamp.device, stamp.inode, stamp.mtime_ns):
        os.close(fd)
        raise InputRefused(
            "input-unreadable",
            "the file changed after its header was read",
            expected="inputs that nothing writes to during the run",
            file=stamp.name,
            hint="Let the other program end, then run again.",
        )
    return fd


def open_plain(path: Path, name: str) -> int:
    """A read-only descriptor of a plain file; never waits on a pipe, never opens a device.

    Raises:
        InputRefused: `input-missing`, `input-kind`, `input-unreadable`.
    """
    try:
        _require_plain(os.stat(path).st_mode, name)
        # O_NONBLOCK: should a pipe take the file's place now, opening it must not hang.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise unreadable(error, name) from error
    try:
        _require_plain(os.fstat(fd).st_mode, name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_at(fd: int, start: int, nbytes: int, name: str) -> bytearray:
    """`nbytes` bytes from `start`; thread-safe, since it moves no file position.

    Raises:
        InputRefused: `file-truncated`, `input-unreadable`.
    """
    out = bytearray(nbytes)
    read_into(fd, start, memoryview(out), name)
    return out


def read_into(fd: int, start: int, out: memoryview, name: str) -> None:
    """Fill the byte view `out` from `start` on.

    Raises:
        InputRefused: `file-truncated`, `input-unreadable`.
    """
    done = 0
    while done < len(out):
        try:
            got = os.preadv(fd, [out[done:]], start + done)
        except OSError as error:
            raise unreadable(error, name) from error
        if got == 0:
            raise InputRefused(
                "file-truncated",
                f"the file ends at byte {start + done}",
                expected=f"{start + len(out)} bytes",
                file=name,
            )
        done += got


def unreadable(error: OSError, name: str) -> InputRefused:
    """The typed form of a failed open, stat or read."""
    missing = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
    code = "input-missing" if error.errno in missing else "input-unreadable"
    return InputRefused(code, error.strerror or str(error), file=name)


def _require_plain(mode: int, name: str) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    found = kinds.get(stat.S_IFMT(mode), "a device")
    raise InputRefused("input-kind", found, expected="a plain file", file=name)


def _inside(real: Path, root: Path) -> bool:
    """Whether `real` lies in `root`, or in the blobs of the cache repository `root` belongs to.

    Layout of the Hugging Face cache: `REPO/snapshots/REVISION/name -> ../../blobs/HASH`.
    """
    if real.is_relative_to(root):
        return True
    in_cache = root.parent.name == "snapshots"
    return in_cache and real.parent == root.parent.parent / "blobs"


def _shorten(path: Path) -> str:
    return str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}..."
