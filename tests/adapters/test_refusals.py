"""Each way in which a LoRA folder can be wrong: typed, with file and tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.adapters.base import BaseIdentity
from exporter.errors import InputRefused
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

Q0 = "model.layers.0.self_attn.q_proj"


def refusal(folder: Path, spec: Any = None, base: Any = None) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        read(folder, spec, *([base] if base else []))
    assert caught.value.exit_code == 3
    return caught.value


def sound() -> dict[str, Any]:
    spec = spec_of()
    return tensors_of(factors(spec, targeted(spec, "q", "v")))


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("alora_invocation_tokens", [5]),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"beta": 1}),
        ("monteclora_config", {"num_samples": 8}),
        ("velora_config", {"num_groups": 64}),
        ("megatron_config", {"x": 1}),
        ("an_option_of_2030", 0.5),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "lora_ga"),
    ],
)
def test_options_that_change_the_result(tmp_path: Path, key: str, value: Any):
    error = refusal(simple_lora(tmp_path / "a", spec_of(), **{key: value}))
    assert error.code == "adapter-option"
    assert key in error.found
    assert error.file == "a/adapter_config.json"


@pytest.mark.parametrize("kind", ["OFT", "PREFIX_TUNING", "XLORA", "C3A", "NEW"])
def test_other_families_are_named(tmp_path: Path, kind: str):
    error = refusal(simple_lora(tmp_path / "a", spec_of(), peft_type=kind))
    assert (error.code, kind in error.found) == ("adapter-unsupported", True)
    assert ("tokens" in error.hint) == (kind == "PREFIX_TUNING")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"r": 0}, "adapter-invalid"),
        ({"r": -4}, "adapter-invalid"),
        ({"r": 4.0}, "adapter-invalid"),
        ({"r": True}, "adapter-invalid"),
        ({"r": 1 << 20}, "limit-exceeded"),
        ({"rank_pattern": {"q_proj": 0}}, "adapter-invalid"),
        ({"lora_alpha": "8"}, "adapter-invalid"),
        ({"bias": "some"}, "adapter-invalid"),
        ({"target_modules": 3}, "adapter-invalid"),
        ({"rank_pattern": [1]}, "adapter-invalid"),
        ({"alpha_pattern": {"(": 1}}, "adapter-invalid"),
        ({"target_modules": "(a+)+x"}, "adapter-invalid"),
        ({"target_modules": "(a|a)*x"}, "adapter-invalid"),
        ({"target_modules": "(a{2,})" * 7}, "adapter-invalid"),
        ({"target_modules": ".?" * 30 + "x"}, "adapter-invalid"),
        ({"target_modules": "x" * 9000}, "adapter-invalid"),
        ({"target_modules": r"(q)\1"}, "adapter-invalid"),
        ({"peft_type": None}, "adapter-invalid"),
        ({"lora_alpha": 0}, "adapter-empty"),
    ],
)
def test_numbers_and_types(tmp_path: Path, changes: dict[str, Any], code: str):
    assert refusal(simple_lora(tmp_path / "a", spec_of(), **changes)).code == code


# --- files -----------------------------------------------------------------------------------


def test_no_folder(tmp_path: Path):
    assert refusal(tmp_path / "none").code == "input-missing"


def test_a_file_instead_of_a_folder(tmp_path: Path):
    folder = simple_lora(tmp_path / "a", spec_of())
    assert refusal(folder / "adapter_model.safetensors").code == "input-kind"


def test_an_empty_folder(tmp_path: Path):
    assert refusal(tmp_path).code == "adapter-invalid"


def test_config_is_a_list(tmp_path: Path):
    folder = simple_lora(tmp_path / "a", spec_of())
    (folder / "adapter_config.json").write_text("[]")
    assert refusal(folder).code == "adapter-invalid"


def test_weights_missing(tmp_path: Path):
    folder = simple_lora(tmp_path / "a", spec_of())
    (folder / "adapter_model.safetensors").unlink()
    assert refusal(folder).code == "input-missing"


def test_pickle_is_refused_unread(tmp_path: Path):
    folder = simple_lora(tmp_path / "a", spec_of())
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert refusal(folder).code == "pickle-refused"


def test_pickle_beside_safetensors(tmp_path: Path):
    folder = simple_lora(tmp_path / "a", spec_of())
    (folder / "adapter_model.bin").write_bytes(b"x")
    assert refusal(folder).code == "ambiguous-weights"


def test_no_tensor_at_all(tmp_path: Path):
    assert refusal(write_lora(tmp_path / "a", {}, target_modules=None)).code == "adapter-empty"


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "culprit"),
    [
        (PREFIX, PREFIX + PREFIX, PREFIX),
        (PREFIX, "", None),
        (PREFIX, "module." + PREFIX, "module."),
        (PREFIX, "_orig_mod." + PREFIX, "_orig_mod."),
        (PREFIX, PREFIX + "_orig_mod.", "_orig_mod."),
        (".layers.", "._orig_mod.layers.", "_orig_mod."),
        (PREFIX + "model.", PREFIX + "model.language_model.", "model.language_model."),
    ],
)
def test_foreign_prefixes(tmp_path: Path, old: str, new: str, culprit: str | None):
    """PEFT leaves such tensors out without a word (peft#2084, peft#2118)."""
    tensors = {name.replace(old, new, 1): values for name, values in sound().items()}
    error = refusal(write_lora(tmp_path / "a", tensors))
    assert error.code == "adapter-tensor-unused"
    assert error.tensor in tensors
    if culprit:
        assert repr(culprit) in error.found


def test_two_adapter_names_in_one_file(tmp_path: Path):
    tensors = sound()
    name = f"{PREFIX}{Q0}.lora_A.weight"
    tensors[name.replace("lora_A", "lora_A.other")] = tensors.pop(name)
    assert refusal(write_lora(tmp_path / "a", tensors)).code == "adapter-invalid"


def test_two_names_for_one_tensor(tmp_path: Path):
    spec = spec_of(attention_bias=True)
    tensors = sound()
    for inner in ("", ".base_layer"):
        tensors[f"{PREFIX}{Q0}{inner}.bias"] = np.ones(16, np.float32)
    folder = write_lora(tmp_path / "a", tensors, bias="lora_only")
    assert refusal(folder, spec).code == "adapter-invalid"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (f"{PREFIX}{Q0}.lora_magnitude_vector", "adapter-option"),
        (f"{PREFIX}model.embed_tokens.lora_embedding_A", "adapter-tensor-missing"),
        (f"{PREFIX}{Q0}.lora_C.weight", "adapter-tensor-unused"),
        (f"{PREFIX}{Q0}.scale", "adapter-tensor-unused"),
        (f"{PREFIX}model.norm.weight", "adapter-tensor-unused"),
        (f"{PREFIX}{Q0}.lora_B.bias", "adapter-tensor-unused"),
        (f"{PREFIX}{Q0}.weight", "adapter-option"),
        (f"{PREFIX}{Q0}.bias", "adapter-module"),
        (f"{PREFIX}model.visual.weight", "adapter-module"),
    ],
)
def test_tensors_that_would_not_be_used(tmp_path: Path, name: str, code: str):
    tensors = sound() | {name: np.ones(16, np.float32)}
    error = refusal(write_lora(tmp_path / "a", tensors))
    assert (error.code, error.file) == (code, "a/adapter_model.safetensors")


