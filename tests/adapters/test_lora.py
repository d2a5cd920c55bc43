"""LoRA folders that are sound: scale, patterns, saved modules, biases, names."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from exporter.adapters.base import BaseIdentity
from tests.adapters.forge import (
    DIGEST,
    PREFIX,
    factors,
    read,
    simple_lora,
    spec_of,
    targeted,
    tensors_of,
    write_lora,
)


def dense(adapter, module):
    delta = adapter.deltas[module]
    return delta.rows(0, delta.shape[0])


def reference(pair, scale):
    """`scale * B A` in float64."""
    a, b = (np.asarray(v, np.float64) for v in pair)
    return scale * (b @ a)


def close(found, want):
    """Largest error against the largest value: small sums cancel, so not element by element."""
    assert found.dtype == np.float32
    assert np.abs(found - want).max() <= 1e-6 * np.abs(want).max()


def test_plain_lora(tmp_path: Path):
    spec = spec_of()
    adapter = read(simple_lora(tmp_path / "a", spec))
    pairs = factors(spec, targeted(spec, "q", "v"))
    assert set(adapter.deltas) == set(pairs)
    assert (adapter.family, adapter.name, adapter.tensors_used) == ("lora", "a", 8)
    assert adapter.facts["base_name_agrees"] is True
    assert adapter.facts["warnings"] == []
    for module, pair in pairs.items():
        close(dense(adapter, module), reference(pair, 2.0))


def test_rslora_divides_by_the_root(tmp_path: Path):
    spec = spec_of()
    adapter = read(simple_lora(tmp_path / "a", spec, use_rslora=True))
    module = targeted(spec, "q")[0]
    want = reference(factors(spec, targeted(spec, "q", "v"))[module], 8 / math.sqrt(4))
    close(dense(adapter, module), want)


def test_patterns_match_as_in_peft(tmp_path: Path):
    """First match wins; a key is an expression that ends the module's name."""
    spec = spec_of()
    q0, q1 = targeted(spec, "q")
    v0, v1 = targeted(spec, "v")
    pairs = factors(spec, [q0], 2) | factors(spec, [q1], 3) | factors(spec, [v0, v1], 4)
    folder = write_lora(
        tmp_path / "a",
        tensors_of(pairs),
        rank_pattern={r"layers\.0\.self_attn\.(q|k)_proj": 2, "q_proj": 3},
        alpha_pattern={r".*\.1\.self_attn\.v_proj": 1.5, "proj": 99},
    )
    adapter = read(folder)
    want = {q0: 8 / 2, q1: 8 / 3, v0: 8 / 4, v1: 1.5 / 4}
    for module, scale in want.items():
        close(dense(adapter, module), reference(pairs[module], scale))


@pytest.mark.parametrize(
    ("dtype", "wide"), [(ml_dtypes.bfloat16, np.float32), (np.float16, np.float32)]
)
def test_half_precision_factors_are_multiplied_in_float32(tmp_path: Path, dtype, wide):
    """A product in bfloat16 would lose the delta (torchtune#1101, peft#2321)."""
    spec = spec_of()
    modules = targeted(spec, "q", "v")
    pairs = {m: (a.astype(dtype), b.astype(dtype)) for m, (a, b) in factors(spec, modules).items()}
    adapter = read(write_lora(tmp_path / "a", tensors_of(pairs)))
    for module in modules:
        exact = [v.astype(wide) for v in pairs[module]]
        close(dense(adapter, module), reference(exact, 2.0))


def test_adapter_name_inside_is_tolerated(tmp_path: Path):
    spec = spec_of()
    pairs = factors(spec, targeted(spec, "q", "v"))
    adapter = read(write_lora(tmp_path / "a", tensors_of(pairs, ".default")))
    assert set(adapter.deltas) == set(pairs)


