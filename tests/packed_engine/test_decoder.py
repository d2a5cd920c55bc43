"""The native step against the slow float64 decoder and transformers, over families and forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.packed.engine.target import PackedCpuTarget
from backends.packed.kernels.library import ISA_VARIABLE, library
from tests.packed_engine.slow import SlowDecoder
from tests.tiny import KINDS
from tests.vllm_target.models import PATTERNS, fused, lower, save_pruned

PROMPT = [int(t) for t in np.random.default_rng(0).integers(3, 259, 150)]


def artefact(
    folder: Path,
    kind: str,
    pattern: str = "unstructured",
    *,
    dtype: str = "float32",
    **options: Any,
) -> tuple[PackedCpuTarget, Path]:
    """A tiny pruned model, lowered."""
    fields = {"dtype": dtype, "max_position_embeddings": 256}
    source = save_pruned(kind, folder / "model", PATTERNS[pattern], **fields)
    target = PackedCpuTarget(**options)
    return target, lower(target, fused(source, target), folder / "out")


def off(found: Any, wanted: Any) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def fed(session: Any, tokens: Sequence[int], prompt: int) -> Any:
    """Logits of a prompt, then of single tokens through the cache."""
    rows = [session.prefill(tokens[:prompt])]
    return np.concatenate([*rows, *(session.decode(token)[None] for token in tokens[prompt:])])


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_gives_the_slow_logits(kind: str, tmp_path: Path):
    target, out = artefact(tmp_path, kind)
    session = target.open(out)
    slow = SlowDecoder(out).logits(PROMPT[:90])
    assert off(fed(session, PROMPT[:90], 70), slow) < 1e-5
    session.close()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    ("values", "dtype", "activations", "allowed"),
    [
        ("bf16", "bfloat16", "fp32", 1e-5),
        # A rounding that falls the other way moves what follows.
        ("bf16", "bfloat16", "int16", 1e-2),
        ("fp16", "float32", "fp32", 1e-5),
        ("int8", "float32", "int16", 1e-3),
        ("int4", "float32", "fp32", 1e-3),
    ],
)
def test_every_value_type_and_pattern(
    pattern: str, values: Any, dtype: str, activations: Any, allowed: float, tmp_path: Path
):
    target, out = artefact(tmp_path, "qwen2", pattern, dtype=dtype, values=values)
    session = replace(target, activations=activations).open(out)
    tokens, slow = PROMPT[:24], SlowDecoder(out, halves=activations == "int16")
    assert off(fed(session, tokens, 20), slow.logits(tokens)) < allowed
    session.close()


def test_a_prompt_of_several_steps_is_one_sequence(tmp_path: Path):
    """150 tokens are three steps, each of which attends to those before."""
    target, out = artefact(tmp_path, "llama3")
    session = target.open(out)
    assert off(session.prefill(PROMPT), SlowDecoder(out).logits(PROMPT)) < 1e-5
    last = session.prefill(PROMPT, logits="last")
    assert last.shape == (1, 272) and off(last, session.prefill(PROMPT)[-1:]) < 1e-6
    session.close()


@pytest.mark.parametrize("kind", ["qwen3", "smollm2"])
def test_greedy_tokens_are_those_of_transformers(kind: str, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM

    target, out = artefact(tmp_path, kind)
    net: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    session = target.open(out)
    for prompt in (PROMPT[:1], PROMPT[3:40], PROMPT[:130]):
        given = torch.tensor([prompt])
        mask = torch.ones_like(given)
        made = net.generate(
            given, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None
        )
        assert session.generate(prompt, 12).tokens == tuple(made[0, len(prompt) :].tolist())
    session.close()


def test_hidden_states_are_those_of_the_slow_decoder(tmp_path: Path):
    target, out = artefact(tmp_path, "mistral")
    found = target.probe(out, PROMPT[:70])
    assert list(found) == ["embedding", "layer.0", "layer.1", "norm"]
    for state, wanted in zip(found.values(), SlowDecoder(out).states(PROMPT[:70]), strict=True):
        assert off(state, wanted) < 1e-5


@pytest.mark.parametrize("count", [2, 5, 16])
def test_sequences_together_give_what_each_gives_alone(count: int, tmp_path: Path):
    target, out = artefact(tmp_path, "llama2")
    session: Any = target.open(out)
    prompts = [PROMPT[i : i + 1 + 7 * (i % 4)] for i in range(count)]
    together = [made.tokens for made in session.generate_batch(prompts, 8)]
    assert together == [session.generate(prompt, 8).tokens for prompt in prompts]
    session.close()


def test_instruction_sets_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target, out = artefact(tmp_path, "qwen3", head="int8")
    found = []
    for isa in library().isas():
        monkeypatch.setenv(ISA_VARIABLE, isa.label)
        session = target.open(out)
        assert session.facts().extra["isa"] == isa.label
        found.append(fed(session, PROMPT[:20], 17))
        session.close()
    assert len(found) == len(library().isas()) >= 1
    for each in found:
        assert off(each, found[0]) < 1e-4


@pytest.mark.parametrize("kind", ["llama2", "smollm2"])
def test_a_head_of_int8(kind: str, tmp_path: Path):
    """With its own tensor and tied; rounding to 8 bits is all that differs."""
    target, out = artefact(tmp_path, kind, head="int8")
    session = target.open(out)
    wanted = SlowDecoder(out).logits(PROMPT[:20])
    assert 1e-5 < off(session.prefill(PROMPT[:20]), wanted) < 1e-2
    session.close()


def test_head_sizes_that_no_register_divides(tmp_path: Path):
    fields = {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 2}
    source = save_pruned("llama2", tmp_path / "model", PATTERNS["2:4"], dtype="float32",
                         max_position_embeddings=64, **fields)  # fmt: skip
    target = PackedCpuTarget()
    out = lower(target, fused(source, target), tmp_path / "out")
    session = target.open(out)
    assert off(fed(session, PROMPT[:30], 10), SlowDecoder(out).logits(PROMPT[:30])) < 1e-5
    session.close()
