"""ProcessSession against a toy worker: results, and every way in which a process can go wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from backends.process.client import ProcessSession
from exporter.errors import EngineUnfit

WORKER = str(Path(__file__).with_name("fake_worker.py"))


def start(fault: str, **options: float) -> ProcessSession:
    return ProcessSession([sys.executable, WORKER, fault], **options)  # type: ignore[arg-type]


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_answers_are_those_of_the_session() -> None:
    with start("none") as session:
        assert session.max_tokens == 32
        want = np.eye(11, dtype=np.float32)[[1, 3, 6]]
        np.testing.assert_array_equal(session.prefill([1, 2, 3]), want)
        np.testing.assert_array_equal(session.prefill([1, 2, 3], logits="last"), want[-1:])
        row = session.decode(4)
        assert row.shape == (11,) and row.dtype == np.float32 and row.argmax() == 10
        made = session.generate([1, 2], 4)
        assert made.tokens == (3, 6, 1, 2)  # 3; 3+3; 6+6=12; 12+1=13
        assert len(made.seconds) == 4 and sorted(made.seconds) == list(made.seconds)
        assert made.seconds[0] > 0
        assert session.generate([1], 0).tokens == ()


def test_facts_are_measured_in_the_worker() -> None:
    ballast = np.ones(300 << 17)  # 300 MB here must not show there
    with start("big") as session:
        facts = session.facts()
        assert facts.engine == "toy" and facts.extra == {"threads": "one"}
        assert 200e6 < facts.peak_rss_bytes < 300e6
        assert 0 < facts.load_seconds < 60
    assert ballast[0] == 1


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("abort", "killed by SIGABRT"),
        ("exit", "ended with status 7"),
        ("close", "closed its pipe"),
    ],
)
def test_a_death_tells_how_and_the_last_words(fault: str, says: str) -> None:
    with start(fault) as session, pytest.raises(EngineUnfit) as caught:
        session.prefill([1, 9])
    assert caught.value.code == "engine-crashed"
    assert says in caught.value.found and f"last words of {fault}" in caught.value.found
    assert caught.value.found.startswith("prefill:")


def test_a_death_at_the_start() -> None:
    with pytest.raises(EngineUnfit) as caught:
        start("start-abort")
    assert caught.value.code == "engine-crashed"
    assert "starting: the process was killed by SIGABRT" in caught.value.found
    assert "toy banner" in caught.value.found


def test_garbage_on_the_pipe() -> None:
    with start("garbage") as session, pytest.raises(EngineUnfit) as caught:
        session.decode(9)
    assert caught.value.code == "engine-crashed" and "b'Segm'" in caught.value.found


@pytest.mark.parametrize("fault", ["start-hang", "hang"])
def test_a_hang_ends_with_its_whole_process_group(fault: str) -> None:
    began = time.monotonic()
    argv = [sys.executable, WORKER, fault, str(os.getpid())]
    startup = 3 if fault == "start-hang" else 60
    with (
        pytest.raises(EngineUnfit) as caught,
        ProcessSession(argv, startup_timeout=startup, call_timeout=1) as session,
    ):
        session.decode(9)
    assert caught.value.code == "engine-timeout" and "no answer" in caught.value.found
    assert time.monotonic() - began < 30
    child = ["sleep", f"601.{os.getpid()}"]
    _wait_until(lambda: child not in [p.info["cmdline"] for p in psutil.process_iter(["cmdline"])])


def test_a_refusal_leaves_the_session_usable() -> None:
    with start("raise") as session:
        with pytest.raises(EngineUnfit) as caught:
            session.decode(9)
        assert caught.value.code == "engine-refused"
        assert caught.value.found == "ValueError: not a number I like"
        with pytest.raises(EngineUnfit, match="33 tokens of 32"):
            session.prefill([0] * 33)
        assert session.prefill([5]).argmax() == 5


@pytest.mark.parametrize(
    ("fault", "code"), [("clash", "engine-unfit"), ("bad-code", "engine-refused")]
)
def test_what_the_worker_reports_at_the_start(fault: str, code: str) -> None:
    with pytest.raises(EngineUnfit) as caught:
        start(fault)
    assert caught.value.code == code
    assert caught.value.exit_code == 4


def test_a_missing_program() -> None:
    before = descriptors()
    with pytest.raises(EngineUnfit) as caught:
        ProcessSession(["/no/such/python", WORKER, "none"])
    assert caught.value.code == "engine-missing"
    assert descriptors() == before


@pytest.mark.parametrize("fault", ["none", "linger", "abort"])
def test_close_ends_the_process_and_leaks_nothing(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.process.client._CLOSE_SECONDS", 1.0)
    before = descriptors()
    session = start(fault)
    pid = session.pid
    assert pid is not None and psutil.pid_exists(pid)
    if fault == "abort":
        with pytest.raises(EngineUnfit):
            session.decode(9)
    session.close()
    session.close()
    assert not psutil.pid_exists(pid)  # reaped, not a zombie
    assert descriptors() == before
    with pytest.raises(EngineUnfit, match="has ended already"):
        session.decode(1)


def test_an_interrupt_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    session = start("none")
    pid = session.pid

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("backends.process.wire.receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.decode(1)
    assert pid is not None and not psutil.pid_exists(pid)


def test_a_given_log_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    ProcessSession([sys.executable, WORKER, "none"], log_path=log).close()
    assert "toy banner" in log.read_text()


def test_no_temporary_log_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    start("none").close()
    with pytest.raises(EngineUnfit):
        start("clash")
    assert list(tmp_path.iterdir()) == []


def test_a_session_outlives_the_thread_that_opened_it() -> None:
    opened: list[ProcessSession] = []
    thread = threading.Thread(target=lambda: opened.append(start("none")))
    thread.start()
    thread.join()
    with opened[0] as session:
        assert session.decode(3).argmax() == 3


PARENT = """
import sys, time
from backends.process.client import ProcessSession
session = ProcessSession([sys.executable, {worker!r}, {fault!r}])
print(session.pid, flush=True)
if {fault!r} == "stuck":
    session.decode(9)
time.sleep(600)
"""


@pytest.mark.parametrize("fault", ["none", "stuck"])
def test_the_worker_dies_with_its_parent(fault: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(worker=WORKER, fault=fault))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        assert psutil.pid_exists(pid)
        parent.kill()
    _wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if true():
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.05)
    raise AssertionError("waited 10 s in vain")
