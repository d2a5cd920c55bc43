"""Every call that can fail does, once, and a process dies anywhere: absent, old or new, whole."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.errors import InputRefused
from exporter.store import swap
from exporter.store.folder import stage
from exporter.store.jsonio import write_json
from exporter.store.manifest import (
    Manifest,
    TargetEntry,
    check_files,
    describe_outputs,
    read_manifest,
    write_manifest,
)
from exporter.store.writer import RawWriter, write_safetensors

CALLS = ("write", "fsync", "open", "rename", "mkdir")


def build(folder: Path, version: int) -> None:
    """What an export does to its folder, in small: data, JSON, a folder, the manifest last."""
    with RawWriter(folder / "model.data") as raw:
        for _ in range(3):
            raw.write(bytes([version]) * 5000)
        raw.close()
    write_json(folder / "config.json", {"version": version})
    (folder / ".sparse-export").mkdir()
    write_safetensors(
        folder / ".sparse-export" / "selftest.safetensors", {"v": np.full(9, version)}
    )
    write_manifest(folder, manifest_of(folder, version))


def manifest_of(folder: Path, version: int) -> Manifest:
    return Manifest(
        tool=str(version), libraries={}, target=TargetEntry(name="t"), policy=None, inputs=(),
        outputs=describe_outputs(folder, {}),
    )  # fmt: skip


def export(out: Path, version: int) -> None:
    with stage(out, force=True) as staging:
        build(staging.path, version)
        staging.publish()


def found(out: Path) -> str | None:
    """Which version is there, proved whole by its manifest."""
    if not out.exists():
        return None
    manifest = read_manifest(out)
    check_files(out, manifest)
    return manifest.tool


class Fault:
    """Lets the k-th call of `os.<name>` that could hurt fail; counts them."""

    def __init__(self, name: str, k: int, number: int, below: Path) -> None:
        self.calls = 0
        self._real: Callable[..., Any] = getattr(os, name)
        self._name, self._k, self._number, self._below = name, k, number, below

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._name == "open" and not str(args[0]).startswith(str(self._below)):
            return self._real(*args, **kwargs)
        self.calls += 1
        if self.calls == self._k:
            raise OSError(self._number, os.strerror(self._number))
        return self._real(*args, **kwargs)


@pytest.mark.parametrize("old", [None, "1"])
@pytest.mark.parametrize("way", ["exchange", "two renames"])
@pytest.mark.parametrize("name", CALLS)
def test_each_call_fails_once(
    name: str, way: str, old: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "two renames":
        monkeypatch.setattr(swap, "_renameat2", lambda *_: False)
    k = tried = 0
    while True:
        k += 1
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        out = tmp_path / "out"
        if old:
            export(out, 1)
        fault = Fault(name, k, errno.ENOSPC if k % 2 else errno.EIO, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fault)
            try:
                export(out, 2)
            except InputRefused as error:
                assert error.code in ("output-failed", "input-unreadable")
                failed = True
            else:
                failed = False
        if fault.calls < k:
            assert not failed
            break
        tried += 1
        assert found(out) == (old if failed else "2"), f"call {k}"
        if not failed:  # the fault hit the removal of the old folder: the next run does it
            with stage(out, force=True):
                pass
        assert {p.name for p in tmp_path.iterdir()} <= {"out"}, f"call {k} leaves nothing"
    # Without renameat2 a first export renames once, a replacement twice.
    least = {"rename": 0 if way == "exchange" else 2 if old else 1}.get(name, 2)
    assert tried >= least


@pytest.mark.parametrize("fault", ["exchange", "back"])
def test_exchange_that_fails(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exchange itself, and the sync after it: both leave the old folder."""
    out = tmp_path / "out"
    export(out, 1)

    def broken(*_: object) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    def no_sync(folder: Path) -> None:
        if folder == tmp_path:
            broken()

    if fault == "exchange":
        monkeypatch.setattr(swap, "exchange", broken)
    else:
        monkeypatch.setattr(swap, "sync_folder", no_sync)
    with pytest.raises(InputRefused) as caught:
        export(out, 2)
    assert caught.value.code == "output-failed"
    assert found(out) == "1" and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES])
def test_folders_that_cannot_be_synced(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def no_folder(path: Any, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECTORY:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_folder)
        with stage(tmp_path / "out") as staging:
            (staging.path / "config.json").write_text("{}")
            staging.publish()
    assert (tmp_path / "out" / "config.json").exists()


def test_a_full_disk_under_another_writer(tmp_path: Path) -> None:
    """A library that writes into the folder and meets the disk's end: typed as well."""
    with pytest.raises(InputRefused) as caught, stage(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device", "model.onnx")
    assert caught.value.code == "output-failed" and "bytes free" in caught.value.found
    with pytest.raises(FileNotFoundError), stage(tmp_path / "out"):
        raise FileNotFoundError("a mistake of the program stays one")


WRITER = """
import sys
from pathlib import Path
from tests.store.test_publish_faults import export
from exporter.store import swap
if sys.argv[2] == "two renames":
    swap._renameat2 = lambda *_: False
print("ready", flush=True)
version = 2
while True:
    export(Path(sys.argv[1]), version)
    version += 1
"""


def kill_at_random(out: Path, way: str, seed: int, kills: int) -> None:
    """A process that publishes over and over; after each kill one whole folder is there."""
    dice = random.Random(seed)
    start = time.perf_counter()
    export(out, 1)
    took = time.perf_counter() - start  # the disk may be slow
    last = 1
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(out), way], stdout=subprocess.PIPE
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(dice.uniform(0.0, min(1.0, max(0.15, 4 * took))))
        process.kill()
        process.communicate()
        if way == "exchange":
            assert found(out) is not None, "never without a folder"
        with stage(out, force=True):
            pass  # the next run cleans up, and brings the old one back
        assert int(found(out) or 0) >= 1
        assert [p.name for p in out.parent.iterdir()] == ["out"]
        last = max(last, int(found(out) or 0))
    assert last > 1, "the kills came too early to show anything"


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_few_kills(way: str, tmp_path: Path) -> None:
    kill_at_random(tmp_path / "out", way, seed=0, kills=6)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_many_kills(way: str, tmp_path: Path) -> None:
    kill_at_random(tmp_path / "out", way, seed=1, kills=100)
