"""An artefact behind `vllm serve` under concurrent clients for a set time: docs/results/served.md.

    python -m scripts.bench_served FOLDER --text FILE

Starts the server of the managed environment, sends a first few requests to learn its rate, then as
many as fill the time, by vLLM's own client. Ends with 3 where a request was lost, shortened or
answered with the text of another one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from backends.vllm.runtime import RUNTIME
from bench.looking import show_served
from bench.served import Load, ServedResult, measure_served
from scripts.vllm_server import served

_FIRST = 16
_WORDS = 60


def main() -> int:
    """Serve, load, print, write."""
    o = parse()
    with tempfile.TemporaryDirectory() as scratch:
        prompts = write_numbered(o.text, Path(scratch, "prompts.jsonl"))
        binary = RUNTIME.interpreter().with_name("vllm")
        log = o.log or Path(scratch, "server.log")
        env = RUNTIME.environment()
        with served(binary, o.folder, log, env=env, tell=lambda s, line: None) as server:
            print(f"served after {server.seconds:.0f} s", flush=True)
            load = Load(
                server.url, server.model, o.folder, _FIRST, o.clients, None,
                new_tokens=o.new_tokens, prompts=prompts, slo_ttft_ms=o.slo_ttft_ms,
                slo_tpot_ms=o.slo_tpot_ms,
            )  # fmt: skip
            result = fill(load, o.seconds)
    result = result.model_copy(update={"model": o.folder.name})
    show_served(result, o.folder.name)
    if o.json is not None:
        o.json.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return 3 if result.wrong else 0


def fill(load: Load, seconds: float) -> ServedResult:
    """As many requests as take `seconds` at the rate of a first few, and a tenth more."""
    first = measure_served(load)
    requests = math.ceil(1.1 * seconds * first.answered / first.seconds)
    print(f"{requests} requests by {load.concurrency} clients", flush=True)
    return measure_served(replace(load, requests=max(load.concurrency, requests)))


def write_numbered(text: Path, out: Path, count: int = 512) -> Path:
    """Prompts of real text that differ from their first words on, so that none can be confused."""
    words = text.read_text(encoding="utf-8").split()
    with out.open("w", encoding="utf-8") as file:
        for i in range(count):
            at = i * _WORDS % max(1, len(words) - _WORDS)
            body = " ".join(words[at : at + _WORDS])
            file.write(json.dumps({"prompt": f"Text {i} of {count}: {body}"}) + "\n")
    return out


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="where prompts are cut from")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--slo-ttft-ms", type=float, default=2000.0)
    parser.add_argument("--slo-tpot-ms", type=float, default=200.0)
    parser.add_argument("--log", type=Path, help="of the server")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
