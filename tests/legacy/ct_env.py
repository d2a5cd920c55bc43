"""compressed-tensors 0.14.0.1 in a folder of its own, and programs that run with it.

A folder and not an environment: the library is pure Python and takes the torch and transformers
that are here already, and a second torch would cost a gigabyte.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from backends.runtimes import runtimes_home

LOCK = Path(__file__).with_name("ct.lock")
_STRICT = ("--require-hashes", "--no-deps", "--only-binary", ":all:")


def ct_folder() -> Path:
    """The folder, made whole or not at all on the first call; other processes wait for it.

    Raises:
        RuntimeError: pip failed, with its words.
    """
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    home = runtimes_home()
    home.mkdir(parents=True, exist_ok=True)
    final = home / f"compressed-tensors-{digest}"
    with (home / ".compressed-tensors.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not final.exists():
            partial = Path(tempfile.mkdtemp(prefix=".compressed-tensors.", dir=home))
            try:
                _install(partial)
                partial.rename(final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return final


def _install(folder: Path) -> None:
    pip = [sys.executable, "-I", "-m", "pip", "install", "--quiet", "--no-input"]
    told = [*_STRICT, "--target", str(folder), "--requirement", str(LOCK)]
    done = subprocess.run(
        [*pip, *told], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"compressed-tensors could not be installed:\n{done.stdout[-3000:]}")


@functools.cache
def _process(program: Path) -> subprocess.Popen[str]:
    """One process for all jobs of this one: the imports take longer than the work."""
    env = {**os.environ, "PYTHONPATH": str(ct_folder()), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, str(program)],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)
    return process


def run_with_ct(program: Path, *job: str) -> None:
    """Let `program`, which can import compressed_tensors, do a job: a line of JSON, answered.

    Raises:
        RuntimeError: it failed; what it says, or why its process ended, is on standard error.
    """
    process = _process(program)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline().strip()
    if answer != "done":
        raise RuntimeError(f"{program.name} {job}: {answer or 'its process ended'}")
