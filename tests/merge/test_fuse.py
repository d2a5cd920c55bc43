"""Fusing against the slow float64 merge: policies, weights, replacements, ties, memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.adapters.base import Adapter
from exporter.errors import InputRefused, UsageError
from exporter.merge.fuse import fuse
from exporter.sparsity.mask import Mask
from tests.merge.world import (
    dense_delta,
    lora,
    losa,
    make_model,
    slow_merge,
    tensors_of,
    whole,
)

Q0 = "model.layers.0.self_attn.q_proj"
DOWN1 = "model.layers.1.mlp.down_proj"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def rows(model: Any, name: str) -> Any:
    tensor = model.tensors[name]
    found = tensor.rows(0, tensor.shape[0])
    assert found.shape == tensor.shape
    assert found.dtype == np.float32
    return found


def assert_close(found: Any, want: Any) -> None:
    assert np.abs(found - want).max() <= 1e-6 * np.abs(want).max()


def test_without_adapters_everything_is_copied():
    checked = make_model()
    fused = fuse(checked, [])
    assert list(fused.tensors) == list(checked.spec.tensors())
    for name, values in tensors_of(checked).items():
        np.testing.assert_array_equal(rows(fused, name), values)
        assert not fused.tensors[name].changed
    assert fused.record["policy"] == "none"
    assert not fused.branches and not fused.tied


def test_zeros_come_out_positive():
    """The model's pruned weights are stored as -0.0."""
    checked = make_model()
    for fused in (fuse(checked, []), fuse(checked, [(losa(checked, Q0), 1.0)])):
        for linear in checked.spec.linears():
            found = rows(fused, linear.weight)
            assert not np.signbit(found[found == 0]).any()


@pytest.mark.parametrize("policy", ["mask", "densify", "separate"])
def test_policies_on_a_plain_lora(policy: str):
    checked = make_model()
    adapter = lora(checked, Q0, DOWN1)
    fused = fuse(checked, [(adapter, 1.0)], policy)
    for module in (Q0, DOWN1):
        name = f"{module}.weight"
        base = tensors_of(checked)[name]
        found = rows(fused, name)
        assert_close(found, slow_merge(base, dense_delta(adapter, module), policy))
        if policy != "densify":
            assert not found[base == 0].view(np.uint32).any()
            assert fused.mask(name) == Mask.from_bool(base != 0)
        else:
            assert fused.mask(name) is None
        assert fused.tensors[name].changed is (policy != "separate")
        assert fused.record["modules"][module] == {"policy": policy, "reason": "asked for"}
    assert set(fused.branches) == ({Q0, DOWN1} if policy == "separate" else set())


def test_losa_merges_exactly_without_being_asked():
    checked = make_model()
    adapter = losa(checked, Q0, DOWN1)
    fused = fuse(checked, [(adapter, 1.0)])
    for module in (Q0, DOWN1):
        base = tensors_of(checked)[f"{module}.weight"]
        found = rows(fused, f"{module}.weight")
        assert_close(found, slow_merge(base, dense_delta(adapter, module), "exact"))
        assert not found[base == 0].any()
        assert fused.record["modules"][module] == {"policy": "exact", "reason": "masked delta"}


def test_a_dense_linear_takes_any_delta():
    checked = make_model(dense=("q",))
    adapter = lora(checked, Q0)
    fused = fuse(checked, [(adapter, 1.0)])
    base = tensors_of(checked)[f"{Q0}.weight"]
    assert_close(rows(fused, f"{Q0}.weight"), base + dense_delta(adapter, Q0))
    assert fused.mask(f"{Q0}.weight") is None
    assert fused.record["modules"][Q0]["reason"] == "dense base"


def test_a_delta_that_happens_to_be_zero_outside():
    """Measured, not trusted: B's rows are zero wherever the base has a zero."""
    checked = make_model(sparsity=0.0)
    weight = tensors_of(checked)[f"{Q0}.weight"]
    weight[3:9] = 0.0
    checked = make_model_like(checked)
    adapter = lora(checked, Q0)
    factor: Any = adapter.deltas[Q0]
    factor.b()[3:9] = 0.0
    fused = fuse(checked, [(adapter, 1.0)])
    assert fused.record["modules"][Q0] == {"policy": "exact", "reason": "measured"}
    assert_close(rows(fused, f"{Q0}.weight"), weight + dense_delta(adapter, Q0))


