"""Checkpoints of S2FT's public code: permuted, fused, and read back in the base's order."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from exporter.adapters.s2ft_order import LayerOrder, axes_of, write_order
from exporter.adapters.s2ft_permuted import unpermuted
from exporter.errors import InputRefused
from exporter.merge.fuse import fuse
from tests.adapters.forge import mend_json, spec_of
from tests.adapters.own import base_of, load, opened, reader, refused
from tests.tiny import save_tiny

TOKENS = torch.arange(3, 27).reshape(2, 12)


def permute_layer(layer: Any, ffn: list[int], heads: list[int], kv: list[int], dim: int) -> None:
    """What the public code does to one layer, head by head; its biases too, which it forgets."""

    def rows(linear: Any, order: list[int], size: int) -> None:
        for values in (linear.weight, linear.bias):
            if values is not None:
                parts = values.data.split(size)
                values.data = torch.cat([parts[i] for i in order])

    def columns(linear: Any, order: list[int], size: int) -> None:
        parts = linear.weight.data.split(size, dim=1)
        linear.weight.data = torch.cat([parts[i] for i in order], dim=1)

    rows(layer.self_attn.q_proj, heads, dim)
    rows(layer.self_attn.k_proj, kv, dim)
    rows(layer.self_attn.v_proj, kv, dim)
    columns(layer.self_attn.o_proj, heads, dim)
    rows(layer.mlp.gate_proj, ffn, 1)
    rows(layer.mlp.up_proj, ffn, 1)
    columns(layer.mlp.down_proj, ffn, 1)


def legal(heads: int, kv: int, rng: Any) -> tuple[list[int], list[int]]:
    """Groups moved as a whole, query heads shuffled inside each."""
    groups, size = rng.permutation(kv).tolist(), heads // kv
    order = [int(g * size + i) for g in groups for i in rng.permutation(size)]
    return order, groups


class Trained:
    """A base, and a checkpoint of it that was permuted and then trained on leading channels."""

    def __init__(self, root: Path, kind: str, **options: Any) -> None:
        self.base = opened(save_tiny(kind, root / "base", **options))
        self.folder = root / "s2ft"
        plain: Any = AutoModelForCausalLM.from_pretrained(self.base.checkpoint.root)
        model = copy.deepcopy(plain)
        config, rng = model.config, np.random.default_rng(0)
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.orders: list[dict[str, Any]] = []
        for layer in model.model.layers:
            ffn = rng.permutation(config.intermediate_size).tolist()
            heads, kv = legal(config.num_attention_heads, config.num_key_value_heads, rng)
            permute_layer(layer, ffn, heads, kv, dim)
            self.orders.append({"ffn": ffn, "heads": heads})
        with torch.no_grad():
            self.before = model(TOKENS).logits, plain(TOKENS).logits
            for layer in model.model.layers:
                layer.mlp.down_proj.weight[:, :5] += torch.randn(config.hidden_size, 5)
                layer.mlp.up_proj.weight[2:6] += torch.randn(4, config.hidden_size)
                layer.self_attn.o_proj.weight[:, :dim] += torch.randn(config.hidden_size, dim)
            self.logits = model(TOKENS).logits
        model.save_pretrained(self.folder)
        write_order(self.folder, self.orders, self.base.checkpoint.identity())


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """MHA; GQA with biases and a tied head; GQA with a head size of its own."""
    torch.manual_seed(0)
    return {
        kind: Trained(tmp_path_factory.mktemp(kind), kind, **options)
        for kind, options in {"llama2": {}, "qwen2": {}, "qwen3": {"bias": True}}.items()
    }


@pytest.mark.parametrize("kind", ["llama2", "qwen2", "qwen3"])
def test_read_back_in_the_base_order(cases: dict[str, Trained], kind: str):
    case = cases[kind]
    permuted, plain = case.before
    assert (permuted - plain).abs().max() < 1e-4 * plain.abs().max()  # a legal order
    adapter = load(case.folder, case.base, base_of(case.base))
    assert adapter.family == "s2ft-permuted"
    touched = {m.rpartition(".")[2] for m in adapter.deltas}
    assert touched == {"down_proj", "up_proj", "o_proj"}
    assert not adapter.replacements  # biases, norms and embedding came back as they were
    for layer, orders in enumerate(case.orders):
        module = f"model.layers.{layer}.mlp.down_proj"
        fused = fuse(case.base, [(adapter, 1.0)]).tensors[f"{module}.weight"]
        moved = fused.rows(0, fused.shape[0]) != case.base.checkpoint.rows(f"{module}.weight")
        assert sorted(np.flatnonzero(moved.any(axis=0)).tolist()) == sorted(orders["ffn"][:5])


@pytest.mark.parametrize("kind", ["llama2", "qwen2", "qwen3"])
def test_computes_what_was_trained(cases: dict[str, Trained], kind: str):
    """The permuted model's own forward against the base order's, both in float64."""
    case = cases[kind]
    fused = fuse(case.base, [(load(case.folder, case.base, base_of(case.base)), 1.0)])
    trained: Any = AutoModelForCausalLM.from_pretrained(case.folder).double()
    ours: Any = AutoModelForCausalLM.from_pretrained(case.base.checkpoint.root).double()
    values = {n: torch.from_numpy(t.rows(0, t.shape[0])) for n, t in fused.tensors.items()}
    ours.load_state_dict(values, strict=False)
    with torch.no_grad():
        want, found = trained(TOKENS).logits, ours(TOKENS).logits
    assert (found - want).abs().max() <= 1e-9 * want.abs().max()
    assert (case.before[1] - want).abs().max() > 1e-2 * want.abs().max()


def test_the_order_of_another_checkpoint(cases: dict[str, Trained], tmp_path: Path):
    """q, k and gate do not come back, which no training of S2FT explains."""
    case = cases["llama2"]
    path = case.folder / "s2ft_order.json"
    text = path.read_text()
    try:
        mend_json(path, layers=[{"ffn": o["ffn"][::-1]} for o in case.orders], base_sha256=None)
        error = refused("adapter-base", case.folder, case.base, base=base_of(case.base))
        assert "never trains" in error.found
        mend_json(path, layers=case.orders[:1])
        refused("adapter-invalid", case.folder, case.base)
        mend_json(path, layers=case.orders, base_sha256="00" * 32)
        refused("adapter-base", case.folder, case.base)
        mend_json(path, layers=[{"ffn": [0, 0, 1]}] * 2)
        refused("permutation-invalid", case.folder, case.base)
    finally:
        path.write_text(text)


GQA = spec_of(num_attention_heads=8, num_key_value_heads=4, hidden_size=32)


@pytest.mark.parametrize(
    "order",
    [
        {"heads": [1, 2, 0, 3, 4, 5, 6, 7]},  # across groups
        {"heads": [2, 3, 0, 1, 4, 5, 6, 7], "kv_heads": [0, 1, 2, 3]},  # k and v left behind
        {"kv_heads": [1, 0, 2, 3]},  # q left behind
        {"heads": [0, 1, 2, 3]},  # not each head once
    ],
)
def test_orders_that_change_the_output(order: dict[str, Any]):
    with pytest.raises(InputRefused) as caught:
        axes_of(LayerOrder(**order), GQA, "order", 0)
    assert caught.value.code == "permutation-invalid"


def test_the_illegal_order_does_change_the_output(tmp_path: Path):
    """The rule is not a formality: query heads swapped across groups compute something else."""
    model: Any = AutoModelForCausalLM.from_pretrained(save_tiny("mistral", tmp_path / "m"))
    with torch.no_grad():
        want = model(TOKENS).logits
        size = model.config.intermediate_size
        permute_layer(model.model.layers[0], list(range(size)), [0, 2, 1, 3], [0, 1], 16)
        found = model(TOKENS).logits
    assert (found - want).abs().max() > 1e-2 * want.abs().max()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_permute_then_unpermute_is_the_identity(seed: int):
    rng = np.random.default_rng(seed)
    spec = spec_of(num_attention_heads=8, num_key_value_heads=4, hidden_size=32, mlp_bias=True)
    axes = [
        axes_of(
            LayerOrder(ffn=rng.permutation(spec.intermediate).tolist(), heads=legal(8, 4, rng)[0]),
            spec,
            "order",
            i,
        )
        for i in range(spec.layers)
    ]
    values = {n: rng.standard_normal(s).astype("f4") for n, s in spec.tensors().items()}
    moved = dict(values)
    for linear in spec.linears():
        rows, columns = axes[linear.layer].of(linear.role)
        weight = values[linear.weight]
        weight = weight if rows is None else weight[rows]
        moved[linear.weight] = weight if columns is None else weight[:, columns]
        if f"{linear.module}.bias" in values and rows is not None:
            moved[f"{linear.module}.bias"] = values[f"{linear.module}.bias"][rows]
    readers = unpermuted(lambda name: reader(moved[name]), axes, spec)
    for name, want in values.items():
        assert (readers(name)(0, len(want)) == want).all(), name
        assert (readers(name)(3, 7) == want[3:7]).all(), name
