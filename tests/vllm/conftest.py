"""vLLM's managed environment for the tests marked `vllm`, and a way to run a program in it.

Two engines at a time: each takes gigabytes, and most of a start is one thread's work. The marked
tests of a folder are one xdist group, and locks keep apart what pytest's distribution does not.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from backends.vllm.runtime import RUNTIME
from exporter.errors import EngineUnfit

RunInVllm = Callable[..., Any]
_holds: list[IO[str]] = []


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.xdist_group(item.path.parent.name))


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The environment's Python; where it is not installed the tests are skipped, saying why."""
    try:
        return RUNTIME.interpreter()
    except EngineUnfit as error:
        pytest.skip(error.found)


@contextmanager
def _one_engine() -> Generator[None]:
    """While at most one other test process of this user runs vLLM; may be nested."""
    if not _holds:
        _holds.append(_free_place())
    else:
        _holds.append(_holds[0])
    try:
        yield
    finally:
        if len(_holds) == 1:
            _holds[0].close()
        _holds.pop()


def _free_place() -> IO[str]:
    while True:
        for place in range(2):
            name = f"sparse-export-vllm-{os.getuid()}-{place}.lock"
            lock = (Path(tempfile.gettempdir()) / name).open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            return lock
        time.sleep(0.2)


@pytest.fixture(scope="module")
def vllm_alone(vllm_python: Path) -> Generator[Path]:
    """The environment's Python, for a module whose tests share an engine."""
    with _one_engine():
        yield vllm_python


@pytest.fixture(scope="session")
def run_in_vllm(vllm_python: Path) -> RunInVllm:
    """`run_in_vllm(program, *arguments, env={}, timeout=300, fails=False)`, see `_run`."""

    def run(program: str | Path, *arguments: object, **how: Any) -> Any:
        with _one_engine():
            return _run(vllm_python, program, *arguments, **how)

    return run


def _run(
    python: Path,
    program: str | Path,
    *arguments: object,
    env: dict[str, str] | None = None,
    timeout: float = 300.0,
    fails: bool = False,
) -> Any:
    """Run a program (its path, or its source as text) with our plugin on the import path.

    Returns:
        what its last line of standard output is as JSON; with `fails`, everything it printed, and
        an exit status of 0 is then an error.
    """
    what = [str(program)] if isinstance(program, Path) else ["-c", program]
    variables = {
        **RUNTIME.environment(),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_HOST_IP": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        **(env or {}),
    }
    done = subprocess.run(
        [str(python), *what, *(str(argument) for argument in arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        env=variables,
        check=False,
    )
    told = f"{done.stdout[-6000:]}\n{done.stderr[-12000:]}"
    assert (done.returncode != 0) == fails, f"status {done.returncode}\n{told}"
    return told if fails else json.loads(done.stdout.strip().splitlines()[-1])
