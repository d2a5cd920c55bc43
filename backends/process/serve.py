"""The loop of a session's process: build the session, answer requests, report its own memory.

Runs on Python 3.8-3.13 with numpy and nothing else: an engine's environment imports it by path.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from backends.process import wire

WIRE_VARIABLE = "SPARSE_EXPORT_WIRE"  # "READ_FD,WRITE_FD,PARENT_PID" (pid 0: not watched)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Unfit(Exception):
    """An error with a code of the catalogue, to be raised again at the other end."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def serve(build: Callable[[], Any]) -> int:
    """Answer requests until the other end closes; the process's exit status.

    Args:
        build: gives the session: `max_tokens`, `prefill`, `decode`, `generate`, `close`,
            `facts()` as a dict without `peak_rss_bytes` and `load_seconds`, and where the other
            end asks for it `hidden_states`; `max_batch` and `generate_batch` where it can run
            several sequences at once.
    """
    read_fd, write_fd, parent = [int(x) for x in os.environ.pop(WIRE_VARIABLE).split(",")]
    _die_with(parent)
    started = time.monotonic()
    try:
        session = build()
    except Exception as error:  # noqa: BLE001 - every failure is reported to the other end
        wire.send(write_fd, _failure(error), {})
        return 1
    load_seconds = time.monotonic() - started
    batch = int(getattr(session, "max_batch", 1))
    wire.send(write_fd, {"max_tokens": session.max_tokens, "max_batch": batch}, {})
    try:
        while _answer_one(session, read_fd, write_fd, load_seconds):
            pass
    except (EOFError, BrokenPipeError):
        pass  # the other end is gone: so are we
    session.close()
    return 0


def _answer_one(session: Any, read_fd: int, write_fd: int, load_seconds: float) -> bool:
    request, _ = wire.receive(read_fd)
    if request["op"] == "close":
        return False
    try:
        header, arrays = _run(session, request)
    except Exception as error:  # noqa: BLE001 - every failure is reported to the other end
        header, arrays = _failure(error), {}
    if request["op"] == "facts" and "error" not in header:
        header["facts"].update(peak_rss_bytes=peak_rss_bytes(), load_seconds=load_seconds)
    wire.send(write_fd, header, arrays)
    return True


def _run(session: Any, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    op = request["op"]
    if op == "prefill":
        return {}, {"logits": session.prefill(request["tokens"], logits=request["logits"])}
    if op == "decode":
        return {}, {"logits": session.decode(request["token"])}
    if op == "generate":
        made, seconds = session.generate(request["tokens"], request["n"])
        return {"tokens": [int(t) for t in made], "seconds": [float(s) for s in seconds]}, {}
    if op == "generate_batch":
        batch = session.generate_batch(request["prompts"], request["n"])
        return {
            "tokens": [[int(t) for t in made] for made, _ in batch],
            "seconds": [[float(s) for s in seconds] for _, seconds in batch],
        }, {}
    if op == "hidden_states":
        return {}, session.hidden_states(request["tokens"])
    if op == "facts":
        return {"facts": session.facts()}, {}
    raise Unfit("engine-refused", f"no operation {op!r}")


def greedy(session: Any, tokens: list[int], n: int) -> tuple[list[int], list[float]]:
    """Greedy tokens and the seconds since the call at which each was known."""
    start = time.perf_counter()
    made: list[int] = []
    seconds: list[float] = []
    while len(made) < n:
        logits = session.decode(made[-1]) if made else session.prefill(tokens, logits="last")[-1]
        made.append(int(np.argmax(logits)))
        seconds.append(time.perf_counter() - start)
    return made, seconds


def peak_rss_bytes() -> int:
    """Peak resident memory of this process.

    Linux's own counter first: `ru_maxrss` survives exec, so a child of a large parent would
    report the parent's peak (kernel, fs/exec.c: setmax_mm_hiwater_rss of the old mm).
    """
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _failure(error: Exception) -> dict[str, Any]:
    code = getattr(error, "code", None)
    if not isinstance(code, str):
        code = "engine-refused"
    text = str(error) if isinstance(error, Unfit) else f"{type(error).__name__}: {error}"
    return {"error": {"code": code, "message": text[:4000]}}


def _die_with(parent: int) -> None:
    if not parent or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
