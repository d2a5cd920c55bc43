"""Putting a finished folder into its place in one step, and back where that fails half-way."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from exporter.errors import UsageError

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2  # linux/fs.h
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
# A file system, or a parent folder one may write to but not read, may refuse this; the rename
# has taken place all the same.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES)


def put_in_place(new: Path, target: Path, aside: Path, *, replace: bool) -> Path | None:
    """Make `new` appear as `target`, on disk when this returns; the path of the folder it replaced.

    With `replace`, an existing target is exchanged in one system call where there is one; else
    it steps to `aside` first and comes back should the second rename fail.

    Raises:
        OSError: nothing has changed then.
        UsageError: `output-exists` without `replace`.
    """
    if not (replace and os.path.lexists(target)):
        rename_new(new, target)
        old = None
    elif exchange(new, target):
        old = new
    else:
        _step_aside(new, target, aside)
        old = aside
    try:
        sync_folder(target.parent)
    except OSError:
        _undo(new, target, old)
        raise
    return old


def rename_new(new: Path, target: Path) -> None:
    """Rename that never replaces anything (plain rename replaces an empty folder).

    Raises:
        UsageError: `output-exists`.
        OSError: from the system.
    """
    try:
        if not _renameat2(new, target, _NOREPLACE):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, "exists", str(target))
            os.rename(new, target)
    except FileExistsError as error:
        raise UsageError("output-exists", "it appeared meanwhile", file=target.name) from error


def exchange(a: Path, b: Path) -> bool:
    """Swap two existing paths in one step; False where the system cannot."""
    return _renameat2(a, b, _EXCHANGE)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`, and itself."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(root, name)
            if not path.is_symlink():
                _sync(path, os.O_RDONLY)
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """fsync a folder where that is possible."""
    try:
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _step_aside(new: Path, target: Path, aside: Path) -> None:
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(aside, target)
        raise


def _undo(new: Path, target: Path, old: Path | None) -> None:
    if old == new:
        exchange(new, target)
        return
    os.rename(target, new)
    if old is not None:
        os.rename(old, target)


def _renameat2(a: Path, b: Path, flags: int) -> bool:
    """renameat2(2); False where the C library, the kernel or the file system lacks it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), ctypes.c_uint(flags)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(b))
