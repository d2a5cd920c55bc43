"""A packed folder served by vLLM on a CPU against the dense folder of the same weights.

    python -m scripts.bench_vllm_cpu DENSE PACKED [PACKED...]; build/bench/vllm_cpu.json

Each folder behind `vllm serve` of the managed environment, started with the same settings. Rounds
ask every server for one answer, in an order drawn anew; while one answers, the others are stopped,
so that no thread of theirs takes a core. Decode is timed from the first token's arrival to the
last one's. Ratios are paired by round.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from backends.vllm.runtime import RUNTIME
from bench.stats import median_interval, speedup_interval
from scripts.vllm_server import Server, served
from scripts.vllm_stream import Answered, ask

_PROMPT = "The history of the city begins with a small market at a bend of the river, where"


def main() -> int:
    """Start, time, print, write."""
    given = parse()
    folders: list[Path] = [given.dense, *given.packed]
    runtime, env = RUNTIME.interpreter().with_name("vllm"), environment(given)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for folder in folders:
            log = _log(given, folder.name)
            server = stack.enter_context(
                served(runtime, folder, log, env=env, flags=given.flags.split(), tell=_silent)
            )
            stack.callback(server.resume)
            servers[folder.name] = server
            print(f"{folder.name}: served after {server.seconds:.0f} s; {told(log)}", flush=True)
            server.suspend()
        times = rounds(servers, given)
    found = result(times, given, {name: told(_log(given, name)) for name in servers})
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(found)
    return 0


def rounds(servers: dict[str, Server], given: argparse.Namespace) -> dict[str, list[Answered]]:
    """What each server answered in each round; one round before the first does not count."""
    found: dict[str, list[Answered]] = {name: [] for name in servers}
    rng, names = np.random.default_rng(0), list(servers)
    for turn in range(given.rounds + 1):
        for index in rng.permutation(len(names)):
            server = servers[names[index]]
            server.resume()
            answer = ask(server, _PROMPT, given.tokens)
            server.suspend()
            if turn:
                found[names[index]].append(answer)
        print(f"round {turn} of {given.rounds}", flush=True)
    return found


def result(
    times: dict[str, list[Answered]], given: argparse.Namespace, logs: dict[str, str]
) -> dict[str, Any]:
    """Tokens a second of each folder, and each packed one's ratio to the dense one."""
    decode = {name: [each.seconds_per_token for each in runs] for name, runs in times.items()}
    found: dict[str, Any] = {"schema": "vllm-cpu/1", "threads": given.threads}
    found |= {"bind": given.bind, "rounds": given.rounds, "tokens": given.tokens}
    found["flags"], found["ratios"] = given.flags, []
    found["servers"] = {
        name: {
            "tokens_per_second": _rate(seconds),
            "first_token_ms": 1e3 * median(each.first for each in times[name]),
            "told": logs[name],
        }
        for name, seconds in decode.items()
    }
    dense = [[seconds] for seconds in decode[given.dense.name]]
    for folder in given.packed:
        ratio = speedup_interval(dense, [[seconds] for seconds in decode[folder.name]], 0)
        line = {"new": folder.name, "against": given.dense.name, "ratio": ratio.median}
        found["ratios"].append({**line, "low": ratio.low, "high": ratio.high})
    return found


def _rate(seconds: list[float]) -> dict[str, float]:
    rate = median_interval([1 / each for each in seconds], 0)
    return {"median": rate.median, "low": rate.low, "high": rate.high}


def show(found: dict[str, Any]) -> None:
    """A table."""
    table = Table("folder", "tokens/s", "of dense", title=f"{found['threads']} threads")
    ratios = {each["new"]: each for each in found["ratios"]}
    for name, each in found["servers"].items():
        rate, ratio = each["tokens_per_second"], ratios.get(name)
        of = f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""
        table.add_row(name, f"{rate['median']:.1f} ({rate['low']:.1f} to {rate['high']:.1f})", of)
    Console(width=120).print(table)


def environment(given: argparse.Namespace) -> dict[str, str]:
    """The servers' variables; vLLM's own binding leaves one core of two idle."""
    variables = {**RUNTIME.environment(), "OMP_NUM_THREADS": str(given.threads)}
    return {**variables, "VLLM_CPU_OMP_THREADS_BIND": given.bind}


def told(log: Path) -> str:
    """What the plugin says of how linears run; empty for a dense folder."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    mine = [line.partition("sparse-export: ")[2] for line in lines if "linears run sparse" in line]
    return mine[-1] if mine else ""


def _log(given: argparse.Namespace, name: str) -> Path:
    return given.out.parent / f"vllm-cpu-{name}.log"


def _silent(seconds: float, line: str) -> None:
    del seconds, line


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dense", type=Path)
    parser.add_argument("packed", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--bind", default="nobind", help="VLLM_CPU_OMP_THREADS_BIND")
    parser.add_argument("--flags", default="", help="more flags of `vllm serve`, for all folders")
    parser.add_argument("--out", type=Path, default=Path("build/bench/vllm_cpu.json"))
    given = parser.parse_args()
    if len({folder.name for folder in (given.dense, *given.packed)}) <= len(given.packed):
        parser.error("folders of one name: their results could not be told apart")
    return given


if __name__ == "__main__":
    sys.exit(main())
