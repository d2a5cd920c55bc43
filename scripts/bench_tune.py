"""What a training step costs at hidden 2048: S2FT, LoSA's masked step, peft's LoRA, full tuning.

`python -m scripts.bench_tune [--rounds N] [--zeros SHARE] [-o FILE]`. All methods train in one
process, one step of each in turn, so that a change of the machine's speed meets all of them; ratios
are medians over rounds. The peak memory of each is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from exporter.check.model import check_model
from exporter.memory import peak_rss_bytes
from exporter.store.checkpoint import Checkpoint
from harness.compare.matrix import s2ft_share
from harness.hf import load_float32
from harness.methods.base import Adaptation, Base
from harness.methods.loop import Loop
from harness.methods.options import Training
from harness.methods.registry import METHODS, TrainMethod
from harness.methods.settings import parse_settings

CHEAP = "losa:gradient=cheap"
NAMES = ("lora", "s2ft", "losa", CHEAP, "full")
LAYERS, HIDDEN, INNER, TOKENS, RANK = 2, 2048, 5504, 256, 16
TRAINING = Training(steps=10_000, batch=1, length=TOKENS, lr=1e-4, save_every=0)


def make_model(folder: Path, zeros: float) -> None:
    """A random Llama of `LAYERS` blocks, a share of `zeros` in every linear."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=TOKENS,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                weight.mul_(torch.rand(weight.shape) >= zeros)
    model.save_pretrained(folder)


def attach(folder: Path, name: str) -> Adaptation:
    """One method on the model in `folder`; LoRA, LoSA and S2FT of equal parameters."""
    checked = check_model(Checkpoint.open(folder))
    share = s2ft_share(checked.spec, RANK)
    name, *given = name.split(":")
    texts = {"s2ft": (f"o={share}", f"down={share}"), "full": ()}.get(name, (f"rank={RANK}",))
    texts = (*texts, *given)
    entry = METHODS[TrainMethod(name)]
    kind, make = entry.load()
    settings = parse_settings(kind, texts, name)
    base = Base(load_float32(folder), checked, TRAINING)
    if entry.kind == "rounds":
        rounds = make(settings, False)
        return rounds.attach(base, rounds.sizes(checked, [], 1), {})
    return make(base, settings, rows()) if entry.kind == "data" else make(base, settings)


def rows() -> Any:
    """Windows of token ids `[8, TOKENS]`."""
    return np.random.default_rng(0).integers(0, 512, (8, TOKENS))


def stepper(adaptation: Adaptation) -> Callable[[int], None]:
    """What makes one optimiser step."""
    loop: Any = Loop(adaptation, rows(), TRAINING)
    windows = rows()
    return lambda step: loop._step(step, windows[step % 8 : step % 8 + 1])


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of each step by method, interleaved, and trained parameters."""
    made = {name: attach(folder, name) for name in NAMES}
    steps = {name: stepper(adaptation) for name, adaptation in made.items()}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(rounds + 2):  # the first two warm up
        order = NAMES if turn % 2 else NAMES[::-1]
        for name in order:
            start = time.perf_counter()
            steps[name](turn)
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    counts = {n: sum(p.numel() for p in m.trained.values()) for n, m in made.items()}
    return {"seconds": seconds, "trainable": counts}


def peak(folder: Path, name: str) -> int:
    """Peak resident bytes of a process that makes three steps, less one that only loads."""
    code = "import sys; from scripts.bench_tune import child; child(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), name], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


def child(folder: str, name: str) -> None:
    """Three steps in this process; prints the peak resident bytes."""
    step = stepper(attach(Path(folder), name))
    for turn in range(3):
        step(turn)
    print(peak_rss_bytes())


def report(found: dict[str, Any]) -> dict[str, Any]:
    """Medians, ratios by round, memory."""
    seconds, peaks = found["seconds"], found["peak_bytes"]

    def ratio(a: str, b: str) -> float:
        return median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

    return {
        "shape": {"layers": LAYERS, "hidden": HIDDEN, "intermediate": INNER, "tokens": TOKENS},
        "rank": RANK,
        "zeros": found["zeros"],
        "trainable": found["trainable"],
        "seconds_per_step": {name: median(values) for name, values in seconds.items()},
        "seconds": seconds,
        "peak_bytes": peaks,
        "s2ft_over_lora_time": ratio("s2ft", "lora"),
        "s2ft_over_full_time": ratio("s2ft", "full"),
        "losa_over_lora_time": ratio("losa", "lora"),
        "losa_cheap_over_lora_time": ratio(CHEAP, "lora"),
        "s2ft_over_full_memory": peaks["s2ft"] / peaks["full"],
        "s2ft_over_lora_memory": peaks["s2ft"] / peaks["lora"],
    }


def main() -> int:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--zeros", type=float, default=0.5, help="share of zeros in every linear")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "model")
        make_model(folder, arguments.zeros)
        found = measure(folder, arguments.rounds) | {"zeros": arguments.zeros}
        found["peak_bytes"] = {name: peak(folder, name) for name in NAMES}
    text = json.dumps(report(found), indent=2) + "\n"
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
