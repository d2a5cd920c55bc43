"""Every way in which an adapter can be odd: it is merged right, or refused by a typed error.

One test a fault, small and without peft; the families' own tests go deeper. Right means: equal to
the equation in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig
from safetensors.numpy import load_file, save_file

from exporter.adapters.adalora import write_adalora
from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.s2ft_order import write_order
from exporter.adapters.vera import write_vera
from exporter.check.model import check_model
from exporter.errors import InputRefused
from exporter.merge.base import MergePolicyNeeded
from exporter.merge.fuse import fuse
from exporter.model import FusedModel
from exporter.store.checkpoint import Checkpoint
from tests.adapters.forge import (
    DIGEST,
    PREFIX,
    factors,
    mend_json,
    read,
    simple_lora,
    spec_of,
    targeted,
    tensors_of,
    write_lora,
)
from tests.faults.test_user_failures import sparse_losa
from tests.merge.world import make_model
from tests.merge.world import tensors_of as weights_of
from tests.peft.matrix import assert_forward_alike, build
from tests.tiny import save_tiny

MODEL = make_model(0.0)
SPEC, WEIGHTS = MODEL.spec, weights_of(MODEL)
Q0, V1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
PAIRS = factors(SPEC, targeted(SPEC, "q", "v"))
HEAD, EMBED = "lm_head", "model.embed_tokens"
Pairs = dict[str, tuple[Any, Any]]


def product(pair: tuple[Any, Any], scale: float) -> Any:
    """`scale * B A` in float64."""
    a, b = (x.astype(np.float64) for x in pair)
    return scale * (b @ a)


def merged(*adapters: Adapter | tuple[Adapter, float]) -> FusedModel:
    return fuse(MODEL, [a if isinstance(a, tuple) else (a, 1.0) for a in adapters])


def rows(fused: FusedModel, tensor: str) -> Any:
    return fused.tensors[tensor].rows(0, fused.tensors[tensor].shape[0])


def assert_changed(fused: FusedModel, want: dict[str, Any]) -> None:
    """Weights by module are the base's plus `want`; all other tensors are the base's."""
    for name in fused.tensors:
        module = name.removesuffix(".weight")
        found = rows(fused, name)
        if module not in want:
            np.testing.assert_array_equal(found, WEIGHTS[name], name)
            continue
        sound = WEIGHTS[name] + want[module]
        assert np.abs(found - sound).max() <= 1e-6 * np.abs(sound).max(), name
        assert np.abs(want[module]).max() > 1e-3


def assert_lora(folder: Path, pairs: Pairs, scale: Callable[[str], float]) -> None:
    assert_changed(merged(read(folder, SPEC)), {m: product(p, scale(m)) for m, p in pairs.items()})


def refused(code: str, folder: Path, **base: Any) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        read(folder, SPEC, **base)
    assert caught.value.code == code, caught.value
    return caught.value


# --- the base --------------------------------------------------------------------------------


def test_a_base_of_another_width(tmp_path: Path) -> None:
    other = spec_of(hidden_size=32)
    assert refused("adapter-shape", simple_lora(tmp_path / "a", other)).tensor


def test_a_base_of_the_same_width_but_other_values(tmp_path: Path) -> None:
    folder = simple_lora(tmp_path / "a", SPEC, base_sha256=DIGEST)
    assert read(folder, SPEC).facts["base_digest"] == DIGEST
    refused("adapter-base", folder, base=BaseIdentity("tiny-base", lambda: "cd" * 32))


def test_a_base_of_the_same_width_that_only_its_mask_tells(tmp_path: Path) -> None:
    folder = simple_lora(tmp_path / "a", SPEC, mask_sha256="ab" * 32)
    with pytest.raises(InputRefused) as caught:
        merged(read(folder, SPEC))
    assert caught.value.code == "mask-mismatch"


def test_a_base_of_another_name_is_a_warning(tmp_path: Path) -> None:
    folder = simple_lora(tmp_path / "a", SPEC, base_model_name_or_path="else/where")
    facts = read(folder, SPEC).facts
    assert facts["base_name_agrees"] is False
    assert "where" in facts["base_warning"]


def test_an_adapter_trained_on_a_4_bit_base(tmp_path: Path) -> None:
    """QLoRA leaves a plain LoRA and a name; LoftQ has changed the base and is refused."""
    folder = simple_lora(tmp_path / "a", SPEC, base_model_name_or_path="x/tiny-base-bnb-4bit")
    assert "4bit" in read(folder, SPEC).facts["base_warning"]
    assert_lora(folder, PAIRS, lambda _: 2.0)
    loftq = {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}
    refused("adapter-option", simple_lora(tmp_path / "b", SPEC, **loftq))


def test_a_base_that_is_4_bit_itself(tmp_path: Path) -> None:
    base = save_tiny("llama2", tmp_path / "base")
    mend_json(base / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(InputRefused) as caught:
        check_model(Checkpoint.open(base))
    assert caught.value.code == "model-quantised"


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [PREFIX * 2, "model.language_model.", "module." + PREFIX, PREFIX + "_orig_mod.", "", "base."],
)
def test_tensors_of_a_foreign_prefix(prefix: str, tmp_path: Path) -> None:
    tensors = {prefix + n.removeprefix(PREFIX): t for n, t in tensors_of(PAIRS).items()}
    with pytest.raises(InputRefused) as caught:
        read(write_lora(tmp_path / "a", tensors), SPEC)
    assert caught.value.code in ("adapter-tensor-unused", "adapter-module")
    assert caught.value.tensor in {*tensors, *(n.rsplit(".lora", 1)[0] for n in tensors)} | {
        n.removeprefix(PREFIX).rsplit(".lora", 1)[0] for n in tensors
    }


@pytest.mark.parametrize("side", "AB")
def test_only_one_factor(side: str, tmp_path: Path) -> None:
    tensors = tensors_of(PAIRS)
    del tensors[f"{PREFIX}{Q0}.lora_{side}.weight"]
    error = refused("adapter-tensor-missing", write_lora(tmp_path / "a", tensors))
    assert f"lora_{side}" in f"{error.found} {error.expected}"


# --- scales ----------------------------------------------------------------------------------


def test_the_file_s_rank_is_not_the_config_s(tmp_path: Path) -> None:
    refused("adapter-shape", simple_lora(tmp_path / "a", SPEC, r=8))


def test_patterns_that_are_expressions(tmp_path: Path) -> None:
    """PEFT matches a key as an expression at the end of the module's name."""
    pairs = factors(SPEC, [Q0, V1])
    pairs[V1] = (pairs[V1][0][:2], pairs[V1][1][:, :2].copy())  # save_file takes no views
    config = {
        "target_modules": [Q0, V1],
        "rank_pattern": {r"layers\.1\..*v_proj": 2},
        "alpha_pattern": {r"layers\.\d+\.self_attn\.q_proj": 6},
    }
    scales = {Q0: 6 / 4, V1: 8 / 2}
    folder = write_lora(tmp_path / "a", tensors_of(pairs), **config)
    assert_lora(folder, pairs, scales.__getitem__)


