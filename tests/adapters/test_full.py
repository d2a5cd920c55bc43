"""Full fine-tunes (LISA): differences from the base, ties, exactness, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from exporter.adapters.difference import FullDelta
from exporter.adapters.s2ft_order import write_order
from exporter.errors import UsageError
from exporter.merge.combined import CombinedDelta
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel, FusedModel
from tests.adapters.own import base_of, bits, close, load, opened, reader, refused
from tests.tiny import save_tiny

DOWN = "model.layers.1.mlp.down_proj.weight"
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CheckedModel]:
    """A sparse untied base and a dense tied one, on disk."""
    root = tmp_path_factory.mktemp("bases")
    return {
        "untied": opened(save_tiny("llama2", root / "untied", sparsity=0.6, num_hidden_layers=2)),
        "tied": opened(save_tiny("qwen2", root / "tied")),
    }


def tuned(base: CheckedModel, folder: Path, changes: dict[str, Any], **config: Any) -> Path:
    """A copy of the base whose tensors are those of `changes`."""
    shutil.copytree(base.checkpoint.root, folder)
    file = folder / "model.safetensors"
    save_file(load_file(file) | changes, file, {"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | config))
    return folder


def weights(base: CheckedModel) -> dict[str, Any]:
    return load_file(base.checkpoint.root / "model.safetensors")


def noise(values: Any, seed: int = 0, where: Any = None) -> Any:
    """Steps of every size, far below and far above the weight's own."""
    rng = np.random.default_rng(seed)
    step = rng.standard_normal(values.shape) * 10.0 ** rng.integers(-12, 4, values.shape)
    return (values + (step if where is None else step * where)).astype("f4")


def merged(fused: FusedModel) -> dict[str, Any]:
    return {n: t.rows(0, t.shape[0]) for n, t in fused.tensors.items()}


def read(folder: Path, base: CheckedModel) -> Any:
    return load(folder, base, base_of(base))


def test_lisa_on_a_sparse_base(bases: dict[str, CheckedModel], tmp_path: Path):
    """One layer, norms, both ends; masked gradients keep the zeros. Every bit comes back."""
    base, own = bases["untied"], weights(bases["untied"])
    changes = {
        n: noise(v, where=(v != 0) if "_proj" in n else None)
        for n, v in own.items()
        if "layers.1." in n or "layers" not in n
    }
    adapter = read(tuned(base, tmp_path / "lisa", changes), base)
    assert adapter.family == "full"
    assert sorted(adapter.deltas) == sorted(
        n.removesuffix(".weight") for n in changes if "_proj" in n
    )
    assert {r.tensor for r in adapter.replacements} == {n for n in changes if "_proj" not in n}
    fused = fuse(base, [(adapter, 1.0)])
    assert {d["policy"] for d in fused.record["modules"].values()} == {"exact"}
    for name, found in merged(fused).items():
        want = changes.get(name, own[name])
        assert (bits(found + np.float32(0)) == bits(want + np.float32(0))).all(), name


def test_a_fine_tune_that_filled_the_zeros(bases: dict[str, CheckedModel], tmp_path: Path):
    base, own = bases["untied"], weights(bases["untied"])
    changes = {DOWN: noise(own[DOWN])}
    adapter = read(tuned(base, tmp_path / "ft", changes), base)
    with pytest.raises(UsageError) as caught:
        fuse(base, [(adapter, 1.0)])
    assert caught.value.code == "merge-policy-needed"
    found = merged(fuse(base, [(adapter, 1.0)], "mask"))[DOWN]
    want = np.where(own[DOWN] != 0, changes[DOWN], 0)
    assert (bits(found) == bits(want.astype("f4"))).all()
    found = merged(fuse(base, [(adapter, 1.0)], "densify"))[DOWN]
    assert (found == changes[DOWN]).all()


