"""Trainable tokens, and LoRA on embedding and head: rows replaced, ties kept or broken, faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.adapters.base import Adapter
from exporter.errors import InputRefused, UsageError
from exporter.merge.fuse import fuse
from tests.adapters.forge import PREFIX, factors, read, spec_of, targeted, tensors_of, write_lora
from tests.merge.world import make_model
from tests.merge.world import tensors_of as weights_of

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
DELTA = ".token_adapter.trainable_tokens_delta"
TIED = {"tie_word_embeddings": True}
Tokens = dict[str, list[int]]


def token_tensors(tokens: Tokens, seed: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        f"{PREFIX}{m}{DELTA}": rng.standard_normal((len(i), 16)).astype(np.float32)
        for m, i in tokens.items()
    }


def folder_of(place: Path, tokens: Tokens, asked: Any = None, **config: Any) -> Path:
    """Plain LoRA on q and v, and rows; `asked` is the option where it is not `tokens`."""
    pairs = tensors_of(factors(spec_of(), targeted(spec_of(), "q", "v")))
    indices = tokens if asked is None else asked
    return write_lora(
        place, pairs | token_tensors(tokens), trainable_token_indices=indices, **config
    )


def tensor(adapters: list[Adapter], name: str, **base: Any) -> tuple[Any, Any]:
    """One tensor before and after."""
    checked = make_model(0.0, **base)
    fused = fuse(checked, [(a, 1.0) for a in adapters])
    stored = weights_of(checked)
    before = stored[f"{EMBEDDING}.weight" if name not in stored else name]
    return before, fused.tensors[name].rows(0, len(before))


@pytest.mark.parametrize("blocks", [[0, 40], [0, 3, 4, 39, 40]])
def test_named_rows_are_replaced_and_no_other(tmp_path: Path, blocks: list[int]):
    tokens = {EMBEDDING: [39, 3, 0]}
    adapter = read(folder_of(tmp_path / "a", tokens, tokens[EMBEDDING]))
    checked = make_model(0.0)
    rows = fuse(checked, [(adapter, 1.0)]).tensors[f"{EMBEDDING}.weight"].rows
    found = np.concatenate([rows(a, b) for a, b in zip(blocks[:-1], blocks[1:], strict=True)])
    want = weights_of(checked)[f"{EMBEDDING}.weight"].copy()
    want[tokens[EMBEDDING]] = token_tensors(tokens)[f"{PREFIX}{EMBEDDING}{DELTA}"]
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize(
    "tokens, asked, unties",
    [
        ({EMBEDDING: [1]}, [1], False),
        ({EMBEDDING: [1]}, {"embed_tokens": [1], "lm_head": [1]}, False),
        ({HEAD: [1]}, {"lm_head": [1]}, True),
        ({EMBEDDING: [1], HEAD: [2]}, {"embed_tokens": [1], "lm_head": [2]}, True),
    ],
)
def test_tied_ends(tmp_path: Path, tokens: Tokens, asked: Any, unties: bool):
    adapter = read(folder_of(tmp_path / "a", tokens, asked), spec_of(**TIED))
    assert adapter.unties is unties
    if unties:
        before, after = tensor([adapter], f"{HEAD}.weight", **TIED)
        moved = np.flatnonzero((before != after).any(axis=1)).tolist()
        assert moved == tokens[HEAD]


def test_two_adapters_of_other_tokens(tmp_path: Path):
    both = [
        read(folder_of(tmp_path / str(n), {EMBEDDING: [n]}, {"embed_tokens": [n]})) for n in (5, 9)
    ]
    before, after = tensor(both, f"{EMBEDDING}.weight")
    assert np.flatnonzero((before != after).any(axis=1)).tolist() == [5, 9]
    with pytest.raises(UsageError, match="rows of a tensor"):
        tensor([both[0], both[0]], f"{EMBEDDING}.weight")
    with pytest.raises(UsageError, match="weight 0.5"):
        fuse(make_model(0.0), [(both[0], 0.5)])


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "out of range": ({"tokens": {EMBEDDING: [40]}}, "adapter-invalid"),
    "negative": ({"tokens": {EMBEDDING: [-1]}}, "adapter-invalid"),
    "twice": ({"tokens": {EMBEDDING: [3, 3]}}, "adapter-invalid"),
    "no delta": ({"tokens": {}, "asked": [3]}, "adapter-tensor-missing"),
    "not asked for": ({"tokens": {EMBEDDING: [3]}, "asked": []}, "adapter-tensor-unused"),
    "another number": ({"tokens": {EMBEDDING: [3]}, "asked": [3, 4]}, "adapter-shape"),
    "another layer": ({"tokens": {EMBEDDING: [3]}, "asked": {"q_proj": [3]}}, "adapter-option"),
    "saved too": (
        {"tokens": {EMBEDDING: [3]}, "modules_to_save": ["embed_tokens"]},
        "adapter-option",
    ),
    "other tokens, tied": (
        {"tokens": {EMBEDDING: [3], HEAD: [4]}, "ensure_weight_tying": True},
        "tie-conflict",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(tmp_path: Path, name: str):
    given, code = FAULTS[name]
    folder = folder_of(tmp_path / "a", **given)
    if name == "saved too":
        add(folder, {f"{PREFIX}{EMBEDDING}.weight": np.ones((40, 16), np.float32)})
    with pytest.raises(InputRefused) as caught:
        read(folder, spec_of(**TIED) if "tied" in name else None)
    assert caught.value.code == code


def test_a_tensor_that_is_not_finite(tmp_path: Path):
    folder = folder_of(tmp_path / "a", {EMBEDDING: [3]})
    add(folder, {f"{PREFIX}{EMBEDDING}{DELTA}": np.full((1, 16), np.inf, np.float32)})
    with pytest.raises(InputRefused) as caught:
        read(folder)
    assert caught.value.code == "value-not-finite"


def test_an_embedding_saved_with_its_tokens(tmp_path: Path):
    """save_embedding_layers=True: what it adds would be a second meaning of the same rows."""
    folder = folder_of(tmp_path / "a", {EMBEDDING: [3]})
    add(folder, {f"{PREFIX}{EMBEDDING}.token_adapter.base_layer.weight": np.ones((40, 16), "f4")})
    with pytest.raises(InputRefused) as caught:
        read(folder)
    assert caught.value.code == "adapter-tensor-unused"
    assert "save_embedding_layers" in str(caught.value.hint)


def add(folder: Path, more: dict[str, Any]) -> None:
    """Put further tensors into a folder's file, or others of the same name."""
    from safetensors.numpy import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | more, path)