def test_alpha_of_0_changes_nothing(tmp_path: Path) -> None:
    refused("adapter-empty", simple_lora(tmp_path / "a", SPEC, lora_alpha=0))


def test_rank_of_0(tmp_path: Path) -> None:
    refused("adapter-invalid", simple_lora(tmp_path / "a", SPEC, r=0))


def test_rslora(tmp_path: Path) -> None:
    folder = simple_lora(tmp_path / "a", SPEC, use_rslora=True, lora_alpha=6)
    assert_lora(folder, PAIRS, lambda _: 6 / 4**0.5)


def test_fan_in_fan_out_of_conv1d(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    assert_forward_alike(build("gpt2", tmp_path, config))


# --- other families --------------------------------------------------------------------------


def test_dora_with_its_magnitude(tmp_path: Path) -> None:
    """W' = m (W + s B A) / ||W + s B A||, rows normed (Liu et al. 2024, eq. 5)."""
    pairs = factors(SPEC, [Q0])
    magnitude = np.linspace(1, 2, 16, dtype=np.float32)
    tensors = {**tensors_of(pairs), f"{PREFIX}{Q0}.lora_magnitude_vector": magnitude}
    folder = write_lora(tmp_path / "a", tensors, target_modules=[Q0], use_dora=True)
    weight = WEIGHTS[f"{Q0}.weight"].astype(np.float64)
    whole = weight + product(pairs[Q0], 2.0)
    sound = magnitude[:, None] * whole / np.linalg.norm(whole, axis=1, keepdims=True)
    assert_changed(merged(read(folder, SPEC)), {Q0: sound - weight})


def test_adalora_with_pruned_ranks_and_e(tmp_path: Path) -> None:
    """s B diag(E) A with s = alpha / (init_r + 1e-5), whatever rank is left."""
    pairs = factors(SPEC, [Q0, V1], rank=3)
    e = np.array([0.5, -1.5, 2.0], np.float32)
    kept = [True, False, True, True]
    write_adalora(
        tmp_path / "a",
        {m: (a, e, b) for m, (a, b) in pairs.items()},
        init_r=4,
        alpha=6.0,
        kept={Q0: kept, V1: kept},
    )
    scaled = {m: (a * e[:, None].astype(np.float64), b) for m, (a, b) in pairs.items()}
    assert_lora(tmp_path / "a", scaled, lambda _: 6.0 / (4 + 1e-5))


def test_vera_without_its_shared_projections(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    b, d = np.ones(16, np.float32), np.ones(3, np.float32)
    shared = tuple(rng.standard_normal(s).astype(np.float32) for s in ((3, 16), (16, 3)))
    write_vera(tmp_path / "a", {Q0: (b, d)}, (shared[0], shared[1]))
    assert_lora(tmp_path / "a", {Q0: (d[:, None] * shared[0], b[:, None] * shared[1])}, one)
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "vera_A" not in n}, file)
    refused("adapter-tensor-missing", tmp_path / "a")


