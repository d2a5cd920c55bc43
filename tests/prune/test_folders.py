"""Whole folders by every method: slow float64 models, units that stay whole, rates, records."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from exporter.check.model import check_model
from exporter.cli import run as export_run
from exporter.errors import InputRefused, UsageError, VerificationFailed
from exporter.store.checkpoint import Checkpoint
from harness.hf import load_tokenizer
from harness.prune.gradients import block_squares
from harness.prune.plan import Rates
from harness.prune.run import MASKS, RECORD, Calibration, prune_folder
from harness.prune.sparsity import NM, Unstructured
from harness.rates.observe import importances
from harness.text import draw, windows
from tests.prune import slow
from tests.tiny import save_tiny

CALIBRATION = Calibration(samples=6, length=24)
METHODS = ["magnitude", "wanda", "sparsegpt", "alps", "pruner-zero"]


def text_of(folder):
    rows = windows(load_tokenizer(folder), CALIBRATION.source, CALIBRATION.length)
    return draw(rows, CALIBRATION.samples, CALIBRATION.seed)


def opened(folder, masks=None):
    return check_model(Checkpoint.open(folder), masks=masks)


def weights(folder):
    checked = opened(folder)
    return {li.module: checked.checkpoint.rows(li.weight) for li in checked.spec.linears()}


def note(seen, name):
    def hook(_, inputs):
        seen[name] = inputs[0].flatten(0, 1).numpy()

    return hook


def sparsegpt_slowly(folder, share):
    """The whole model in float64, run from the start for every block."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = torch.from_numpy(text_of(folder))
    found = {}
    for layer in range(model.config.num_hidden_layers):
        inside = {n: m for n, m in model.named_modules() if f".{layer}." in n and "_proj" in n}
        seen = {}

        hooks = [m.register_forward_pre_hook(note(seen, n)) for n, m in inside.items()]
        with torch.no_grad():
            model(input_ids=ids)
            for name, module in inside.items():
                gram = seen[name].T @ seen[name]
                new, _ = slow.sparsegpt(module.weight.numpy(), gram, share=share)
                module.weight.copy_(torch.from_numpy(new))
                found[name] = new
        for hook in hooks:
            hook.remove()
    return found


def test_sparsegpt_on_a_model_is_the_slow_reference(tmp_path):
    base = save_tiny("qwen3", tmp_path / "m", hidden_size=32, intermediate_size=40, head_dim=8)
    prune_folder(base, tmp_path / "out", "sparsegpt", Unstructured(0.5), CALIBRATION)
    want = sparsegpt_slowly(base, 0.5)
    for module, got in weights(tmp_path / "out").items():
        assert ((got == 0) != (want[module] == 0)).mean() < 0.01
        assert np.abs(got - want[module]).max() < 0.02 * np.abs(want[module]).max()