def make_model_like(checked: Any) -> Any:
    """The same model with its verdicts counted again."""
    from tests.merge.world import pattern_of

    tensors = tensors_of(checked)
    patterns = {
        li.module: pattern_of(li.module, tensors[li.weight]) for li in checked.spec.linears()
    }
    return replace(checked, patterns=patterns)


def test_two_adapters_with_weights():
    checked = make_model()
    one, two = lora(checked, Q0, DOWN1, seed=1), lora(checked, Q0, seed=7, rank=3)
    fused = fuse(checked, [(one, 0.5), (two, -2.0)], "mask")
    delta = 0.5 * dense_delta(one, Q0) - 2.0 * dense_delta(two, Q0)
    base = tensors_of(checked)[f"{Q0}.weight"]
    assert_close(rows(fused, f"{Q0}.weight"), slow_merge(base, delta, "mask"))
    assert [a["weight"] for a in fused.record["adapters"]] == [0.5, -2.0]


def test_branches_compute_the_delta_of_all_adapters():
    checked = make_model()
    one, two = lora(checked, Q0, seed=1), lora(checked, Q0, seed=7, rank=3)
    fused = fuse(checked, [(one, 0.5), (two, -2.0)], "separate")
    branch = fused.branches[Q0]
    assert branch.a.shape == (7, 16)
    want = 0.5 * dense_delta(one, Q0) - 2.0 * dense_delta(two, Q0)
    assert_close(branch.scale * (branch.b @ branch.a), want)
    with pytest.raises(KeyError):
        fused.branches[DOWN1]


@pytest.mark.parametrize(
    ("adapters", "policy", "words"),
    [
        (lambda m: [(losa(m, Q0), 1.0)], "separate", "mask"),
        (lambda m: [(lora(m, Q0), 1.0)], "best", "no merge policy"),
        (lambda m: [(lora(m, Q0), 0.0)], "mask", "weight"),
        (lambda m: [(lora(m, Q0), float("nan"))], "mask", "weight"),
    ],
)
def test_usage_errors(adapters: Any, policy: str, words: str):
    checked = make_model()
    with pytest.raises(UsageError) as caught:
        fuse(checked, adapters(checked), policy)
    assert (caught.value.code, words in caught.value.found) == ("usage", True)


def test_losa_under_another_mask():
    checked, other = make_model(seed=0), make_model(seed=9)
    own, trained = (tensors_of(m)[f"{Q0}.weight"] != 0 for m in (checked, other))
    with pytest.raises(InputRefused) as caught:
        fuse(checked, [(losa(other, Q0), 1.0)])
    error = caught.value
    assert (error.code, error.tensor) == ("mask-mismatch", Q0)
    assert f"prunes {np.count_nonzero(own & ~trained)}" in error.found
    assert f"keeps {np.count_nonzero(trained & ~own)}" in error.found


def test_losa_on_a_base_with_a_zero_on_a_kept_position():
    """Only a masks file can tell it from a pruned one, and the hint says so."""
    checked = make_model()
    adapter = losa(checked, Q0)
    weight = tensors_of(checked)[f"{Q0}.weight"]
    weight[tuple(np.argwhere(weight != 0)[0])] = 0.0
    with pytest.raises(InputRefused) as caught:
        fuse(checked, [(adapter, 1.0)])
    assert (caught.value.code, "--masks" in caught.value.hint) == ("mask-mismatch", True)


# --- replacements and ties -------------------------------------------------------------------


def only(*items: Any, unties: bool = False) -> Adapter:
    return Adapter("lora", "saved", {}, tuple(items), unties=unties)


def test_replaced_tensors():
    checked = make_model()
    norm = np.full(16, 7.0, np.float32)
    fused = fuse(checked, [(only(whole("model.norm.weight", norm)), 1.0)])
    np.testing.assert_array_equal(rows(fused, "model.norm.weight"), norm)
    assert fused.tensors["model.norm.weight"].changed
    assert fused.record["replaced"] == {"model.norm.weight": "modules_to_save"}


def test_added_biases_take_the_weight():
    checked = make_model(attention_bias=True)
    name = f"{Q0}.bias"
    fused = fuse(checked, [(only(whole(name, np.ones(16, np.float32), "add")), 0.5)])
    np.testing.assert_array_equal(rows(fused, name), tensors_of(checked)[name] + 0.5)