def one(_: str) -> float:
    return 1.0


def test_losa_without_its_rank_table(tmp_path: Path) -> None:
    base = save_tiny("llama2", tmp_path / "base", sparsity=0.5)
    folder = sparse_losa(tmp_path / "losa", base)
    mend_json(folder / "losa_config.json", rank_pattern=None)
    checked = check_model(Checkpoint.open(base))
    with pytest.raises(InputRefused) as caught:
        read(folder, checked.spec)
    assert caught.value.code == "adapter-invalid"
    assert "rank_pattern" in caught.value.found


def test_an_s2ft_checkpoint_without_its_permutation(tmp_path: Path) -> None:
    """Its zeros lie elsewhere, so a sparse base stops the merge; a wrong order is refused."""
    base = save_tiny("llama2", tmp_path / "base", sparsity=0.5)
    checked = check_model(Checkpoint.open(base))
    checkpoint = checked.checkpoint
    order = [*range(1, 160), 0]
    moved = {n: t.copy() for n, t in load_file(base / "model.safetensors").items()}
    for layer in ("model.layers.0.mlp.", "model.layers.1.mlp."):
        for name in ("gate_proj", "up_proj"):
            moved[f"{layer}{name}.weight"] = moved[f"{layer}{name}.weight"][order]
        down = moved[f"{layer}down_proj.weight"]
        moved[f"{layer}down_proj.weight"] = np.ascontiguousarray(down[:, order])
    trained = tmp_path / "trained"
    save_tiny("llama2", trained, sparsity=0.5)
    up = "model.layers.0.mlp.up_proj.weight"
    moved[up][3] = np.where(moved[up][3] != 0, moved[up][3] + 0.5, 0.0)  # place 3 is channel 4
    save_file(moved, trained / "model.safetensors", metadata={"format": "pt"})

    def identity() -> BaseIdentity:
        def reader(name: str) -> Any:
            return lambda r0, r1: checkpoint.rows(name, r0, r1)

        return BaseIdentity("base", checkpoint.identity, reader)

    with pytest.raises(MergePolicyNeeded):
        fuse(checked, [(read(trained, checked.spec, identity()), 1.0)])
    write_order(trained, [{"ffn": order}] * 2)
    fused = fuse(checked, [(read(trained, checked.spec, identity()), 1.0)])
    before = checkpoint.rows(up, 0, 160)
    changed = np.argwhere(rows(fused, up) != before)
    assert set(changed[:, 0]) == {4}
    assert not rows(fused, up)[before == 0].any()
    (trained / "s2ft_order.json").unlink()
    write_order(trained, [{"ffn": order[::-1]}] * 2)
    with pytest.raises(InputRefused) as caught:
        read(trained, checked.spec, identity())
    assert caught.value.code == "adapter-base"


# --- whole tensors, embeddings, biases -------------------------------------------------------


def saved(folder: Path, **tensors: Any) -> Path:
    """A LoRA on q and v with whole tensors beside it."""
    extra = {f"{PREFIX}{name}.weight": t for name, t in tensors.items()}
    return write_lora(folder, {**tensors_of(PAIRS), **extra}, modules_to_save=sorted(tensors))