def test_a_module_that_the_base_lacks(tmp_path: Path):
    """An adapter of a deeper model."""
    tensors = {n.replace("layers.1", "layers.7"): v for n, v in sound().items()}
    error = refusal(write_lora(tmp_path / "a", tensors))
    assert (error.code, error.tensor) == ("adapter-module", Q0.replace(".0.", ".7."))


def test_targeted_modules_without_tensors(tmp_path: Path):
    tensors = {n: v for n, v in sound().items() if "v_proj" not in n}
    error = refusal(write_lora(tmp_path / "a", tensors))
    assert error.code == "adapter-tensor-missing"
    assert "2 have no tensors" in error.found


def test_tensors_that_no_target_names(tmp_path: Path):
    error = refusal(write_lora(tmp_path / "a", sound(), target_modules=["q_proj"]))
    assert error.code == "adapter-tensor-unused"


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_lone_factor(tmp_path: Path, side: str):
    tensors = sound()
    del tensors[f"{PREFIX}{Q0}.lora_{side}.weight"]
    error = refusal(write_lora(tmp_path / "a", tensors))
    assert (error.code, error.tensor) == ("adapter-tensor-missing", Q0)


# --- shapes and values -----------------------------------------------------------------------


def test_rank_of_the_file_differs_from_the_config(tmp_path: Path):
    error = refusal(write_lora(tmp_path / "a", sound(), r=8))
    assert error.code == "adapter-shape"
    assert error.expected is not None and error.expected.startswith("[8, 16]")


