"""An output folder that appears whole or not at all.

It is built as `OUT.partial-<id>` beside its place, so on the same file system, and one rename
(or exchange) publishes it. What a killed process leaves is put right by the next run of the same
output.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exporter.errors import InputRefused
from exporter.store.lock import output_lock
from exporter.store.overlap import refuse_existing, refuse_overlap, resolve_output
from exporter.store.signals import deferred_stops, stops_raise
from exporter.store.sink import free_bytes, output_failed
from exporter.store.swap import put_in_place, sync_tree

_ID = "[0-9a-f]{16}"
_NAME_BYTES = 255 - len(".partial-") - 16
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)


@dataclass
class Staging:
    """A folder being built at `path`; nobody looks for it there."""

    path: Path
    target: Path
    force: bool
    published: bool = field(default=False, init=False)

    def publish(self) -> None:
        """Sync everything to disk and put it in place; the folder it replaces is then removed.

        Raises:
            InputRefused: `output-failed`; the output is as it was.
            UsageError: `output-exists` where it appeared meanwhile.
        """
        if self.published:
            raise ValueError("published before")
        aside = self.path.with_name(self.path.name.replace(".partial-", ".old-"))
        try:
            sync_tree(self.path)
            with deferred_stops():
                old = put_in_place(self.path, self.target, aside, replace=self.force)
                self.published = True
                if old is not None:
                    # A failure is not one of publishing; the next run tries again.
                    shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise output_failed(error, self.target) from error


@contextlib.contextmanager
def stage(
    out: Path, inputs: Sequence[Path] = (), force: bool = False
) -> Generator[Staging, None, None]:
    """Build an output: `with stage(out, inputs=[model]) as st: ...; st.publish()`.

    Without `publish()`, on any error, on Ctrl-C and on SIGTERM (which becomes a
    KeyboardInterrupt), the partial folder is removed and what was at `out` stays.

    Args:
        out: the folder to appear; a link is followed. Missing parents are made.
        inputs: files and folders that must neither hold it nor be in it.
        force: replace an earlier output.

    Raises:
        UsageError: `output-exists`, `output-inside-input`, `locked`, `usage`.
        InputRefused: `output-failed`.
    """
    target = resolve_output(out)
    refuse_overlap(target, inputs)
    refuse_existing(target, force)
    made = _make_parents(target)
    stem = _stem(target.name)
    try:
        with stops_raise(), output_lock(target.with_name(f".{stem}.lock"), target.name):
            try:
                _recover(target, stem)
                refuse_existing(target, force)
                path = target.with_name(f"{stem}.partial-{secrets.token_hex(8)}")
                path.mkdir()
            except OSError as error:
                raise output_failed(error, target) from error
            yield from _guarded(Staging(path, target, force))
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only while empty


@contextlib.contextmanager
def scratch(staging: Staging) -> Generator[Path, None, None]:
    """A folder beside the output for what only this run needs; it goes when the block ends.

    It bears a name that the next run of the same output clears away after a kill.

    Raises:
        InputRefused: `output-failed`.
    """
    path = staging.path.with_name(staging.path.name[:-16] + secrets.token_hex(8))
    try:
        path.mkdir()
    except OSError as error:
        raise output_failed(error, staging.target) from error
    try:
        yield path
    finally:
        with deferred_stops():
            shutil.rmtree(path, ignore_errors=True)


def require_space(path: Path, nbytes: int) -> None:
    """Refuse before any work where the disk of `path` (which need not exist) is too small.

    Raises:
        InputRefused: `output-failed`.
    """
    free = free_bytes(path)
    if free is not None and free < nbytes:
        found, expected = f"{free} bytes free", f"at least {nbytes} bytes"
        raise InputRefused("output-failed", found, expected=expected, file=path.name)


def _guarded(staging: Staging) -> Generator[Staging, None, None]:
    try:
        yield staging
    except OSError as error:
        # A writer that is not ours (a library's save) met the disk's end.
        if error.errno in _DISK:
            raise output_failed(error, staging.target) from error
        raise
    finally:
        with deferred_stops():
            if not staging.published:
                shutil.rmtree(staging.path, ignore_errors=True)


def _recover(target: Path, stem: str) -> None:
    """Put right what a killed run of the same output left; called under its lock."""
    for path in sorted(target.parent.iterdir()):
        if re.fullmatch(re.escape(stem) + rf"\.old-{_ID}", path.name):
            if os.path.lexists(target):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.rename(path, target)  # killed between the two renames of a replacement
        elif re.fullmatch(re.escape(stem) + rf"\.partial-{_ID}", path.name):
            shutil.rmtree(path, ignore_errors=True)


def _make_parents(target: Path) -> list[Path]:
    """The folders made, deepest first."""
    try:
        missing = [p for p in target.parents if not p.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_failed(error, target.parent) from error
    return missing


def _stem(name: str) -> str:
    """`name`, or for one too long to take a suffix, its beginning and a digest."""
    raw = os.fsencode(name)
    if len(raw) <= _NAME_BYTES:
        return name
    return raw[:100].decode("utf-8", "ignore") + "-" + hashlib.sha256(raw).hexdigest()[:16]
