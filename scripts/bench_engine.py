"""Time whole decoders: sparse against dense twins and other engines; build/bench/engine.json."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from bench.engine.gguf_file import write_gguf
from bench.engine.run import Engine, ratio, summary, time_engines
from bench.engine.shape import VOCAB

# Name -> values, share of zeros.
OURS = {
    "bf16 70%": ("bf16", 0.7), "dense-bf16": ("bf16", 0.0),
    "int8 70%": ("int8", 0.7), "dense-int8": ("int8", 0.0), "int4 70%": ("int4", 0.7),
}  # fmt: skip
# Each group is timed in one run; pairs are (ours, against).
GROUPS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, str], ...]]] = {
    "bf16": (
        ("bf16 70%", "dense-bf16", "llama-f16"),
        (("bf16 70%", "dense-bf16"), ("bf16 70%", "llama-f16"), ("dense-bf16", "llama-f16")),
    ),
    "int8": (
        ("int8 70%", "dense-int8", "int4 70%", "llama-q8_0", "llama-q4_0"),
        (
            ("int8 70%", "dense-int8"), ("int8 70%", "llama-q8_0"), ("int8 70%", "llama-q4_0"),
            ("int4 70%", "llama-q4_0"), ("dense-int8", "llama-q8_0"),
        ),
    ),
    "others": (
        ("bf16 70%", "dense-bf16", "torch-bf16", "onnxruntime", "deepsparse"),
        tuple(("bf16 70%", each) for each in ("torch-bf16", "onnxruntime", "deepsparse")),
    ),
}  # fmt: skip


def main() -> None:
    """Run the groups and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/engine.json"))
    parser.add_argument("--groups", nargs="+", default=["bf16", "int8"], choices=list(GROUPS))
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--llama-python", type=Path, help="of an environment of llama-cpp-python")
    parser.add_argument("--onnxruntime", type=Path, help="an exported folder of this shape")
    parser.add_argument("--deepsparse", type=Path, help="an exported folder of this shape")
    parser.add_argument("--ggufs", type=Path, default=Path("build/bench/gguf"))
    given = parser.parse_args()
    found: dict[str, Any] = {"layers": given.layers, "vocab": VOCAB, "threads": given.threads}
    found |= {"ratios": [], "engines": {}}
    env = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    for group in given.groups:
        names, pairs = GROUPS[group]
        engines = [each for each in (engine(name, given) for name in names) if each]
        times = time_engines(engines, given.rounds, given.prompt, given.tokens, env)
        found["engines"][group] = {name: summary(each) for name, each in times.items()}
        for ours, against in pairs:
            if against in times:
                found["ratios"].append(line(group, ours, against, ratio(times, ours, against)))
        show(found, group)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")


def engine(name: str, given: argparse.Namespace) -> Engine | None:
    """An engine by name; None where what it needs was not given."""
    if name in OURS:
        values, sparsity = OURS[name]
        asked = {"engine": "packed", "values": values, "sparsity": sparsity, "wide": "int16"}
        return Engine(name, asked | {"layers": given.layers})
    if name == "torch-bf16":
        return Engine(name, {"engine": name, "layers": given.layers})
    if name.startswith("llama-"):
        if given.llama_python is None:
            print(f"{name} is left out: no --llama-python")
            return None
        kind = name.removeprefix("llama-").upper()
        file = given.ggufs / f"{given.layers}-{kind}.gguf"
        file.parent.mkdir(parents=True, exist_ok=True)
        made = file if file.exists() else write_gguf(file, given.layers, kind)
        return Engine(name, {"file": str(made)}, given.llama_python)
    folder = getattr(given, name)
    if folder is None:
        print(f"{name} is left out: no --{name}")
        return None
    asked = {"engine": "artefact", "target": name, "folder": str(folder)}
    return Engine(name, asked | {"threads": given.threads})


def line(group: str, ours: str, against: str, found: dict[str, float]) -> dict[str, Any]:
    """A ratio as build/bench/kernels.json has them: `ours` is "bf16 70%" or "dense-bf16"."""
    values, _, pattern = ours.partition(" ")
    return {
        "group": group,
        "pattern": pattern or "dense",
        "values": values.removeprefix("dense-"),
        "against": against,
        **found,
    }


def show(found: dict[str, Any], group: str) -> None:
    """Print a group as lines."""
    for name, each in found["engines"][group].items():
        rate = each["tokens_per_second"]
        span = f"({rate['low']:.1f} to {rate['high']:.1f})"
        first = f"{each['first_token_ms']:.0f} ms to the first"
        print(
            f"{name:12} {rate['median']:6.1f} tokens/s {span}, {first}, {each['megabytes']:.0f} MB"
        )
    for each in found["ratios"]:
        if each["group"] == group:
            span = f"({each['low']:.2f} to {each['high']:.2f})"
            head = f"  {each['values']} {each['pattern']:5} / {each['against']:11}"
            print(f"{head} {each['ratio']:.2f} {span}")


if __name__ == "__main__":
    main()