def test_modules_to_save(tmp_path: Path) -> None:
    head = np.random.default_rng(3).standard_normal((40, 16)).astype(np.float32)
    fused = merged(read(saved(tmp_path / "a", lm_head=head), SPEC))
    np.testing.assert_array_equal(rows(fused, "lm_head.weight"), head)
    assert fused.record["replaced"] == {"lm_head.weight": "modules_to_save"}


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases(bias: str, tmp_path: Path) -> None:
    """A trained bias replaces the base's; on a base without biases it is refused."""
    base = make_model(0.0, attention_bias=True)
    name = f"{Q0}.bias"
    value = np.full(16, 0.25, np.float32)
    trained = {
        f"{li.module}.bias": value[: li.out_features]
        for li in base.spec.linears()
        if li.role in ("q", "v") or (bias == "all" and li.role in ("k", "o"))
    }
    tensors = {**tensors_of(PAIRS), **{PREFIX + n: v for n, v in trained.items()}}
    folder = write_lora(tmp_path / "a", tensors, bias=bias)
    fused = fuse(base, [(read(folder, base.spec), 1.0)])
    np.testing.assert_array_equal(rows(fused, name), value)
    with pytest.raises(InputRefused):
        read(folder, SPEC)


def test_trainable_tokens(tmp_path: Path) -> None:
    new = np.random.default_rng(3).standard_normal((2, 16)).astype(np.float32)
    tensors = {
        **tensors_of(PAIRS),
        f"{PREFIX}{EMBED}.token_adapter.trainable_tokens_delta": new,
    }
    folder = write_lora(tmp_path / "a", tensors, trainable_token_indices=[5, 31])
    found = rows(merged(read(folder, SPEC)), f"{EMBED}.weight")
    np.testing.assert_array_equal(found[[5, 31]], new)
    others = np.setdiff1d(np.arange(40), [5, 31])
    np.testing.assert_array_equal(found[others], WEIGHTS[f"{EMBED}.weight"][others])


def test_lora_on_the_embedding_lies_transposed(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((4, 40), (16, 4)))
    tensors = {
        f"{PREFIX}{EMBED}.lora_embedding_A": a,
        f"{PREFIX}{EMBED}.lora_embedding_B": b,
    }
    folder = write_lora(tmp_path / "a", tensors, target_modules=["embed_tokens"])
    assert_changed(merged(read(folder, SPEC)), {EMBED: product((a, b), 2.0).T})


# --- targets ---------------------------------------------------------------------------------


def test_all_linear_is_every_linear_but_the_head(tmp_path: Path) -> None:
    pairs = factors(SPEC, [li.module for li in SPEC.linears()])
    folder = write_lora(tmp_path / "a", tensors_of(pairs), target_modules="all-linear")
    assert_lora(folder, pairs, lambda _: 2.0)
    with_head = pairs | factors(SPEC, [HEAD])
    folder = write_lora(tmp_path / "b", tensors_of(with_head), target_modules="all-linear")
    refused("adapter-tensor-unused", folder)


def test_layers_to_transform(tmp_path: Path) -> None:
    pairs = factors(SPEC, [V1])
    config = {"target_modules": ["v_proj"], "layers_to_transform": [1]}
    assert_lora(write_lora(tmp_path / "a", tensors_of(pairs), **config), pairs, lambda _: 2.0)
    both = factors(SPEC, targeted(SPEC, "v"))
    folder = write_lora(tmp_path / "b", tensors_of(both), **config)
    refused("adapter-tensor-unused", folder)


def test_layer_replication(tmp_path: Path) -> None:
    folder = simple_lora(tmp_path / "a", SPEC, layer_replication=[[0, 2], [1, 2]])
    assert "layer_replication" in refused("adapter-option", folder).found


def test_target_parameters(tmp_path: Path) -> None:
    pairs = factors(SPEC, [Q0])
    config = {"target_modules": [], "target_parameters": [f"{Q0}.weight"]}
    assert_lora(write_lora(tmp_path / "a", tensors_of(pairs), **config), pairs, lambda _: 2.0)


# --- the rest --------------------------------------------------------------------------------


