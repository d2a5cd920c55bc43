"""`vllm serve FOLDER --port N` of the managed environment, started, waited for, and always ended.

The server gets no other flag unless it is asked for. One variable is set: without
VLLM_CPU_KVCACHE_SPACE vLLM 0.32 asks for 92 % of the machine's memory for its cache, dense or not,
and does not start where less is free.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from exporter.errors import EngineUnfit

CACHE_GIB = "1"
_STOP_SECONDS = 20.0
_POLL_SECONDS = 1.0
_LOG_LINES = 25
_STOPPERS = (signal.SIGTERM, signal.SIGHUP)

Tell = Callable[[float, str], None]  # seconds since the start, the log's last line


@dataclass(frozen=True)
class Server:
    """A server that has answered its health check."""

    url: str
    model: str  # the name it serves the folder by
    seconds: float  # from its start to the first healthy answer
    group: int  # of its processes

    def suspend(self) -> None:
        """Stop all its processes where they are."""
        os.killpg(self.group, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        with suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGCONT)


@contextmanager
def served(
    binary: Path,
    folder: Path,
    log: Path,
    *,
    env: Mapping[str, str],
    tell: Tell,
    flags: Sequence[str] = (),
    timeout: float = 3600.0,  # compiling took 1157 s on two cores that much else was using
) -> Generator[Server]:
    """A running server; at the end, also on Ctrl-C or SIGTERM, its whole process group is gone.

    Args:
        binary: the environment's `vllm`.
        log: file for what it prints; kept.
        env: its whole environment.
        tell: called every second while it loads.
        flags: more of `vllm serve`.

    Raises:
        EngineUnfit: `engine-crashed` where it ends, `engine-timeout` where it never gets healthy.
    """
    port = free_port()
    argv = [str(binary), "serve", str(folder), "--port", str(port), *flags]
    variables = {**env, "VLLM_CPU_KVCACHE_SPACE": CACHE_GIB}
    with _signals_raise(), log.open("wb") as out:
        start = time.monotonic()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, log, start, timeout, tell)
            yield Server(f"{url}/v1", str(folder), time.monotonic() - start, process.pid)
        finally:
            stop(process)


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process that leads a group to end its own; then kill what is left of the group."""
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    finally:  # also where the user has no patience and presses Ctrl-C again
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(
    process: subprocess.Popen[bytes],
    url: str,
    log: Path,
    start: float,
    timeout: float,
    tell: Tell,
) -> None:
    while not _healthy(url):
        seconds = time.monotonic() - start
        if process.poll() is not None:
            raise EngineUnfit(
                "engine-crashed",
                f"`vllm serve` ended with status {process.returncode}{_tail(log)}",
                file=str(log),
            )
        if seconds > timeout:
            text = f"`vllm serve` is not healthy after {timeout:g} s{_tail(log)}"
            raise EngineUnfit("engine-timeout", text, file=str(log))
        tell(seconds, (_lines(log) or [""])[-1])
        time.sleep(_POLL_SECONDS)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _lines(log: Path) -> list[str]:
    text = log.read_bytes()[-16384:].decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def _tail(log: Path) -> str:
    return "".join(f"\n  {line}" for line in _lines(log)[-_LOG_LINES:])


@contextmanager
def _signals_raise() -> Generator[None]:
    """SIGTERM and SIGHUP leave through the `finally`s, as Ctrl-C does."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in _STOPPERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