def test_gradients_are_those_of_the_whole_model(tmp_path):
    base = save_tiny("llama3", tmp_path / "m", num_hidden_layers=3)
    ids = text_of(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    want = {}
    for row in torch.from_numpy(ids):
        model.zero_grad()
        model(input_ids=row[None], labels=row[None]).loss.backward()
        for name, p in model.named_parameters():
            if "_proj" in name:
                key = name.removesuffix(".weight")
                want[key] = want.get(key, 0) + p.grad.numpy() ** 2
    (tmp_path / "spare").mkdir()
    seen = []
    for index, squares in block_squares(opened(base), ids, tmp_path / "spare"):
        seen.append(index)
        for module, (_, got) in squares.items():
            np.testing.assert_allclose(got.numpy(), want[module], rtol=2e-3, atol=1e-9)
    assert seen == [2, 1, 0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("amount", [Unstructured(0.5), NM(2, 4), NM(1, 3)])
def test_every_method_reaches_every_pattern_and_the_exporter_takes_it(tmp_path, method, amount):
    base = save_tiny("qwen2", tmp_path / "m", dtype="bfloat16")
    done = prune_folder(base, tmp_path / "out", method, amount, CALIBRATION)
    checked = opened(tmp_path / "out", tmp_path / "out" / MASKS)
    for linear in checked.spec.linears():
        kept = checked.masks.mask(linear).rows()
        if isinstance(amount, NM):
            whole = kept[:, : kept.shape[1] // amount.m * amount.m]
            assert (whole.reshape(len(kept), -1, amount.m).sum(axis=2) == amount.n).all()
        else:
            assert (~kept).sum() == kept.size // 2
    assert done.record()["rewrites_kept_weights"] == (method in ("sparsegpt", "alps"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.isfinite(model(input_ids=torch.arange(3, 9)[None]).logits).all()


@pytest.mark.parametrize("kind", ["llama2", "smollm2", "qwen2", "qwen3"])
def test_wanda_sp_drops_whole_units_of_every_family(tmp_path, kind):
    """Heads go by key-value groups; what is left computes what the model without them does."""
    base = save_tiny(kind, tmp_path / "m", num_key_value_heads=2, num_attention_heads=4,
                     hidden_size=64)  # fmt: skip
    prune_folder(base, tmp_path / "out", "wanda-sp", Unstructured(0.5), CALIBRATION)
    checked = opened(tmp_path / "out", tmp_path / "out" / MASKS)
    assert {p.pattern.kind for p in checked.patterns.values()} == {"rows", "columns"}
    dim = checked.spec.head_dim
    for layer in range(2):
        kept = {li.role: checked.masks.mask(li).rows()
                for li in checked.spec.linears() if li.layer == layer}  # fmt: skip
        groups = kept["k"].reshape(2, dim, -1).all(axis=(1, 2))
        assert groups.sum() == 1
        np.testing.assert_array_equal(kept["v"], kept["k"])
        np.testing.assert_array_equal(kept["q"].all(axis=1), np.repeat(groups, 2 * dim))
        np.testing.assert_array_equal(kept["o"].all(axis=0), np.repeat(groups, 2 * dim))
        channels = kept["up"].all(axis=1)
        assert channels.sum() == 80
        np.testing.assert_array_equal(kept["gate"], kept["up"])
        np.testing.assert_array_equal(kept["down"].any(axis=0), channels)


def test_wanda_sp_drops_the_units_of_lowest_score(tmp_path):
    base = save_tiny("smollm2", tmp_path / "m", num_hidden_layers=1)
    prune_folder(base, tmp_path / "out", "wanda-sp", Unstructured(0.4), CALIBRATION)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    seen = {}
    block = model.model.layers[0]
    for name, module in (("o", block.self_attn.o_proj), ("down", block.mlp.down_proj)):
        module.register_forward_pre_hook(
            lambda m, x, n=name: seen.update({n: x[0].flatten(0, 1).norm(dim=0) * m.weight.abs()})
        )
    with torch.no_grad():
        model(input_ids=torch.from_numpy(text_of(base)))
    heads = seen["o"].mean(dim=0).reshape(3, -1).sum(dim=1).numpy()
    down = seen["down"].mean(dim=0).numpy()
    got = weights(tmp_path / "out")
    k = got["model.layers.0.self_attn.k_proj"].reshape(3, -1).any(axis=1)
    np.testing.assert_array_equal(k, slow.drop_lowest(list(heads), 1))
    up = got["model.layers.0.mlp.up_proj"].any(axis=1)
    np.testing.assert_array_equal(up, slow.drop_lowest(list(down), 64))


def test_rates_follow_rmi_and_the_mean_is_met(tmp_path):
    base = save_tiny("smollm2", tmp_path / "m", num_hidden_layers=6)
    done = prune_folder(
        base, tmp_path / "out", "wanda", Unstructured(0.7), CALIBRATION,
        rates=Rates("rmi", delta=0.1, compare=("owl", "gradient", "angular")),
    )  # fmt: skip
    order = np.argsort(done.plan.importance["rmi"])
    assert done.plan.rates == pytest.approx(
        [0.8 if i in order[:3] else 0.6 for i in range(6)], abs=1e-6
    )
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["reached"] == pytest.approx(record["rates"], abs=0.02)  # floor(in * rate)
    assert set(record["rank_correlation_with_rmi"]) == {"owl", "gradient", "angular"}
    assert record["calibration"]["seed"] == 0 and len(record["data_sha256"]) == 64
    again = prune_folder(
        base, tmp_path / "again", "wanda", Unstructured(0.7), CALIBRATION,
        rates=Rates(str(tmp_path / "out" / RECORD)),
    )  # fmt: skip
    assert again.kept == done.kept
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_importances_are_their_definitions(tmp_path):
    base = save_tiny("mistral", tmp_path / "m", num_hidden_layers=3)
    ids = torch.from_numpy(text_of(base))
    (tmp_path / "spare").mkdir()
    got = importances(opened(base), ids.numpy(), ("angular", "owl"), tmp_path / "spare")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    norms, states = {}, []
    for name, module in model.named_modules():
        if "_proj" in name:
            module.register_forward_pre_hook(
                lambda _, x, n=name: norms.update({n: x[0].flatten(0, 1).norm(dim=0)})
            )
    for block in model.model.layers:
        block.register_forward_hook(lambda _, x, y: states.append((x[0], y)))
    with torch.no_grad():
        model(input_ids=ids)
    for layer in range(3):
        before, after = states[layer]
        cosine = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
        assert got["angular"][layer] == pytest.approx(
            float(torch.arccos(cosine).mean()) / np.pi, rel=1e-4
        )
        scores = [
            m.weight.abs() * norms[n] for n, m in model.named_modules() if f".{layer}." in n
            and "_proj" in n
        ]  # fmt: skip
        above = sum(int((s > 5 * s.mean()).sum()) for s in scores)
        assert got["owl"][layer] == pytest.approx(above / sum(s.numel() for s in scores))


@pytest.mark.parametrize("rule", ["deviation", "budget"])
def test_mixed_nm_keeps_the_density(tmp_path, rule):
    base = save_tiny("llama2", tmp_path / "m", num_hidden_layers=4)
    done = prune_folder(
        base, tmp_path / "out", "wanda", NM(2, 8), CALIBRATION,
        rates=Rates("rmi", delta=0.125, rule=rule),
    )  # fmt: skip
    order = np.argsort(done.plan.importance["rmi"])
    kept = [target.n for target in done.plan.targets]
    assert sorted(kept) == [1, 1, 3, 3] and kept[order[0]] == 1 and kept[order[3]] == 3
    assert done.sparsity == pytest.approx(0.75)
    patterns = opened(tmp_path / "out", tmp_path / "out" / MASKS).patterns.values()
    assert {str(p.pattern) for p in patterns} == {"1:8", "3:8"}


def test_the_exporter_takes_what_every_kind_of_run_wrote(tmp_path):
    base = save_tiny("smollm2", tmp_path / "m")
    for method, amount in (("sparsegpt", NM(2, 4)), ("wanda-sp", Unstructured(0.4))):
        out = tmp_path / method
        prune_folder(base, out, method, amount, CALIBRATION)
        words = [str(out), "--masks", str(out / MASKS), "--target", "onnxruntime"]
        assert export_run([*words, "-o", str(tmp_path / f"{method}-art")]) == 0


def test_hidden_states_on_disk_give_the_same_bytes(tmp_path, monkeypatch):
    base = save_tiny("smollm2", tmp_path / "m")
    prune_folder(base, tmp_path / "a", "wanda", NM(2, 4), CALIBRATION)
    monkeypatch.setattr("harness.prune.passes.SPILL_BYTES", 0)
    prune_folder(base, tmp_path / "b", "wanda", NM(2, 4), CALIBRATION)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "model.safetensors"
    ).read_bytes()
    assert not (tmp_path / "b" / "spare").exists()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "pruner-zero", "wanda-sp"])
def test_activations_that_overflow_are_told_by_phase_and_tensor(tmp_path, method):
    base = save_tiny("llama2", tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1e30)
        model.model.layers[1].mlp.gate_proj.weight.mul_(1e30)
    model.save_pretrained(base)
    with pytest.raises(VerificationFailed) as caught:
        prune_folder(base, tmp_path / "out", method, Unstructured(0.5), CALIBRATION)
    assert caught.value.code == "values-not-finite"
    assert "pruning, inputs in block 1" in caught.value.found or "gradients" in caught.value.found
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["m"]


@pytest.mark.parametrize(
    ("method", "amount", "calibration", "rates", "code"),
    [
        ("wanda", Unstructured(0.5), Calibration(length=257), Rates(), "usage"),
        ("wanda", NM(2, 128), CALIBRATION, Rates(), "usage"),
        ("wanda-sp", NM(2, 4), CALIBRATION, Rates(), "usage"),
        ("wanda", Unstructured(0.5), CALIBRATION, Rates(compare=("none",)), "usage"),
        ("wanda", Unstructured(0.5), CALIBRATION, Rates("no.json"), "input-missing"),
        ("wanda", Unstructured(0.5), Calibration(samples=1), Rates("rmi"), "data-invalid"),
        ("wanda", NM(1, 4), CALIBRATION, Rates("rmi"), "usage"),  # 0:4 would be a block of zeros
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, method, amount, calibration, rates, code):
    base = save_tiny("smollm2", tmp_path / "m")
    with pytest.raises((UsageError, InputRefused)) as caught:
        prune_folder(base, tmp_path / "out", method, amount, calibration, rates=rates)
    assert caught.value.code == code
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["m"]


def test_gpt2_has_no_units_and_no_calibrated_pruning(tmp_path):
    base = save_tiny("gpt2", tmp_path / "m")
    for method in ("wanda-sp", "sparsegpt", "pruner-zero"):
        with pytest.raises(InputRefused, match="arch-unsupported"):
            prune_folder(base, tmp_path / "out", method, Unstructured(0.5), CALIBRATION)