@pytest.mark.parametrize(
    ("target", "roles"),
    [
        ("all-linear", ("q", "k", "v", "o", "gate", "up", "down")),
        (r".*\.(gate|up)_proj", ("gate", "up")),
        (["mlp.down_proj"], ("down",)),
    ],
)
def test_targets(tmp_path: Path, target, roles):
    spec = spec_of()
    pairs = factors(spec, targeted(spec, *roles))
    adapter = read(write_lora(tmp_path / "a", tensors_of(pairs), target_modules=target))
    assert set(adapter.deltas) == set(pairs)


def test_layers_to_transform_and_exclude(tmp_path: Path):
    spec = spec_of()
    q1 = targeted(spec, "q")[1]
    folder = write_lora(
        tmp_path / "a",
        tensors_of(factors(spec, [q1])),
        layers_to_transform=[1],
        layers_pattern="layers",
        exclude_modules=["v_proj"],
    )
    assert list(read(folder).deltas) == [q1]


def test_fan_in_fan_out_is_ignored_with_a_warning(tmp_path: Path):
    """As PEFT does on nn.Linear; a transposed merge would be wrong or not even fit."""
    spec = spec_of()
    plain, turned = (
        read(simple_lora(tmp_path / str(flag), spec, fan_in_fan_out=flag)) for flag in (False, True)
    )
    module = targeted(spec, "v")[0]
    np.testing.assert_array_equal(dense(plain, module), dense(turned, module))
    assert "fan_in_fan_out" in turned.facts["warnings"][0]


def test_lora_on_an_untied_head_and_its_saved_base(tmp_path: Path):
    """PEFT saves the head's own weight beside the factors when the head is targeted."""
    spec = spec_of()
    tensors = tensors_of(factors(spec, ["lm_head"]))
    head = np.arange(640, dtype=np.float32).reshape(40, 16)
    tensors[f"{PREFIX}lm_head.base_layer.weight"] = head
    adapter = read(write_lora(tmp_path / "a", tensors, target_modules=["lm_head"]))
    assert list(adapter.deltas) == ["lm_head"]
    (item,) = adapter.replacements
    assert (item.tensor, item.why, adapter.tensors_used) == ("lm_head.weight", "saved embedding", 3)
    np.testing.assert_array_equal(item.rows(0, 40), head)


def test_saved_modules_become_replacements(tmp_path: Path):
    """modules_to_save was ignored elsewhere (vllm#9280, llama.cpp#11554)."""
    spec = spec_of()
    tensors = tensors_of(factors(spec, targeted(spec, "q", "v")))
    norm = np.full(16, 3.0, np.float32)
    for name in ("norm", "layers.0.input_layernorm"):
        tensors[f"{PREFIX}model.{name}.weight"] = norm
    tensors[f"{PREFIX}lm_head.weight"] = np.ones((40, 16), np.float32)
    adapter = read(write_lora(tmp_path / "a", tensors, modules_to_save=["norm", "lm_head"]))
    assert {r.tensor: (r.why, r.mode) for r in adapter.replacements} == {
        "lm_head.weight": ("modules_to_save", "replace"),
        "model.layers.0.input_layernorm.weight": ("modules_to_save", "replace"),
        "model.norm.weight": ("modules_to_save", "replace"),
    }
    assert adapter.unties is False


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_saved_biases(tmp_path: Path, bias: str):
    spec = spec_of(attention_bias=True)
    tensors = tensors_of(factors(spec, targeted(spec, "q", "v")))
    with_bias = targeted(spec, "q", "v") if bias == "lora_only" else targeted(spec, *"qkvo")
    sizes = {li.module: li.out_features for li in spec.linears()}
    for module in with_bias:
        inner = ".base_layer" if module.endswith(("q_proj", "v_proj")) else ""
        tensors[f"{PREFIX}{module}{inner}.bias"] = np.ones(sizes[module], np.float32)
    adapter = read(write_lora(tmp_path / "a", tensors, bias=bias), spec)
    assert {r.tensor for r in adapter.replacements} == {f"{m}.bias" for m in with_bias}


