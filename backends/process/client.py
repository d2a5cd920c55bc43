"""A Session whose engine runs in a process of its own: `ProcessSession`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from backends.base import Facts, Generation, Session
from backends.process import wire
from backends.process.serve import WIRE_VARIABLE
from exporter.errors import CATALOGUE, EngineUnfit
from exporter.store.dtypes import F32

_CLOSE_SECONDS = 5.0
_LOG_LINES = 12
_Message = tuple[dict[str, Any], dict[str, Any]]


class ProcessSession:
    """Runs `argv`, a program that calls `backends.process.serve.serve`, and speaks to it.

    Args:
        argv: the program; it inherits two pipes, its output goes to the log.
        env: its whole environment; None for ours.
        startup_timeout: seconds until the engine is loaded.
        call_timeout: seconds for one call.
        log_path: file for what the engine prints; None for a temporary one.

    Raises:
        EngineUnfit: `engine-crashed`, `engine-timeout`, or what the program reports
            (`engine-refused`, `engine-unfit`, ...). After any of them the process is gone.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        startup_timeout: float = 600.0,
        call_timeout: float = 600.0,
        log_path: Path | None = None,
    ) -> None:
        self._call_timeout = call_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._log_path, self._own_log = _log_file(log_path)
        try:
            self._start(argv, os.environ if env is None else env)
            header, _ = self._receive(startup_timeout, "starting")
            self._max_tokens = int(header["max_tokens"])
            self.max_batch = int(header.get("max_batch", 1))
        except BaseException:
            self._end()
            raise

    @property
    def max_tokens(self) -> int:
        """Longest sequence, prompt and answer together."""
        return self._max_tokens

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None once it has ended."""
        return self._process.pid if self._process else None

    def prefill(self, tokens: Sequence[int], *, logits: Literal["all", "last"] = "all") -> F32:
        """As `Session.prefill`."""
        request = {"op": "prefill", "tokens": [int(t) for t in tokens], "logits": logits}
        return cast(F32, self._call(request)[1]["logits"])

    def decode(self, token: int) -> F32:
        """As `Session.decode`."""
        return cast(F32, self._call({"op": "decode", "token": int(token)})[1]["logits"])

    def generate(self, tokens: Sequence[int], n: int) -> Generation:
        """As `Session.generate`; the clock runs inside the engine's process."""
        request = {"op": "generate", "tokens": [int(t) for t in tokens], "n": int(n)}
        header = self._call(request)[0]
        return Generation(tuple(header["tokens"]), tuple(header["seconds"]))

    def generate_batch(self, prompts: Sequence[Sequence[int]], n: int) -> list[Generation]:
        """As `Batches.generate_batch`, where `max_batch` is above 1."""
        plain = [[int(t) for t in prompt] for prompt in prompts]
        header = self._call({"op": "generate_batch", "prompts": plain, "n": int(n)})[0]
        pairs = zip(header["tokens"], header["seconds"], strict=True)
        return [Generation(tuple(tokens), tuple(seconds)) for tokens, seconds in pairs]

    def facts(self) -> Facts:
        """As `Session.facts`; memory and load time are those of the engine's process."""
        return Facts(**self._call({"op": "facts"})[0]["facts"])

    def close(self) -> None:
        """Ask the process to end, and kill it if it does not. May be called twice."""
        if self._process is not None:
            try:
                wire.send(self._write_fd, {"op": "close"}, {})
                self._process.wait(_CLOSE_SECONDS)
            except (OSError, subprocess.TimeoutExpired):
                pass  # killed below
        self._end()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        child_read, self._write_fd = os.pipe()
        self._read_fd, child_write = os.pipe()
        # The kernel ties the child to the thread that starts it, so only the main thread may ask.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        variables = {**env, WIRE_VARIABLE: f"{child_read},{child_write},{parent}"}
        try:
            with self._log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    list(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=variables,
                    pass_fds=(child_read, child_write),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(self._read_fd)
            os.close(self._write_fd)
            raise EngineUnfit("engine-missing", f"cannot start {argv[0]}: {error}") from error
        finally:
            os.close(child_read)
            os.close(child_write)

    def _call(self, request: dict[str, Any]) -> _Message:
        if self._process is None:
            raise EngineUnfit("engine-crashed", "the engine's process has ended already")
        try:
            wire.send(self._write_fd, request, {})
        except BrokenPipeError:
            self._crashed(str(request["op"]))
        except BaseException:
            self._end()
            raise
        return self._receive(self._call_timeout, str(request["op"]))

    def _receive(self, timeout: float, doing: str) -> _Message:
        try:
            header, arrays = wire.receive(self._read_fd, timeout)
        except wire.WireTimeout:
            tail = self._end()
            raise EngineUnfit(
                "engine-timeout", f"{doing}: no answer in {timeout:g} s{tail}"
            ) from None
        except EOFError:
            self._crashed(doing)
        except wire.WireError as error:
            tail = self._end()
            raise EngineUnfit("engine-crashed", f"{doing}: {error}{tail}") from None
        except BaseException:  # an interrupt leaves half an answer in the pipe
            self._end()
            raise
        if "error" in header:
            self._raise_reported(header["error"], doing)
        return header, arrays

    def _raise_reported(self, error: Mapping[str, str], doing: str) -> NoReturn:
        if doing == "starting":
            self._end()
        code = error["code"] if error["code"] in CATALOGUE else "engine-refused"
        raise EngineUnfit(code, error["message"])

    def _crashed(self, doing: str) -> NoReturn:
        process = self._process
        how = "the process is gone"
        if process is not None:
            try:
                how = _how_it_ended(process.wait(_CLOSE_SECONDS))
            except subprocess.TimeoutExpired:
                how = "it closed its pipe"
        tail = self._end()
        raise EngineUnfit("engine-crashed", f"{doing}: {how}{tail}")

    def _end(self) -> str:
        """Kill what is left of the process group, close everything; the log's last lines."""
        process, self._process = self._process, None
        tail = _tail(self._log_path)
        if process is not None:
            # It may have ended already (macOS says EPERM for a group of zombies).
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(self._read_fd)
            os.close(self._write_fd)
        if self._own_log:
            self._log_path.unlink(missing_ok=True)
        return tail


def open_in_process(target: str, folder: Path, *, threads: int | None = None) -> Session:
    """Run an artefact of any target in a process of its own.

    Args:
        target: as given to --target, with its options.

    Raises:
        UsageError: `unknown-target`, `target-option`.
        EngineUnfit: as `Target.open`, and what can happen to the process.
    """
    from exporter.registry import load_target, parse_target

    name, options = parse_target(target)
    chosen = load_target(name, options)
    if getattr(chosen, "own_process", False):
        return chosen.open(folder, threads=threads)
    host = Path(__file__).with_name("host.py")
    # By its path: `-m` would put the user's current folder first on the import path.
    return ProcessSession([sys.executable, str(host), target, str(folder), str(threads or 0)])


def _log_file(path: Path | None) -> tuple[Path, bool]:
    if path is not None:
        return path, False
    handle, name = tempfile.mkstemp(prefix="sparse-export-", suffix=".log")
    os.close(handle)
    return Path(name), True


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"the process ended with status {status}"
    try:
        return f"the process was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"the process was killed by signal {-status}"


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 8192))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    plain = re.sub(r"\x1b\[[0-9;]*m|[^\x20-\x7e\n]", "", text)
    lines = [line for line in plain.splitlines() if line.strip()][-_LOG_LINES:]
    return "".join(f"\n  engine: {line}" for line in lines)
