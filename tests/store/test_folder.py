"""Publishing: whole or not at all, never over an input, never without the old one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from exporter.errors import InputRefused, SparseExportError, UsageError
from exporter.store import swap
from exporter.store.folder import require_space, stage
from exporter.store.lock import owner_record

FILES = {"config.json": "{}", "sub/deep/model.data": "weights"}


def fill(folder: Path, text: str) -> None:
    for name, body in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(body + text)


def content(folder: Path) -> str | None:
    """The text that every file of a whole folder ends with; None where there is no folder."""
    if not folder.exists():
        return None
    found = {n: (folder / n).read_text().removeprefix(body) for n, body in FILES.items()}
    assert len(set(found.values())) == 1 and len(list(folder.rglob("*"))) == 4
    return found["config.json"]


def publish(out: Path, text: str, **options: bool) -> None:
    with stage(out, **options) as staging:
        fill(staging.path, text)
        staging.publish()


def code_of(error: pytest.ExceptionInfo[SparseExportError]) -> str:
    return error.value.code


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(params=["exchange", "two renames"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With renameat2(2), and as on a system without it."""
    if request.param == "two renames":
        monkeypatch.setattr(swap, "_renameat2", lambda *_: False)


@pytest.mark.usefixtures("both_ways")
def test_publish_and_replace(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with stage(out) as staging:
        assert staging.path.parent == out.parent and not out.exists()
        fill(staging.path, "1")
        staging.publish()
        assert content(out) == "1"
        with pytest.raises(ValueError, match="before"):
            staging.publish()
    with pytest.raises(UsageError) as caught:
        publish(out, "2")
    assert code_of(caught) == "output-exists" and content(out) == "1"
    publish(out, "2", force=True)
    assert content(out) == "2" and names(out.parent) == ["out"]


@pytest.mark.usefixtures("both_ways")
def test_force_without_an_old_one(tmp_path: Path) -> None:
    publish(tmp_path / "out", "1", force=True)
    assert content(tmp_path / "out") == "1" and names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, None])
def test_nothing_is_left_of_a_failure(error: type[BaseException] | None, tmp_path: Path) -> None:
    publish(tmp_path / "old", "1")
    for out in (tmp_path / "made" / "out", tmp_path / "old"):
        expected = pytest.raises(error) if error else contextlib.nullcontext()
        with expected, stage(out, force=True) as staging:
            fill(staging.path, "2")
            if error is not None:
                raise error
    assert names(tmp_path) == ["old"] and content(tmp_path / "old") == "1"


def test_appeared_meanwhile(tmp_path: Path) -> None:
    """Even an empty folder, which rename(2) would replace."""
    with pytest.raises(UsageError) as caught, stage(tmp_path / "out") as staging:
        (tmp_path / "out").mkdir()
        staging.publish()
    assert code_of(caught) == "output-exists" and names(tmp_path) == ["out"]


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        publish(tmp_path / "out", "1")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_output_and_inputs_must_be_apart(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "up").symlink_to(tmp_path)
    outs = [
        model,
        model / "sub",
        model / "sub" / "new",
        tmp_path / "link",
        tmp_path / "link" / "new",
        tmp_path / "up" / "model" / "new",
        tmp_path,
        model / "sub" / ".." / "new",
    ]
    for out in outs:
        for force in (False, True):
            with pytest.raises(UsageError) as caught, stage(out, [model], force=force):
                pass
            assert code_of(caught) == "output-inside-input", out
    with pytest.raises(UsageError) as caught, stage(model, [model / "config.json"], force=True):
        pass  # the masks file of the folder that would be replaced
    assert code_of(caught) == "output-inside-input"
    assert names(tmp_path) == ["link", "model", "up"] and names(model) == ["config.json", "sub"]
    with stage(tmp_path / "model-out", [model]) as staging:
        staging.publish()


