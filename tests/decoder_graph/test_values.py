"""What the graph computes, in onnxruntime, against transformers and against float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from backends.decoder_graph.variants import static_variant
from backends.onnxruntime.probe import probe
from backends.onnxruntime.session import OrtSession
from exporter.model import LowRank
from tests.decoder_graph.lowered import (
    lowered,
    reference_greedy,
    reference_logits,
    relative,
    tokens_of,
)
from tests.reference.slow_decoder import SlowDecoder
from tests.tiny import KINDS

IOS = ("deepsparse", "optimum")
VARIANTS: list[tuple[str, dict[str, Any]]] = [(kind, {}) for kind in KINDS] + [
    ("llama2", {"bias": True, "tied": True}),
    ("llama3", {"bias": True, "tied": False}),
    ("qwen2", {"tied": False}),
    ("qwen3", {"bias": True, "tied": True}),
    ("smollm2", {"sparsity": 0.7}),
    ("llama2", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 1e6,
            }
        },
    ),
]


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize(("kind", "tiny"), VARIANTS, ids=lambda v: str(v).replace(" ", ""))
def test_tokens_and_logits_equal_transformers(
    kind: str, tiny: dict[str, Any], io: str, tmp_path: Path
):
    model, folder = lowered(tmp_path / "out", kind, io=io, **tiny)
    session = OrtSession(folder, threads=1)
    for count, new in ((1, 16), (5, 32), (40, 32)):
        tokens = tokens_of(count, seed=count)
        generation = session.generate(tokens, new)
        assert list(generation.tokens) == reference_greedy(model, tokens, new)
        assert len(generation.seconds) == new and sorted(generation.seconds) == list(
            generation.seconds
        )
    tokens = tokens_of(30)
    wanted = reference_logits(model, tokens)
    assert relative(session.prefill(tokens), wanted) <= 1e-5
    session.prefill(tokens[:11])
    decoded = np.stack([session.decode(t) for t in tokens[11:]])
    assert relative(decoded, wanted[11:]) <= 1e-5
    session.close()


@pytest.mark.parametrize("kind", ["llama3", "qwen2", "qwen3"])
def test_logits_equal_the_float64_reference(kind: str, tmp_path: Path):
    model, folder = lowered(tmp_path, kind, bias=True)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    tokens = tokens_of(20)
    wanted, states = SlowDecoder(model.config.to_dict(), weights).feed(tokens)
    assert relative(OrtSession(folder, 1).prefill(tokens), wanted) <= 1e-5
    for key, state in probe(folder, tokens).items():
        assert relative(state, states[key]) <= 1e-5


@pytest.mark.parametrize("step", [1, 4])
def test_fixed_left_padded_window_gives_the_same(step: int, tmp_path: Path):
    """The way DeepSparse's pipeline runs the graph: static sizes, cache shifted to the left."""
    window = 48
    model, folder = lowered(tmp_path, "smollm2")
    static = static_variant(folder / "model.onnx", folder / "static.onnx", step, window)
    session = ort.InferenceSession(str(static), providers=["CPUExecutionProvider"])
    caches = {
        v.name: np.full(v.shape, 7.0, np.float32)  # what the mask hides must not matter
        for v in session.get_inputs()
        if v.name.startswith("past_key_values.")
    }
    assert all(array.shape == (1, 9, window - step, 8) for array in caches.values())
    tokens = tokens_of(24)
    rows: list[Any] = []
    for at in range(0, len(tokens), step):
        reach = np.arange(at, at + step)
        slot = np.arange(window) - (window - step) + at  # token that each window column holds
        seen = (slot[None] >= 0) & (slot[None] <= reach[:, None])
        feeds = {
            "input_ids": np.array([tokens[at : at + step]]),
            "attention_mask": (slot >= 0).astype(np.int64)[None],
            "positions": reach[None],
            "causal_mask": seen.astype(np.int64)[None, None],
            **caches,
        }
        logits, *present = session.run(None, feeds)
        caches = dict(zip(caches, (p[:, :, step:] for p in present), strict=True))
        rows.append(logits[0])
    assert relative(np.concatenate(rows), reference_logits(model, tokens)) <= 1e-5


def test_left_padded_batch_of_the_optimum_interface(tmp_path: Path):
    """Two sequences of unequal length in one batch, position_ids as optimum makes them."""
    model, folder = lowered(tmp_path, "llama3", io="optimum")
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    long, short = tokens_of(12), tokens_of(7, seed=1)
    pad = len(long) - len(short)
    mask = np.array([[1] * 12, [0] * pad + [1] * 7])
    positions = mask.cumsum(-1) - 1
    positions[mask == 0] = 1
    feeds: dict[str, Any] = {
        "input_ids": np.array([long, [0] * pad + short]),
        "attention_mask": mask,
        "position_ids": positions,
    }
    for value in session.get_inputs()[3:]:
        feeds[value.name] = np.empty((2, 2, 0, 16), np.float32)
    logits = session.run(["logits"], feeds)[0]
    assert relative(logits[0], reference_logits(model, long)) <= 1e-5
    assert relative(logits[1, pad:], reference_logits(model, short)) <= 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_low_rank_branch_equals_the_merged_weight(tied: bool, tmp_path: Path):
    import torch

    rng = np.random.default_rng(3)
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"]
    shapes = {names[0]: (64, 64), names[1]: (64, 160), names[2]: (272, 64)}
    if tied:
        del shapes["lm_head"]
    branches = {
        name: LowRank(
            rng.standard_normal((4, inner)).astype(np.float32),
            rng.standard_normal((outer, 4)).astype(np.float32),
            0.05,
        )
        for name, (outer, inner) in shapes.items()
    }
    model, folder = lowered(tmp_path, "llama2", tied=tied, bias=True, branches=branches)
    plain = reference_logits(model, tokens_of(10))
    for name, branch in branches.items():
        with torch.no_grad():
            delta = torch.from_numpy(branch.b @ branch.a * np.float32(branch.scale))
            model.get_submodule(name).weight.add_(delta)
    wanted = reference_logits(model, tokens_of(10))
    assert relative(wanted, plain) > 0.05
    assert relative(OrtSession(folder, 1).prefill(tokens_of(10)), wanted) <= 1e-5


@pytest.mark.parametrize("io", IOS)
def test_probe_shows_the_hidden_states_of_transformers(io: str, tmp_path: Path):
    import torch

    model, folder = lowered(tmp_path, "qwen3", io=io)
    before = sorted(p.name for p in folder.iterdir())
    tokens = tokens_of(8)
    states = probe(folder, tokens)
    # transformers shows the last layer after the norm only: take its input with a hook.
    last: list[Any] = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
    with torch.no_grad():
        wanted = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    hook.remove()
    assert list(states) == ["embedding", "layer.0", "layer.1", "norm"]
    for key, state in zip(states, [wanted[0], wanted[1], last[0], wanted[2]], strict=True):
        assert states[key].shape == (8, 64)
        assert relative(states[key], state[0].numpy()) <= 1e-5
    assert sorted(p.name for p in folder.iterdir()) == before