@given(seed=st.integers(0, 10_000))
def test_bit_for_bit_where_a_sum_would_miss(seed: int):
    """`W + (V - W)` in float32 loses V where it is far below W; two addends do not."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((4, 8)).astype("f4")
    values = (rng.standard_normal((4, 8)) * 10.0 ** rng.integers(-30, 20, (4, 8))).astype("f4")
    delta = CombinedDelta("m", ((FullDelta((4, 8), reader(values)), 1.0),), False, reader(weight))
    left, right = delta.onto(weight.copy(), 0, 4)
    assert (bits(left + right) == bits(values)).all()
    close(delta.rows(0, 4), values.astype(np.float64) - weight)


def test_a_share_of_a_fine_tune(bases: dict[str, CheckedModel], tmp_path: Path):
    """Several fine-tunes, each at its weight: the difference scales; a replaced tensor does not."""
    base, own = bases["untied"], weights(bases["untied"])
    kept = own[DOWN] != 0
    step = np.random.default_rng(1).standard_normal(own[DOWN].shape)
    changes = {DOWN: (own[DOWN] + step * kept).astype("f4")}
    adapter = read(tuned(base, tmp_path / "ft", changes), base)
    found = merged(fuse(base, [(adapter, 0.7), (adapter, 0.2)]))[DOWN]
    close(found, own[DOWN] + 0.9 * step * kept)
    norm = {"model.norm.weight": own["model.norm.weight"] * 2}
    adapter = read(tuned(base, tmp_path / "norm", norm), base)
    with pytest.raises(UsageError):
        fuse(base, [(adapter, 0.7)])


def test_biases_and_a_tied_embedding(bases: dict[str, CheckedModel], tmp_path: Path):
    base, own = bases["tied"], weights(bases["tied"])
    bias = "model.layers.0.self_attn.k_proj.bias"
    changes = {n: noise(own[n]) for n in (Q, bias, base.spec.embedding)}
    adapter = read(tuned(base, tmp_path / "ft", changes), base)
    assert not adapter.unties
    fused = fuse(base, [(adapter, 1.0)])
    assert fused.tied
    found = merged(fused)
    assert all((found[n] == v).all() for n, v in changes.items())


def test_a_tie_that_training_broke(bases: dict[str, CheckedModel], tmp_path: Path):
    base, own = bases["tied"], weights(bases["tied"])
    head = {"lm_head.weight": noise(own[base.spec.embedding])}
    folder = tuned(base, tmp_path / "ft", head, tie_word_embeddings=False)
    adapter = read(folder, base)
    assert adapter.unties and [r.tensor for r in adapter.replacements] == ["lm_head.weight"]
    found = merged(fuse(base, [(adapter, 1.0)]))
    assert (found["lm_head.weight"] == head["lm_head.weight"]).all()
    assert (found[base.spec.embedding] == own[base.spec.embedding]).all()


def test_two_ends_that_are_stored_apart_and_equal(bases: dict[str, CheckedModel], tmp_path: Path):
    base, own = bases["tied"], weights(bases["tied"])
    both = dict.fromkeys(("lm_head.weight", base.spec.embedding), noise(own[base.spec.embedding]))
    folder = tuned(base, tmp_path / "ft", both, tie_word_embeddings=False)
    adapter = read(folder, base)
    assert not adapter.unties and len(adapter.replacements) == 1


def test_a_fine_tune_that_tied_the_ends(bases: dict[str, CheckedModel], tmp_path: Path):
    base, own = bases["untied"], weights(bases["untied"])
    folder = tuned(base, tmp_path / "ft", {}, tie_word_embeddings=True)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("lm_head.weight")
    save_file(tensors, file, {"format": "pt"})
    adapter = read(folder, base)
    found = merged(fuse(base, [(adapter, 1.0)]))
    assert (found["lm_head.weight"] == own[base.spec.embedding]).all()


def test_without_the_base_every_tensor_counts(bases: dict[str, CheckedModel], tmp_path: Path):
    base = bases["untied"]
    folder = tuned(base, tmp_path / "ft", {})
    assert len(load(folder, base).deltas) == len(base.spec.linears())


def test_the_base_itself_is_no_fine_tune(bases: dict[str, CheckedModel], tmp_path: Path):
    base = bases["untied"]
    refused("adapter-empty", tuned(base, tmp_path / "ft", {}), base, base=base_of(base))


def test_another_architecture(bases: dict[str, CheckedModel]):
    untied, tied = bases["untied"], bases["tied"]
    error = refused("adapter-base", tied.checkpoint.root, untied)
    assert "family" in error.found


def test_a_resized_vocabulary(bases: dict[str, CheckedModel], tmp_path: Path):
    """S2FT's code resizes to a multiple of 8 after adding a padding token."""
    base = bases["untied"]
    other = save_tiny("llama2", tmp_path / "ft", vocab_size=280)
    error = refused("adapter-base", other, base)
    assert error.found == "vocab is 280" and "resize" in error.hint


def test_a_broken_value(bases: dict[str, CheckedModel], tmp_path: Path):
    base, own = bases["untied"], weights(bases["untied"])
    own[DOWN][3, 3] = np.nan
    refused("value-not-finite", tuned(base, tmp_path / "ft", {DOWN: own[DOWN]}), base)


def test_a_pickle_is_refused(bases: dict[str, CheckedModel], tmp_path: Path):
    base = bases["untied"]
    folder = tuned(base, tmp_path / "ft", {})
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused("pickle-refused", folder, base)


def test_gpt2_whose_linears_lie_transposed(tmp_path: Path):
    base = opened(save_tiny("gpt2", tmp_path / "base"))
    folder = shutil.copytree(base.checkpoint.root, tmp_path / "ft")
    file = folder / "model.safetensors"
    name = next(n for n in load_file(file) if n.endswith("h.1.mlp.c_fc.weight"))
    values = noise(load_file(file)[name])
    save_file(load_file(file) | {name: values}, file, {"format": "pt"})
    adapter = read(folder, base)
    assert len(adapter.deltas) == 1 and not adapter.replacements
    (module,) = adapter.deltas
    found = merged(fuse(base, [(adapter, 1.0)]))[f"{module}.weight"]
    assert (bits(found) == bits(values.T)).all()
    write_order(folder, [{}] * base.spec.layers)
    refused("adapter-unsupported", folder, base)
