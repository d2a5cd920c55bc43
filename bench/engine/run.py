"""Engines in processes of their own, asked in turn, in a new order each round."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.stats import median_interval, speedup_interval

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Engine:
    """One thing to time: `python` is None for this project's own."""

    name: str
    asked: Mapping[str, Any]
    python: Path | None = None

    def start(self, env: Mapping[str, str]) -> subprocess.Popen[str]:
        """Its process, loading."""
        own = [sys.executable, "-m", "bench.engine.worker"]
        argv = own if self.python is None else [str(self.python), str(_HERE / "llama_worker.py")]
        return subprocess.Popen(
            [*argv, json.dumps(dict(self.asked))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(env),
        )


@dataclass(frozen=True)
class Times:
    """Seconds per token of each round, of the first token (the prompt), and what ran."""

    decode: list[float]
    first: list[float]
    told: Mapping[str, Any]


def time_engines(
    engines: Sequence[Engine], rounds: int, prompt: int, tokens: int, env: Mapping[str, str]
) -> dict[str, Times]:
    """The median token of each round; one round before the first is thrown away.

    Raises:
        RuntimeError: an engine that ended.
    """
    running = {each.name: each.start(env) for each in engines}
    try:
        found = {n: Times([], [], _answer(n, process)) for n, process in running.items()}
        rng = np.random.default_rng(0)
        for turn in range(rounds + 1):
            for index in rng.permutation(len(engines)):
                name = engines[index].name
                said = _ask(name, running[name], {"prompt": prompt, "tokens": tokens})
                if turn:
                    found[name].decode.append(median(said["seconds"]))
                    found[name].first.append(said["first"])
        return found
    finally:
        for process in running.values():
            process.kill()
            process.communicate()


def _ask(name: str, process: subprocess.Popen[str], what: Mapping[str, Any]) -> dict[str, Any]:
    if process.stdin is not None:
        process.stdin.write(json.dumps(dict(what)) + "\n")
        process.stdin.flush()
    return _answer(name, process)


def _answer(name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    for line in process.stdout or ():
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(f"{name} ended")


def ratio(times: Mapping[str, Times], ours: str, against: str) -> dict[str, Any]:
    """How many times as many tokens a second as `against`, over the pairs of rounds."""
    pair = [[[t] for t in times[name].decode] for name in (against, ours)]
    found = speedup_interval(*pair, 0)
    return {"ratio": found.median, "low": found.low, "high": found.high}


def summary(times: Times) -> dict[str, Any]:
    """Tokens a second with an interval, milliseconds to the first token."""
    rate = median_interval([1 / t for t in times.decode], 0)
    return {
        "tokens_per_second": {"median": rate.median, "low": rate.low, "high": rate.high},
        "first_token_ms": 1e3 * median(times.first),
        **times.told,
    }
