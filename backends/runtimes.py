"""Managed runtimes: engines whose dependencies clash with ours, each in an environment we make.

An environment is made from a lock file with hashes, checked by running the engine on a known
value, and only then moved into place; its folder is named after the lock's hash, so another
lock makes another environment.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from backends.base import Progress, RuntimeStatus
from backends.interpreters import Interpreter, PythonRange, find_python
from exporter.errors import EngineUnfit

_PIP_SECONDS = 1800
_LOG_LINES = 15
_CLEAN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_REQUIRE_VIRTUALENV", "PIP_TARGET")


@dataclass(frozen=True)
class ManagedRuntime:
    """An engine in an environment of its own; implements `exporter.contract.Runtime`.

    Args:
        name: as `sparse-export targets install` knows it.
        lock: requirements with hashes, for pip.
        check: program that runs the engine on a known value and prints, as its last line, a
            JSON object with "version"; any other exit status than 0 refuses the environment.
        unfit: why this machine can never run the engine, or None.
        env: variables to set whenever the engine runs.
        prepare: given the environment's folder before the check and whenever its interpreter is
            asked for, to bring in what is not in the lock; cheap where all is there.
        check_seconds: how long `check` may take.
    """

    name: str
    engine: str
    version: str
    python: PythonRange
    lock: Path
    check: Path
    unfit: Callable[[], str | None]
    licence: str = ""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    prepare: Callable[[Path], None] | None = None
    check_seconds: float = 300.0

    def folder(self) -> Path:
        """Where the environment is, or would be."""
        digest = hashlib.sha256(self.lock.read_bytes()).hexdigest()[:12]
        return runtimes_home() / f"{self.name}-{digest}"

    def interpreter(self) -> Path:
        """The environment's Python.

        Raises:
            EngineUnfit: `engine-missing` where it is not installed, `engine-unfit` where it
                never can be, `install-failed` where it cannot be prepared.
        """
        status = self.status()
        if not status.available:
            code = "engine-unfit" if self.unfit() else "engine-missing"
            raise EngineUnfit(code, f"{self.engine} {self.version}: {status.reason}")
        if self.prepare is not None:
            try:
                self.prepare(self.folder())
            except OSError as error:
                raise EngineUnfit("install-failed", str(error), file=str(self.folder())) from error
        return _python_of(self.folder())

    def environment(self) -> dict[str, str]:
        """Variables of a process of the engine: ours without Python's own, plus `env`."""
        kept = {k: v for k, v in os.environ.items() if k not in _CLEAN}
        return {**kept, **self.env}

    def status(self) -> RuntimeStatus:
        """What is here; reads a stamp, loads nothing."""
        unfit = self.unfit()
        if unfit:
            return RuntimeStatus(False, unfit)
        folder = self.folder()
        stamp = _read_stamp(folder)
        if stamp is None:
            return RuntimeStatus(False, self._why_not_installed())
        if not os.access(_python_of(folder), os.X_OK):
            reason = f"its Python is gone: run `sparse-export targets install {self.name}`"
            return RuntimeStatus(False, reason)
        return RuntimeStatus(True, "ready", stamp["version"], stamp["python"])

    def install(
        self, progress: Progress | None = None, *, python: str | None = None
    ) -> RuntimeStatus:
        """Make the environment, whole or not at all; a second call is free.

        Args:
            python: path of the interpreter to use; None to look for one.

        Raises:
            EngineUnfit: `engine-unfit` where this machine or its Pythons cannot run the engine,
                `install-failed` where pip or the check fails.
        """
        report = progress or _silent
        unfit = self.unfit()
        if unfit:
            raise EngineUnfit("engine-unfit", f"{self.engine} {self.version}: {unfit}")
        home = runtimes_home()
        try:
            home.mkdir(parents=True, exist_ok=True)
            with _locked(home / f".{self.name}.lock"):
                status = self.status()
                if not status.available:
                    self._make(home, self._python(python), report)
        except OSError as error:
            raise EngineUnfit("install-failed", str(error), file=str(home)) from error
        return self.status()

    def _python(self, given: str | None) -> Interpreter:
        found = find_python(self.python, given)
        if found is None:
            text = f"{self.engine} {self.version}: {_no_python(self.python, given)}"
            raise EngineUnfit("engine-unfit", text, hint="Install such a Python.")
        return found

    def _make(self, home: Path, python: Interpreter, report: Progress) -> None:
        for stale in home.glob(f".{self.name}.partial-*"):  # we hold the lock: nobody's
            shutil.rmtree(stale, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{self.name}.partial-", dir=home))
        try:
            report("making an environment", 0, 3)
            self._run([python.path, "-I", "-m", "venv", str(partial)], _PIP_SECONDS)
            report(f"installing {self.engine} {self.version}", 1, 3)
            self._run([str(_python_of(partial)), "-I", "-m", "pip", *self._pip()], _PIP_SECONDS)
            if self.prepare is not None:
                self.prepare(partial)
            report(f"checking {self.engine}", 2, 3)
            facts = self._checked(partial)
            stamp = {**facts, "engine": self.engine, "python": python.version}
            (partial / "stamp.json").write_text(json.dumps(stamp, indent=1, sort_keys=True))
            final = self.folder()
            if final.exists():  # broken, or status would have said ready
                shutil.rmtree(final)
            _readdress_scripts(partial, final)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        report(f"{self.engine} {self.version} is ready", 3, 3)

    def _pip(self) -> list[str]:
        # Wheels only: building a source package would fetch build tools that no hash covers.
        strict = ["--require-hashes", "--no-deps", "--only-binary", ":all:"]
        quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
        return ["install", *quiet, *strict, "--requirement", str(self.lock)]

    def _checked(self, folder: Path) -> dict[str, Any]:
        argv = [str(_python_of(folder)), "-I", "-B", str(self.check)]
        lines = self._run(argv, self.check_seconds).splitlines()
        try:
            facts = cast(dict[str, Any], json.loads(lines[-1]))
            found = str(facts["version"])
        except (ValueError, IndexError, KeyError, TypeError):
            raise EngineUnfit(
                "install-failed", f"the check of {self.engine} said nothing"
            ) from None
        if found != self.version:
            raise EngineUnfit("install-failed", f"{self.engine} {found}", expected=self.version)
        return facts

    def _run(self, argv: Sequence[str], seconds: float) -> str:
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=seconds,
                env=self.environment(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EngineUnfit("install-failed", f"no end in {seconds:g} s: {argv[3:5]}") from None
        if done.returncode:
            tail = "\n  ".join(done.stdout.strip().splitlines()[-_LOG_LINES:])
            raise EngineUnfit("install-failed", f"status {done.returncode}:\n  {tail}")
        return done.stdout

    def _why_not_installed(self) -> str:
        if find_python(self.python) is None:
            return _no_python(self.python, None)
        return f"not installed: run `sparse-export targets install {self.name}`"


def runtimes_home() -> Path:
    """Folder of all managed environments: in SPARSE_EXPORT_HOME, else in the user's cache."""
    home = os.environ.get("SPARSE_EXPORT_HOME")
    if home:
        return Path(home).absolute() / "runtimes"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sparse-export" / "runtimes"


def _no_python(wanted: PythonRange, given: str | None) -> str:
    if given:
        return f"{given} is no CPython {wanted} with venv and ensurepip"
    return f"no Python in {wanted} found"


def _python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def _readdress_scripts(partial: Path, final: Path) -> None:
    # pip writes the environment's path into the first line of each command.
    for script in (partial / "bin").iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        content = script.read_bytes()
        if content.startswith(b"#!"):
            script.write_bytes(content.replace(os.fsencode(partial), os.fsencode(final)))


def _read_stamp(folder: Path) -> dict[str, str] | None:
    try:
        stamp = json.loads((folder / "stamp.json").read_text(encoding="utf-8"))
        return {key: str(stamp[key]) for key in ("version", "python")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total