# --- LoRA on the ends ------------------------------------------------------------------------


def ends(spec: Any, *modules: str, seed: int = 0) -> dict[str, Any]:
    """Factors of embedding and head: with one seed, those of a tied pair."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((4, spec.hidden)).astype(np.float32)
    b = rng.standard_normal((spec.vocab, 4)).astype(np.float32)
    tensors: dict[str, Any] = {}
    if EMBEDDING in modules:
        tensors[f"{PREFIX}{EMBEDDING}.lora_embedding_A"] = np.ascontiguousarray(b.T)
        tensors[f"{PREFIX}{EMBEDDING}.lora_embedding_B"] = np.ascontiguousarray(a.T)
    if HEAD in modules:
        tensors |= {f"{PREFIX}{HEAD}.lora_A.weight": a, f"{PREFIX}{HEAD}.lora_B.weight": b}
    return tensors


@pytest.mark.parametrize("module", [EMBEDDING, HEAD])
def test_a_saved_embedding_is_both_ends_though_lora_unties_them(tmp_path: Path, module: str):
    """PEFT saves the base layer of an adapted end; loaded, it is the tied tensor of both."""
    spec = spec_of(**TIED)
    saved = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    tensors = ends(spec, module) | {f"{PREFIX}{module}.base_layer.weight": saved}
    adapter = read(write_lora(tmp_path / "a", tensors, target_modules=[module]), spec)
    assert adapter.unties
    other = HEAD if module == EMBEDDING else EMBEDDING
    _, after = tensor([adapter], f"{other}.weight", **TIED)
    np.testing.assert_array_equal(after, saved)
    _, after = tensor([adapter], f"{module}.weight", **TIED)
    assert np.abs(after - saved).max() > 0.1


def test_a_tied_pair_is_one_delta(tmp_path: Path):
    spec = spec_of(**TIED)
    folder = write_lora(
        tmp_path / "a",
        ends(spec, EMBEDDING, HEAD),
        target_modules=["embed_tokens"],
        ensure_weight_tying=True,
    )
    adapter = read(folder, spec)
    assert (list(adapter.deltas), adapter.unties, adapter.tensors_used) == ([EMBEDDING], False, 4)


@pytest.mark.parametrize(
    "modules, config, code",
    [
        ("differ", {}, "tie-conflict"),
        ("scales", {"alpha_pattern": {"lm_head": 3}}, "tie-conflict"),
        ("embedding", {}, "adapter-tensor-missing"),
    ],
)
def test_a_pair_that_is_none(tmp_path: Path, modules: str, config: dict[str, Any], code: str):
    spec = spec_of(**TIED)
    tensors = ends(spec, EMBEDDING)
    if modules != "embedding":
        tensors |= ends(spec, HEAD, seed=modules == "differ")
    folder = write_lora(
        tmp_path / "a", tensors, target_modules=["embed_tokens"], ensure_weight_tying=True, **config
    )
    with pytest.raises(InputRefused) as caught:
        read(folder, spec)
    assert caught.value.code == code


def test_lookup_factors_on_the_head(tmp_path: Path):
    spec = spec_of()
    tensors = {n.replace(EMBEDDING, HEAD): v for n, v in ends(spec, EMBEDDING).items()}
    with pytest.raises(InputRefused) as caught:
        read(write_lora(tmp_path / "a", tensors, target_modules=["lm_head"]))
    assert caught.value.code == "adapter-invalid"


# --- DoRA's own tensor -----------------------------------------------------------------------

Q0 = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "magnitude, config, code",
    [
        (None, {"use_dora": True}, "adapter-tensor-missing"),
        (np.ones(16, "f4"), {}, "adapter-option"),
        (np.ones(15, "f4"), {"use_dora": True}, "adapter-shape"),
        (np.full(16, np.nan, "f4"), {"use_dora": True}, "value-not-finite"),
        (np.ones(16, "f4"), {"use_dora": True, "lora_bias": True}, "adapter-option"),
        (np.ones(16, "f4"), {"use_dora": True, "sparse_adapter": True}, "adapter-option"),
        (np.ones(16, "f4"), {"use_dora": True, "target_parameters": ["x"]}, "adapter-option"),
    ],
)
def test_magnitudes(tmp_path: Path, magnitude: Any, config: dict[str, Any], code: str):
    tensors = tensors_of(factors(spec_of(), [Q0]))
    if magnitude is not None:
        tensors[f"{PREFIX}{Q0}.lora_magnitude_vector"] = magnitude
    with pytest.raises(InputRefused) as caught:
        read(write_lora(tmp_path / "a", tensors, target_modules=[Q0], **config))
    assert caught.value.code == code


def test_the_magnitude_by_its_inner_name(tmp_path: Path):
    tensors = tensors_of(factors(spec_of(), [Q0]))
    tensors[f"{PREFIX}{Q0}.lora_magnitude_vector.weight"] = np.ones(16, np.float32)
    adapter = read(write_lora(tmp_path / "a", tensors, target_modules=[Q0], use_dora=True))
    assert adapter.facts["dora"] is True
