"""What a streaming merge costs beside a copy of the same files, no adapter, and peft."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Literal, cast, get_args

from pydantic import Field
from rich.table import Table

from bench.child import ChildRun, run_child
from bench.fingerprint import fingerprint
from bench.memory import lower_argv
from bench.merging.random_lora import write_random_lora
from bench.results import SCHEMA_VERSION, Fingerprint, Frozen
from exporter.contract import Progress
from exporter.errors import EngineUnfit, UsageError
from exporter.store.checkpoint import Checkpoint

Way = Literal["copy", "no adapter", "merge", "peft"]
SHARE_OF_COPY = 0.5  # the merge runs at no less than this share of the copy's speed
MORE_MEMORY = 0.10  # and needs no more than this above the export without an adapter
_HERE = Path(__file__).parent

Runner = Callable[[Sequence[str]], ChildRun]


class MergeRun(Frozen):
    """One run of one way."""

    way: Way
    seconds: float = Field(description="of the work, without the start of the interpreter")
    wall_seconds: float = Field(description="of the whole process")
    peak_rss_bytes: int


class MergeCost(Frozen):
    """Everything of one `sparse-bench merge`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["merge"] = "merge"
    model: str
    weight_bytes: int
    rank: int
    policy: str
    runs: list[MergeRun]
    speed_of_copy: float = Field(description="median of copy seconds over merge seconds, by round")
    speed_wanted: float = SHARE_OF_COPY
    memory_of_plain: float = Field(description="peak of the merge over that without an adapter")
    memory_allowed: float = 1 + MORE_MEMORY
    peft_time: float = Field(description="peft seconds over merge seconds")
    peft_memory: float = Field(description="peak of peft over that of the merge")
    reached: bool
    fingerprint: Fingerprint


def merge_cost(
    model: Path,
    rank: int = 16,
    policy: str = "mask",
    rounds: int = 3,
    progress: Progress | None = None,
    *,
    runner: Runner = run_child,
) -> MergeCost:
    """Run the four ways on `model`, each once a round in an order drawn anew; outputs are deleted.

    The adapter is a random LoRA on all linears. `merge` and `no adapter` lower to a plain
    Hugging Face folder without verification; `peft` is `merge_and_unload` and `save_pretrained`.

    Raises:
        UsageError: `usage`.
        InputRefused: a model that cannot be read.
        EngineUnfit: `engine-crashed` where one of them fails.
    """
    if rounds < 1:
        raise UsageError("usage", f"{rounds} rounds")
    machine = fingerprint()
    checkpoint = Checkpoint.open(model)
    weight_bytes = sum(e.nbytes for e in checkpoint.entries.values())
    checkpoint.close()
    runs: list[MergeRun] = []
    dice = Random(0)
    # Beside the model: the output is as large, and /tmp may be memory.
    with tempfile.TemporaryDirectory(prefix="merged-", dir=model.absolute().parent) as scratch:
        adapter = write_random_lora(model, Path(scratch) / "adapter", rank)
        for i in range(rounds):
            for j, way in enumerate(dice.sample(get_args(Way), k=4)):
                if progress is not None:
                    progress(way, 4 * i + j, 4 * rounds)
                out = Path(scratch) / "out"
                done = runner(_argv(way, model, adapter, policy, out))
                shutil.rmtree(out, ignore_errors=True)
                runs.append(_run_of(way, done))
    return _result(model, weight_bytes, rank, policy, runs, machine)


def merge_table(cost: MergeCost) -> Table:
    """A row for each way, the two bounds in the caption."""
    caption = (
        f"merge at {cost.speed_of_copy:.2f} of the copy's speed (wanted {cost.speed_wanted:g}); "
        f"peak {cost.memory_of_plain:.2f} of an export without adapter (allowed "
        f"{cost.memory_allowed:g}); peft takes {cost.peft_time:.1f}x the time and "
        f"{cost.peft_memory:.1f}x the memory"
    )
    title = f"{cost.model}: LoRA r={cost.rank} on all linears, policy {cost.policy}"
    table = Table(title=title, caption=caption)
    for head in ("", "seconds", "GB/s", "peak RSS, MB"):
        table.add_column(head, justify="right" if head else "left")
    for way in get_args(Way):
        seconds = _median(cost.runs, way, "seconds")
        table.add_row(
            way,
            f"{seconds:.2f}",
            f"{cost.weight_bytes / seconds / 1e9:.2f}",
            f"{_median(cost.runs, way, 'peak_rss_bytes') / 1e6:,.0f}",
        )
    return table


def _argv(way: Way, model: Path, adapter: Path, policy: str, out: Path) -> list[str]:
    if way == "copy":
        return [sys.executable, str(_HERE / "copy_model.py"), str(model), str(out)]
    if way == "peft":
        return [sys.executable, str(_HERE / "peft_merge.py"), str(model), str(adapter), str(out)]
    plain = lower_argv(model, "hf", out)
    return (
        plain if way == "no adapter" else [*plain, "--adapter", str(adapter), "--on-merge", policy]
    )


def _run_of(way: Way, done: ChildRun) -> MergeRun:
    if done.failed:
        raise EngineUnfit("engine-crashed", f"{way}: status {done.status}\n{done.log}")
    return MergeRun(
        way=way,
        seconds=_inner_seconds(done.log),
        wall_seconds=done.seconds,
        peak_rss_bytes=done.peak_rss_bytes,
    )


def _inner_seconds(log: str) -> float:
    """The child's own clock: a program's `seconds`, or the stages of an export, summed."""
    lines = log.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("{"))
    found, _ = json.JSONDecoder().raw_decode("\n".join(lines[first:]))
    measured = found.get("measured", found)["seconds"]
    return sum(measured.values()) if isinstance(measured, dict) else float(measured)


def _result(
    model: Path,
    weight_bytes: int,
    rank: int,
    policy: str,
    runs: list[MergeRun],
    machine: Fingerprint,
) -> MergeCost:
    def seconds(way: Way) -> list[float]:
        return [r.seconds for r in runs if r.way == way]

    speeds = [c / m for c, m in zip(seconds("copy"), seconds("merge"), strict=True)]
    speed = statistics.median(speeds)
    merged = _median(runs, "merge", "peak_rss_bytes")
    memory = merged / _median(runs, "no adapter", "peak_rss_bytes")
    pairs = zip(seconds("peft"), seconds("merge"), strict=True)
    return MergeCost(
        model=model.absolute().name,
        weight_bytes=weight_bytes,
        rank=rank,
        policy=policy,
        runs=runs,
        speed_of_copy=speed,
        memory_of_plain=memory,
        peft_time=statistics.median(p / m for p, m in pairs),
        peft_memory=_median(runs, "peft", "peak_rss_bytes") / merged,
        reached=speed >= SHARE_OF_COPY and memory <= 1 + MORE_MEMORY,
        fingerprint=machine,
    )


def _median(runs: Sequence[MergeRun], way: Way, field: str) -> float:
    return statistics.median(cast(float, getattr(r, field)) for r in runs if r.way == way)
