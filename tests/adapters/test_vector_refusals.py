"""AdaLoRA, LoHa, LoKr, (IA)^3, VeRA and SHiRA: what is refused, with the code and the place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exporter.adapters.shira import write_shira
from exporter.errors import InputRefused
from tests.adapters import vectors
from tests.adapters.forge import PREFIX, mend_json, read, spec_of
from tests.merge.world import shape_of

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
Q, DOWN = (PREFIX + m for m in MODULES)
SHAPES = {m: shape_of(spec_of(), m) for m in MODULES}
Change = Callable[[Path], None]


def option(**changes: Any) -> Change:
    return lambda folder: mend_json(folder / "adapter_config.json", **changes)


def tensors(change: Callable[[dict[str, Any]], Any]) -> Change:
    def apply(folder: Path) -> None:
        held = dict(load_file(folder / "adapter_model.safetensors"))
        change(held)
        save_file(held, folder / "adapter_model.safetensors")

    return apply


def put(name: str, values: Any) -> Change:
    return tensors(lambda held: held.update({name: values}))


def drop(name: str) -> Change:
    return tensors(lambda held: held.pop(name))


def edit(name: str, change: Callable[[Any], Any]) -> Change:
    return tensors(lambda held: held.update({name: change(held[name])}))


def move(old: str, new: str) -> Change:
    return tensors(lambda held: held.update({new: held.pop(old)}))


def both(*changes: Change) -> Change:
    def apply(folder: Path) -> None:
        for change in changes:
            change(folder)

    return apply


def zeros(held: dict[str, Any]) -> None:
    for name, values in held.items():
        if "indices" not in name:
            held[name] = np.ones_like(values) if "ia3" in name else np.zeros_like(values)


def first_of(values: Any, new: Any) -> Any:
    values = values.copy()
    values.flat[0] = new
    return values


ANY: dict[str, tuple[Change, str]] = {
    "unknown option": (option(option_of_2030=0.5), "adapter-option"),
    "targets more": (option(target_modules=["q_proj", "down_proj", "up_proj"]),
                     "adapter-tensor-missing"),
    "targets less": (option(target_modules=["q_proj"]), "adapter-tensor-unused"),
    "untrained": (tensors(zeros), "adapter-empty"),
    "a saved norm that is not there": (option(modules_to_save=["norm"]), "adapter-tensor-missing"),
    "another base": (option(base_sha256="cd" * 32), "adapter-base"),
}  # fmt: skip

OWN: dict[str, dict[str, tuple[Change, str]]] = {
    "adalora": {
        "E missing": (drop(f"{Q}.lora_E"), "adapter-tensor-missing"),
        "E is a row": (edit(f"{Q}.lora_E", lambda e: e.T.copy()), "adapter-shape"),
        "an unknown part": (put(f"{Q}.lora_F", np.ones(2, "f4")), "adapter-tensor-unused"),
        "another rank": (option(rank_pattern=None), "adapter-shape"),
        "pattern of another length": (
            option(rank_pattern={f"{MODULES[0]}.lora_E": [True] * 3}),
            "adapter-invalid",
        ),
        "pattern of another module": (
            option(rank_pattern={"model.layers.1.self_attn.q_proj.lora_E": [True] * 5}),
            "adapter-invalid",
        ),
        "ranks as numbers": (option(rank_pattern={f"{MODULES[0]}.lora_E": 3}), "adapter-invalid"),
        "no rank": (option(init_r=0), "adapter-invalid"),
        "a huge rank": (option(init_r=1 << 20), "limit-exceeded"),
        "DoRA": (option(use_dora=True), "adapter-option"),
        "replicated layers": (option(layer_replication=[[0, 2]]), "adapter-option"),
        "a bias that is not there": (option(bias="everything"), "adapter-invalid"),
        "not finite": (edit(f"{Q}.lora_A", lambda a: first_of(a, np.nan)), "value-not-finite"),
        "too large": (edit(f"{Q}.lora_A", lambda a: a * np.float32(1e38)), "value-overflow"),
        "an embedding": (move(f"{Q}.lora_A", f"{PREFIX}model.embed_tokens.lora_A"),
                         "adapter-module"),
    },
    "loha": {
        "one of four missing": (drop(f"{Q}.hada_w2_b"), "adapter-tensor-missing"),
        "of a convolution": (put(f"{Q}.hada_t1", np.ones((1, 1, 1, 1), "f4")),
                             "adapter-tensor-unused"),
        "another rank": (option(rank_pattern={}), "adapter-shape"),
        "no rank": (option(r=0, rank_pattern={}), "adapter-invalid"),
        "a bias": (option(bias="all"), "adapter-option"),
        "too large": (edit(f"{Q}.hada_w1_a", lambda a: a * np.float32(1e37)), "value-overflow"),
    },
    "lokr": {
        "another factor": (option(decompose_factor=2), "adapter-tensor-missing"),
        "both factored": (option(decompose_both=True, r=1), "adapter-tensor-missing"),
        "whole and factored": (put(f"{DOWN}.lokr_w2_a", np.ones((6, 3), "f4")),
                               "adapter-tensor-unused"),
        "another shape": (edit(f"{Q}.lokr_w1", lambda w: w[:2].copy()), "adapter-shape"),
        "as integers": (edit(f"{Q}.lokr_w1", lambda w: w.astype("i4")), "dtype-unsupported"),
    },
    "ia3": {
        "inputs for outputs": (option(feedforward_modules=["down_proj"]), "adapter-shape"),
        "neither": (edit(f"{Q}.ia3_l", lambda v: v.reshape(4, 4)), "adapter-shape"),
        "neither, untold": (
            both(
                option(feedforward_modules=None), edit(f"{Q}.ia3_l", lambda v: v.reshape(4, 4))
            ),
            "adapter-shape",
        ),
        "infinite": (edit(f"{Q}.ia3_l", lambda v: first_of(v, np.inf)), "value-not-finite"),
    },
    "vera": {
        "A missing": (drop("base_model.vera_A"), "adapter-tensor-missing"),
        "A though it is not saved": (option(save_projection=False), "adapter-tensor-unused"),
        "A of other modules": (
            edit("base_model.vera_A", lambda a: a[:, :-1].copy()),
            "adapter-shape",
        ),
        "another rank": (option(r=4), "adapter-shape"),
        "d missing": (drop(f"{Q}.vera_lambda_d"), "adapter-tensor-missing"),
        "a seed of 64 bits": (
            both(
                option(save_projection=False, projection_prng_key=1 << 40),
                drop("base_model.vera_A"),
                drop("base_model.vera_B"),
            ),
            "adapter-invalid",
        ),
    },
    "shira": {
        "no positions": (drop(f"{Q}.shira_indices"), "adapter-tensor-missing"),
        "another count": (option(r=2), "adapter-shape"),
        "a position outside": (
            edit(f"{Q}.shira_indices", lambda i: i + np.int32(9)),
            "adapter-invalid",
        ),
        "a negative one": (
            edit(f"{Q}.shira_indices", lambda i: first_of(i, -1)),
            "adapter-invalid",
        ),
        "not sorted": (
            edit(f"{Q}.shira_indices", lambda i: i[:, ::-1].copy()),
            "adapter-invalid",
        ),
        "twice": (
            edit(f"{Q}.shira_indices", lambda i: np.concatenate([i[:, :1], i[:, :-1]], axis=1)),
            "adapter-invalid",
        ),
        "positions as bytes": (
            edit(f"{Q}.shira_indices", lambda i: i.astype("i1")),
            "dtype-unsupported",
        ),
        "a value not finite": (
            edit(f"{Q}.shira_weight", lambda v: first_of(v, np.nan)),
            "value-not-finite",
        ),
    },
}  # fmt: skip
CASES = [(f, n, *c) for f in vectors.FAMILIES for n, c in (ANY | OWN[f]).items()]


@pytest.mark.parametrize(
    ("family", "change", "code"),
    [(f, change, code) for f, _, change, code in CASES],
    ids=[f"{f}-{n}" for f, n, *_ in CASES],
)
def test_refused(tmp_path: Path, family: str, change: Change, code: str):
    vectors.FAMILIES[family](tmp_path / "a", SHAPES)
    read(tmp_path / "a")
    change(tmp_path / "a")
    with pytest.raises(InputRefused) as caught:
        read(tmp_path / "a")
    assert caught.value.code == code, caught.value
    assert caught.value.file is not None


@pytest.mark.parametrize("family", vectors.FAMILIES)
def test_a_tied_head_is_refused(tmp_path: Path, family: str):
    spec = spec_of(tie_word_embeddings=True)
    vectors.FAMILIES[family](tmp_path, {**SHAPES, "lm_head": (spec.vocab, spec.hidden)})
    with pytest.raises(InputRefused) as caught:
        read(tmp_path, spec)
    assert (caught.value.code, caught.value.tensor) == ("adapter-option", "lm_head")


def test_positions_as_windows_saves_them(tmp_path: Path):
    """PEFT stores them as float32 there."""
    slow = vectors.shira(tmp_path, SHAPES)
    edit(f"{Q}.shira_indices", lambda i: i.astype("f4"))(tmp_path)
    edit(f"{DOWN}.shira_indices", lambda i: i.astype("i8"))(tmp_path)
    adapter = read(tmp_path)
    for module, shape in SHAPES.items():
        delta: Any = adapter.deltas[module]
        np.testing.assert_array_equal(delta.rows(0, shape[0]), slow[module](None))


def test_the_writer_refuses_a_position_given_twice(tmp_path: Path):
    twice = np.array([[1, 0, 1], [2, 5, 2]])
    with pytest.raises(InputRefused) as caught:
        write_shira(tmp_path / "a", {MODULES[0]: (twice, np.ones(3, "f4"))}, r=None)
    assert caught.value.code == "adapter-invalid"


def test_equal_inputs_write_equal_bytes(tmp_path: Path):
    for family, make in vectors.FAMILIES.items():
        for name in ("one", "two"):
            make(tmp_path / name / family, SHAPES)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            one, two = ((tmp_path / n / family / file).read_bytes() for n in ("one", "two"))
            assert one == two