def test_two_adapters_each_with_its_weight(tmp_path: Path) -> None:
    first = read(simple_lora(tmp_path / "a", SPEC), SPEC)
    other = factors(SPEC, [Q0], seed=9)
    folder = write_lora(tmp_path / "b", tensors_of(other), target_modules=[Q0])
    want = {m: 0.7 * product(p, 2.0) for m, p in PAIRS.items()}
    want[Q0] = want[Q0] + 0.3 * product(other[Q0], 2.0)
    assert_changed(merged((first, 0.7), (read(folder, SPEC), 0.3)), want)


def test_an_adapter_of_a_newer_peft(tmp_path: Path) -> None:
    folder = simple_lora(tmp_path / "a", SPEC, peft_version="9.9", use_novelty=True)
    assert "use_novelty" in refused("adapter-option", folder).found
    harmless = simple_lora(tmp_path / "b", SPEC, peft_version="9.9", use_novelty=False)
    assert_lora(harmless, PAIRS, lambda _: 2.0)


def test_a_zero_delta(tmp_path: Path) -> None:
    tensors = {n: t * ("lora_A" in n) for n, t in tensors_of(PAIRS).items()}
    refused("adapter-empty", write_lora(tmp_path / "a", tensors))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_or_infinity_in_b(bad: float, tmp_path: Path) -> None:
    tensors = tensors_of(PAIRS)
    name = f"{PREFIX}{V1}.lora_B.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][2, 1] = bad
    assert refused("value-not-finite", write_lora(tmp_path / "a", tensors)).tensor == name


# --- ties: {head, embedding, both, resized vocabulary} x {tied, apart} -----------------------


def on_head(rng: np.random.Generator) -> dict[str, Any]:
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((4, 16), (40, 4)))
    return {f"{PREFIX}{HEAD}.lora_A.weight": a, f"{PREFIX}{HEAD}.lora_B.weight": b}


def on_embedding(rng: np.random.Generator) -> dict[str, Any]:
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((4, 40), (16, 4)))
    return {f"{PREFIX}{EMBED}.lora_embedding_A": a, f"{PREFIX}{EMBED}.lora_embedding_B": b}


def delta_of(tensors: dict[str, Any], module: str) -> Any:
    """float64 `[vocab, hidden]`; zero where the adapter has none."""
    found = [tensors[n].astype(np.float64) for n in sorted(tensors) if f".{module}." in f".{n}"]
    if not found:
        return np.zeros((40, 16))
    product_ = 2.0 * (found[1] @ found[0])
    return product_ if module == HEAD else product_.T


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("place", ["head", "embedding", "both"])
def test_adapters_on_tied_and_untied_ends(place: str, tied: bool, tmp_path: Path) -> None:
    """Each end becomes the base's own plus its delta; ends that then differ are no longer tied."""
    model = make_model(0.0, tie_word_embeddings=tied)
    weights = weights_of(model)
    rng = np.random.default_rng(6)
    tensors: dict[str, Any] = {}
    if place != "embedding":
        tensors |= on_head(rng)
    if place != "head":
        tensors |= on_embedding(rng)
    targets = {"head": [HEAD], "embedding": ["embed_tokens"], "both": [HEAD, "embed_tokens"]}
    folder = write_lora(tmp_path / "a", tensors, target_modules=targets[place])
    fused = fuse(model, [(read(folder, model.spec), 1.0)])
    embedding = weights[f"{EMBED}.weight"].astype(np.float64)
    head = embedding if tied else weights["lm_head.weight"]
    assert fused.tied is False, "ends that differ stay tied"
    for name, want in (
        (f"{EMBED}.weight", embedding + delta_of(tensors, EMBED)),
        ("lm_head.weight", head + delta_of(tensors, HEAD)),
    ):
        found = rows(fused, name)
        assert np.abs(found - want).max() <= 1e-6 * np.abs(want).max(), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("place", ["head", "embedding", "both"])
def test_a_resized_vocabulary_is_refused(place: str, tied: bool, tmp_path: Path) -> None:
    """More rows than the base has: they belong to a base that was resized before training."""
    spec = spec_of(tie_word_embeddings=tied)
    longer = np.ones((43, 16), np.float32)
    names = {"head": [HEAD], "embedding": [EMBED], "both": [HEAD, EMBED]}[place]
    extra = {f"{PREFIX}{n}.weight": longer for n in names}
    saves = [n.rpartition(".")[2] for n in names]
    folder = write_lora(tmp_path / "a", {**tensors_of(PAIRS), **extra}, modules_to_save=saves)
    with pytest.raises(InputRefused) as caught:
        read(folder, spec)
    assert caught.value.code in ("adapter-shape", "vocab-mismatch")
