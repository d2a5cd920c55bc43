"""Child process of one engine: loads, says so, then answers each line with seconds per token.

A line of input is `{"prompt": n, "tokens": n}`; a line of output `{"seconds": [...]}` of the
tokens that follow the first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Generate = Callable[[list[int], int], list[float]]


def main() -> None:
    """Serve until the input ends."""
    asked = json.loads(sys.argv[1])
    generate, told = ENGINES[asked["engine"]](asked)
    print(json.dumps({"ready": True, **told}), flush=True)
    for line in sys.stdin:
        want = json.loads(line)
        prompt = [3 + (i * 7919) % 997 for i in range(want["prompt"])]
        at = generate(prompt, want["tokens"])
        print(json.dumps({"first": at[0], "seconds": np.diff(at).tolist()}), flush=True)


def packed(asked: dict[str, Any]) -> tuple[Generate, dict[str, Any]]:
    """Our engine on a random plan in memory."""
    from backends.packed.engine.session import PackedSession
    from bench.engine.shape import random_plan

    head = "int8" if asked["values"] in ("int8", "int4") else "bf16"
    plan = random_plan(asked["layers"], asked["values"], asked["sparsity"], head, asked["wide"])
    session = PackedSession(plan, 0, {}, lambda: 0.0)
    told = {"megabytes": session.facts().weight_bytes / 1e6, **session.facts().extra}
    return lambda prompt, n: list(session.generate(prompt, n).seconds), told


def torch_bf16(asked: dict[str, Any]) -> tuple[Generate, dict[str, Any]]:
    """transformers in bfloat16, its cache, no compilation."""
    import os
    import time

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from bench.engine.shape import config

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with torch.device("meta"):
        net: Any = LlamaForCausalLM(LlamaConfig(**config(asked["layers"])))
    net = net.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    net.model.rotary_emb = type(net.model.rotary_emb)(net.config)
    net.eval()

    def generate(prompt: list[int], n: int) -> list[float]:
        start, at, cache, given = time.perf_counter(), [], None, torch.tensor([prompt])
        with torch.inference_mode():
            for _ in range(n):
                out = net(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, given = out.past_key_values, out.logits[:, -1:].argmax(-1)
                at.append(time.perf_counter() - start)
        return at

    bytes_ = sum(p.numel() * p.element_size() for p in net.parameters())
    return generate, {"megabytes": bytes_ / 1e6, "version": torch.__version__}


def artefact(asked: dict[str, Any]) -> tuple[Generate, dict[str, Any]]:
    """Any folder that was exported, in its own engine."""
    from backends.process.client import open_in_process

    session = open_in_process(asked["target"], Path(asked["folder"]), threads=asked["threads"])
    facts = session.facts()
    stored = facts.extra.get("file_bytes", facts.weight_bytes)
    told = {"megabytes": stored / 1e6, "version": facts.version}
    return lambda prompt, n: list(session.generate(prompt, n).seconds), told


ENGINES: dict[str, Callable[[dict[str, Any]], tuple[Generate, dict[str, Any]]]] = {
    "packed": packed,
    "torch-bf16": torch_bf16,
    "artefact": artefact,
}

if __name__ == "__main__":
    main()