def test_lora_bias_is_scaled_and_added(tmp_path: Path):
    spec = spec_of(attention_bias=True)
    q = targeted(spec, "q")
    tensors = tensors_of(factors(spec, q))
    for module in q:
        tensors[f"{PREFIX}{module}.lora_B.bias"] = np.full(16, 0.5, np.float32)
    folder = write_lora(tmp_path / "a", tensors, lora_bias=True, target_modules=["q_proj"])
    adapter = read(folder, spec)
    assert [r.mode for r in adapter.replacements] == ["add", "add"]
    np.testing.assert_array_equal(adapter.replacements[0].rows(0, 16), np.ones(16))


@pytest.mark.parametrize(
    ("ends", "ensure", "saved", "tensors", "unties"),
    [
        (("embed",), True, ["embed_tokens"], {"model.embed_tokens.weight"}, False),
        (("head",), True, ["lm_head"], {"model.embed_tokens.weight"}, False),
        (("embed", "head"), True, ["embed_tokens"], {"model.embed_tokens.weight"}, False),
        (("embed",), False, ["embed_tokens"], {"model.embed_tokens.weight"}, True),
        (("head",), False, ["lm_head"], {"lm_head.weight"}, True),
        (("embed", "head"), False, ["embed_tokens", "lm_head"],
         {"model.embed_tokens.weight"}, False),
        (("embed", "head"), False, [], {"model.embed_tokens.weight"}, False),
        (("embed",), False, [], {"model.embed_tokens.weight"}, False),
    ],
)  # fmt: skip
def test_replaced_ends_of_a_tied_base(tmp_path: Path, ends, ensure, saved, tensors, unties):
    """One tensor for both ends where PEFT's forward uses one; untied where it does not."""
    spec = spec_of(tie_word_embeddings=True)
    stored = tensors_of(factors(spec, targeted(spec, "q", "v")))
    names = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight"}
    for end in ends:
        stored[PREFIX + names[end]] = np.ones((40, 16), np.float32)
    folder = write_lora(tmp_path / "a", stored, modules_to_save=saved, ensure_weight_tying=ensure)
    adapter = read(folder, spec)
    assert {r.tensor for r in adapter.replacements} == tensors
    assert adapter.unties is unties


def test_differing_ends_untie_where_nothing_says_otherwise(tmp_path: Path):
    spec = spec_of(tie_word_embeddings=True)
    stored = tensors_of(factors(spec, targeted(spec, "q", "v")))
    stored[f"{PREFIX}model.embed_tokens.weight"] = np.ones((40, 16), np.float32)
    stored[f"{PREFIX}lm_head.weight"] = np.zeros((40, 16), np.float32)
    saved = ["embed_tokens", "lm_head"]
    adapter = read(write_lora(tmp_path / "a", stored, modules_to_save=saved), spec)
    assert adapter.unties and len(adapter.replacements) == 2


def test_another_base_name_is_a_warning(tmp_path: Path):
    folder = simple_lora(tmp_path / "a", spec_of())
    adapter = read(folder, base=BaseIdentity("/models/other-base", lambda: DIGEST))
    assert adapter.facts["base_named"] == "tiny-base"
    assert "other-base" in adapter.facts["base_warning"]


def test_a_recorded_digest_is_compared(tmp_path: Path):
    folder = simple_lora(tmp_path / "a", spec_of(), base_sha256=DIGEST)
    assert read(folder).facts["base_digest"] == DIGEST


def test_newer_peft_with_options_off_is_read(tmp_path: Path):
    """Every key of a config that PEFT 0.21 writes, and new ones that are switched off."""
    off = {"some_new_flag": False, "some_new_config": None, "some_new_list": [], "new_map": {}}
    harmless = {"auto_mapping": {"x": "y"}, "inference_mode": True, "peft_version": "0.99",
                "revision": "main", "lora_dropout": 0.1, "megatron_core": "megatron.core",
                "qalora_group_size": 16, "init_lora_weights": "gaussian"}  # fmt: skip
    assert read(simple_lora(tmp_path / "a", spec_of(), **off, **harmless)).deltas