def test_overlap_by_inode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bind mount shows one folder at two paths; here by a patched realpath."""
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "mount").symlink_to(model)
    monkeypatch.setattr(os.path, "realpath", os.path.abspath)
    for out in ("mount", "mount/new"):
        with pytest.raises(UsageError) as caught, stage(tmp_path / out, [model], force=True):
            pass
        assert code_of(caught) == "output-inside-input"


def test_force_deletes_no_foreign_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "summer.jpg").touch()
    (tmp_path / "file").touch()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.json").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in ("photos", "file", "here"):
        with pytest.raises(UsageError) as caught, stage(tmp_path / out, force=True):
            pass
        assert code_of(caught) == "output-exists"
    publish(tmp_path / "empty", "1", force=True)
    assert names(tmp_path) == ["empty", "file", "here", "photos"]


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    for out in (Path("/"), Path("a\0b"), tmp_path / ("x" * 256)):
        with pytest.raises(UsageError) as caught, stage(out):
            pass
        assert code_of(caught) == "usage"
    (tmp_path / "file").touch()
    with pytest.raises(InputRefused) as failed, stage(tmp_path / "file" / "out"):
        pass
    assert failed.value.code == "output-failed" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "with [brackets]*", ".hidden"])
def test_odd_names(name: str, tmp_path: Path) -> None:
    publish(tmp_path / name, "1")
    publish(tmp_path / name, "2", force=True)
    assert names(tmp_path) == [name] and content(tmp_path / name) == "2"


def test_link_to_an_output_is_followed(tmp_path: Path) -> None:
    publish(tmp_path / "real", "1")
    (tmp_path / "link").symlink_to("real")
    publish(tmp_path / "link", "2", force=True)
    assert (tmp_path / "link").is_symlink() and content(tmp_path / "real") == "2"


def test_second_writer_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with stage(out) as staging:
        with pytest.raises(UsageError) as caught, stage(out):
            pass
        assert code_of(caught) == "locked" and str(os.getpid()) in caught.value.found
        assert staging.path.exists(), "the first one's work is not taken for a leftover"
        with stage(tmp_path / "other"):
            pass
    assert names(tmp_path) == []


def test_lock_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks: a living owner is refused, a dead one is not."""
    import errno
    import fcntl

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with stage(tmp_path / "out"), pytest.raises(UsageError) as caught, stage(tmp_path / "out"):
        pass
    assert code_of(caught) == "locked"
    mine = owner_record(os.getpid())
    assert mine is not None
    for stale in (
        "",
        "not json",
        f'{{"pid": {os.getpid()}, "boot": "{mine["boot"]}", "start": 1}}',
        f'{{"pid": {os.getpid()}, "boot": "another", "start": {mine["start"]}}}',
        f'{{"pid": 99999999, "boot": "{mine["boot"]}", "start": 1}}',
    ):
        (tmp_path / ".out.lock").write_text(stale)
        with stage(tmp_path / "out"):
            pass
    assert names(tmp_path) == []


def test_what_a_killed_run_left_is_put_right(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(tmp_path / "out.partial-0123456789abcdef", "half")
    fill(tmp_path / "out.old-0123456789abcdef", "old")  # killed between the two renames
    (tmp_path / ".out.lock").write_text("stale")
    keep = ["out.partial-notes", "other.partial-0123456789abcdef"]
    for name in keep:
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError), stage(out):
        pass
    assert content(out) == "old"
    fill(tmp_path / "out.old-0123456789abcdef", "older")
    publish(out, "new", force=True)
    assert content(out) == "new" and names(tmp_path) == sorted([*keep, "out"])


def test_require_space(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "there", 1)
    with pytest.raises(InputRefused) as caught:
        require_space(tmp_path / "not" / "there", 1 << 60)
    assert caught.value.code == "output-failed"
    assert "bytes free" in caught.value.found and str(1 << 60) in str(caught.value.expected)


# Signals are set back first: a shell that runs the tests in the background leaves them ignored.
SLOW_WRITER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from pathlib import Path
from exporter.store.folder import stage
with stage(Path(sys.argv[1]), force=True) as st:
    (st.path / "config.json").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_clean_up(number: signal.Signals, tmp_path: Path) -> None:
    publish(tmp_path / "out", "old")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    assert names(tmp_path) == ["out"] and content(tmp_path / "out") == "old"


@pytest.mark.usefixtures("both_ways")
def test_signal_in_the_middle_of_the_swap_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path / "out", "old")
    real = swap.sync_folder

    def interrupted(folder: Path) -> None:
        if folder == tmp_path:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        real(folder)

    monkeypatch.setattr(swap, "sync_folder", interrupted)
    # A program in the background of a script is started with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path / "out", "new", force=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert content(tmp_path / "out") == "new" and names(tmp_path) == ["out"]


def test_works_in_a_thread_of_the_program(tmp_path: Path) -> None:
    thread = threading.Thread(target=publish, args=(tmp_path / "out", "1"))
    thread.start()
    thread.join()
    assert content(tmp_path / "out") == "1"


def test_handlers_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    publish(tmp_path / "out", "1")
    after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert before == after
