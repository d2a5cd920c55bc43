"""The demo's server: waited for, and gone with all its processes whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from exporter.errors import EngineUnfit
from scripts import vllm_server
from scripts.vllm_server import free_port, served

FAKE = Path(__file__).with_name("fake_vllm.py")


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "vllm"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(vllm_server, "_STOP_SECONDS", 1.0)


def _env(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "FAKE_VLLM_PIDS": str(tmp_path / "pids")}


def _gone(pids: list[int], within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not any(map(_runs, pids)):
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _pids(tmp_path: Path) -> list[int]:
    return [int(x) for x in (tmp_path / "pids").read_text().split()[:2]]


@pytest.mark.parametrize("mode", ["good", "slow", "deaf"])
def test_started_waited_for_and_ended(binary: Path, tmp_path: Path, mode: str):
    told: list[float] = []
    log = tmp_path / "log"

    def tell(seconds: float, last: str) -> None:
        del last
        told.append(seconds)

    with served(binary, Path(mode), log, env=_env(tmp_path), tell=tell) as server:
        assert server.model == mode and server.seconds > 0
        with urllib.request.urlopen(server.url.removesuffix("/v1") + "/health") as answer:
            assert answer.status == 200
        pids = _pids(tmp_path)
        assert all(map(_runs, pids))
    assert _gone(pids)
    assert (tmp_path / "pids").read_text().split()[2] == "1"
    assert "loading weights" in log.read_text()
    assert told == sorted(told) and told[0] < told[-1]


def test_a_suspended_server_takes_no_core_and_goes_on(binary: Path, tmp_path: Path):
    good = served(binary, Path("good"), tmp_path / "log", env=_env(tmp_path), tell=_silent)
    with good as server:
        pids = _pids(tmp_path)
        server.suspend()
        assert _all_are(pids, psutil.STATUS_STOPPED)
        server.resume()
        with urllib.request.urlopen(server.url.removesuffix("/v1") + "/health") as answer:
            assert answer.status == 200
        server.suspend()  # and is ended all the same
    assert _gone(pids)
    server.resume()  # nobody is there: nothing happens


def _all_are(pids: list[int], status: str, within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if all(psutil.Process(pid).status() == status for pid in pids):
            return True
        time.sleep(0.02)
    return False


def test_an_error_while_it_serves_ends_it_too(binary: Path, tmp_path: Path):
    good = served(binary, Path("good"), tmp_path / "log", env=_env(tmp_path), tell=_silent)
    with pytest.raises(KeyboardInterrupt), good:
        raise KeyboardInterrupt
    assert _gone(_pids(tmp_path))


def test_a_server_that_dies_is_told_with_its_last_words(binary: Path, tmp_path: Path):
    dies = served(binary, Path("dies"), tmp_path / "log", env=_env(tmp_path), tell=_silent)
    with pytest.raises(EngineUnfit) as caught, dies:
        pytest.fail("it cannot be healthy")
    assert caught.value.code == "engine-crashed"
    assert "status 3" in caught.value.found and "no such layout" in caught.value.found


def test_a_server_that_never_gets_healthy(binary: Path, tmp_path: Path):
    env = _env(tmp_path)
    slow = served(binary, Path("slow"), tmp_path / "log", env=env, tell=_silent, timeout=0.0)
    with pytest.raises(EngineUnfit) as caught, slow:
        pytest.fail("it cannot be healthy")
    assert caught.value.code == "engine-timeout"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_demo_ends_the_server(binary: Path, tmp_path: Path, number: int):
    program = f"""
        import os, signal, time
        from pathlib import Path
        from scripts.vllm_server import served
        # The shell that runs the tests may ignore them (nohup, "&").
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with served(Path({str(binary)!r}), Path("good"), Path({str(tmp_path / "log")!r}),
                    env=dict(os.environ), tell=lambda seconds, last: None):
            print("serving", flush=True)
            time.sleep(600)
    """
    demo = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=_env(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=FAKE.parents[2],
        text=True,
    )
    assert demo.stdout is not None
    with demo.stdout as said:
        assert said.readline() == "serving\n"
        pids = _pids(tmp_path)
        demo.send_signal(number)
        assert demo.wait(60) != 0
    assert _gone(pids)


def test_a_free_port_can_be_bound():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


def _silent(seconds: float, last: str) -> None:
    del seconds, last