def test_head_replaced_and_adapted():
    """PEFT saves a targeted head's base beside its factors: the delta goes onto that."""
    checked = make_model()
    head = np.ones((40, 16), np.float32)
    adapter = replace(lora(checked, "lm_head"), replacements=(whole(HEAD, head),))
    fused = fuse(checked, [(adapter, 1.0)])
    assert_close(rows(fused, HEAD), 1.0 + dense_delta(adapter, "lm_head"))


def test_replaced_embedding_of_a_tied_model_is_the_head_too():
    checked = make_model(tie_word_embeddings=True)
    fused = fuse(checked, [(only(whole(EMBED, np.ones((40, 16), np.float32))), 1.0)])
    assert fused.tied and HEAD not in fused.tensors
    assert "is the head too" in fused.record["head"]


def test_an_untying_adapter():
    """PEFT's forward keeps the old head beside the new embedding (peft#2777)."""
    checked = make_model(tie_word_embeddings=True)
    new = np.ones((40, 16), np.float32)
    fused = fuse(checked, [(only(whole(EMBED, new), unties=True), 1.0)])
    assert not fused.tied
    assert list(fused.tensors)[-1] == HEAD
    np.testing.assert_array_equal(rows(fused, EMBED), new)
    np.testing.assert_array_equal(rows(fused, HEAD), tensors_of(checked)[EMBED])


@pytest.mark.parametrize("weights", [(0.5,), (1.0, 1.0)])
def test_replacing_twice_or_in_part(weights: tuple[float, ...]):
    checked = make_model()
    item = whole("model.norm.weight", np.ones(16, np.float32))
    with pytest.raises(UsageError) as caught:
        fuse(checked, [(only(item), w) for w in weights])
    assert (caught.value.code, caught.value.tensor) == ("usage", "model.norm.weight")


def test_a_bias_that_the_base_lacks():
    checked = make_model()
    with pytest.raises(InputRefused) as caught:
        fuse(checked, [(only(whole(f"{Q0}.bias", np.ones(16, np.float32), "add")), 1.0)])
    assert caught.value.code == "adapter-module"


def test_an_adapter_that_touches_nothing():
    """A merged folder that equals its base (verl#7285, unsloth#869)."""
    checked = make_model()
    with pytest.raises(InputRefused) as caught:
        fuse(checked, [(only(), 1.0)])
    assert caught.value.code == "adapter-empty"


# --- blocks ----------------------------------------------------------------------------------

WIDE = make_model(hidden_size=48, intermediate_size=200)
WIDE_UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("policy", ["mask", "densify", "separate"])
@pytest.mark.parametrize("step", [1, 7, 64, 100, 200])
def test_block_size_changes_no_bit(policy: str, step: int):
    fused = fuse(WIDE, [(lora(WIDE, WIDE_UP, rank=16), 0.3)], policy)
    tensor = fused.tensors[f"{WIDE_UP}.weight"]
    blocks = [tensor.rows(r, min(r + step, 200)) for r in range(0, 200, step)]
    np.testing.assert_array_equal(
        np.concatenate(blocks).view(np.uint32), tensor.rows(0, 200).view(np.uint32)
    )


@given(st.integers(0, 200), st.integers(0, 200))
def test_any_range_is_a_slice_of_the_whole(first: int, second: int):
    r0, r1 = sorted((first, second))
    fused = fuse(WIDE, [(losa(WIDE, WIDE_UP), 1.0)])
    tensor = fused.tensors[f"{WIDE_UP}.weight"]
    np.testing.assert_array_equal(
        tensor.rows(r0, r1).view(np.uint32), tensor.rows(0, 200)[r0:r1].view(np.uint32)
    )


def test_fusing_reads_no_weight_and_rows_read_only_theirs():
    checked = make_model()
    fused = fuse(checked, [(losa(checked, Q0), 1.0)])
    reads: Any = checked.checkpoint
    assert reads.reads == []
    fused.tensors[f"{Q0}.weight"].rows(2, 5)
    assert reads.reads == [(f"{Q0}.weight", 3)]


def test_rows_are_fresh():
    checked = make_model()
    fused = fuse(checked, [(lora(checked, Q0), 1.0)], "mask")
    tensor = fused.tensors[f"{Q0}.weight"]
    first = tensor.rows(0, 16)
    kept = first.copy()
    first[:] = 99.0
    np.testing.assert_array_equal(tensor.rows(0, 16), kept)