def test_another_width(tmp_path: Path):
    folder = simple_lora(tmp_path / "a", spec_of())
    assert refusal(folder, spec_of(hidden_size=32)).code == "adapter-shape"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["A", "B"])
def test_not_finite(tmp_path: Path, bad: float, side: str):
    tensors = sound()
    name = f"{PREFIX}{Q0}.lora_{side}.weight"
    tensors[name][1, 2] = bad
    error = refusal(write_lora(tmp_path / "a", tensors))
    assert (error.code, error.tensor) == ("value-not-finite", name)


def test_a_product_that_leaves_float32(tmp_path: Path):
    tensors = {n: v * np.float32(1e20) for n, v in sound().items()}
    assert refusal(write_lora(tmp_path / "a", tensors)).code == "value-overflow"


def test_untrained(tmp_path: Path):
    """B is zero before the first step; a merged folder would equal its base (peft#1579)."""
    tensors = {n: v * ("lora_A" in n) for n, v in sound().items()}
    assert refusal(write_lora(tmp_path / "a", tensors)).code == "adapter-empty"


def test_integers_are_no_factors(tmp_path: Path):
    tensors = {n: v.astype(np.int8) for n, v in sound().items()}
    assert refusal(write_lora(tmp_path / "a", tensors)).code == "dtype-unsupported"


# --- saved modules, biases, ties -------------------------------------------------------------


def test_saved_module_without_tensors(tmp_path: Path):
    error = refusal(simple_lora(tmp_path / "a", spec_of(), modules_to_save=["lm_head"]))
    assert error.code == "adapter-tensor-missing"


def test_resized_vocabulary(tmp_path: Path):
    tensors = sound() | {f"{PREFIX}lm_head.weight": np.ones((44, 16), np.float32)}
    error = refusal(write_lora(tmp_path / "a", tensors, modules_to_save=["lm_head"]))
    assert error.code == "adapter-shape"
    assert "resize" in error.hint


def test_a_bias_promised_and_not_there(tmp_path: Path):
    folder = simple_lora(tmp_path / "a", spec_of(attention_bias=True), bias="all")
    assert refusal(folder, spec_of(attention_bias=True)).code == "adapter-tensor-missing"


def test_lora_bias_on_a_base_without_biases(tmp_path: Path):
    """PEFT refuses this merge too (peft/tuners/lora/layer.py, `merge`)."""
    spec = spec_of()
    tensors = sound()
    for module in targeted(spec, "q", "v"):
        size = tensors[f"{PREFIX}{module}.lora_B.weight"].shape[0]
        tensors[f"{PREFIX}{module}.lora_B.bias"] = np.ones(size, np.float32)
    assert refusal(write_lora(tmp_path / "a", tensors, lora_bias=True)).code == "adapter-module"


def test_lora_bias_promised_and_not_there(tmp_path: Path):
    folder = simple_lora(tmp_path / "a", spec_of(), lora_bias=True)
    assert refusal(folder).code == "adapter-tensor-missing"


@pytest.mark.parametrize("saved", [[], ["embed_tokens"]])
def test_tied_ends_that_differ(tmp_path: Path, saved: list[str]):
    spec = spec_of(tie_word_embeddings=True)
    tensors = sound() | {
        f"{PREFIX}model.embed_tokens.weight": np.ones((40, 16), np.float32),
        f"{PREFIX}lm_head.weight": np.zeros((40, 16), np.float32),
    }
    folder = write_lora(
        tmp_path / "a", tensors, modules_to_save=saved, ensure_weight_tying=bool(saved)
    )
    assert refusal(folder, spec).code == "tie-conflict"


def test_another_base_of_the_same_width(tmp_path: Path):
    folder = simple_lora(tmp_path / "a", spec_of(), base_sha256=DIGEST)
    error = refusal(folder, base=BaseIdentity("tiny-base", lambda: "00" * 32))
    assert error.code == "adapter-base"


def test_nothing_in_the_config_is_run(tmp_path: Path):
    """Class paths in auto_mapping are data."""
    folder = simple_lora(tmp_path / "a", spec_of())
    path = folder / "adapter_config.json"
    value = json.loads(path.read_text())
    value["auto_mapping"] = {"base_model_class": "no_such_module:Boom", "parent_library": "boom"}
    path.write_text(json.dumps(value))
    assert read(folder).deltas
