"""One process writes to an output: a lock file beside it that dies with its owner."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from exporter.errors import UsageError
from exporter.store.sink import output_failed

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def output_lock(path: Path, output: str) -> Generator[None, None, None]:
    """Hold the lock file `path`; the system lets go of it when this process ends, however.

    Raises:
        UsageError: `locked`, with the owner's process id.
        InputRefused: `output-failed`.
    """
    try:
        fd = _acquire(path, output)
    except OSError as error:
        raise output_failed(error, path) from error
    try:
        yield
    finally:
        # Removed while held: who opened it meanwhile sees that it is no longer at its place.
        path.unlink(missing_ok=True)
        os.close(fd)


def owner_record(pid: int) -> dict[str, Any] | None:
    """Who a process is: a reused process id has another start time, another boot another id."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        status = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    start = status.rpartition(")")[2].split()[19]  # field 22; the name before may hold blanks
    return {"pid": pid, "boot": boot, "start": int(start)}


def _acquire(path: Path, output: str) -> int:
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o666)
        try:
            _lock(fd, output)
            if _is_at(path, fd):
                os.ftruncate(fd, 0)
                os.pwrite(fd, json.dumps(owner_record(os.getpid())).encode(), 0)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the owner before removed it between our open and our lock


def _lock(fd: int, output: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _locked(_read_owner(fd), output) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        # A file system without locks: the record has to do, and leaves a short race.
        owner = _read_owner(fd)
        pid = None if owner is None else owner.get("pid")
        if isinstance(pid, int) and owner_record(pid) == owner:
            raise _locked(owner, output) from None


def _locked(owner: dict[str, Any] | None, output: str) -> UsageError:
    who = f"process {owner.get('pid')}" if owner else "another process"
    return UsageError("locked", f"{who} writes to it", file=output)


def _read_owner(fd: int) -> dict[str, Any] | None:
    try:
        value = json.loads(os.pread(fd, 4096, 0))
    except ValueError:
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False
