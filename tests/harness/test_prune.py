"""Pruned folders: exact counts, untouched bytes, and Wanda against a slow float64 reference."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from exporter.check.model import check_model
from exporter.errors import InputRefused, UsageError
from exporter.store.checkpoint import Checkpoint
from harness.hf import load_tokenizer
from harness.prune.run import MASKS, RECORD, Calibration, prune_folder
from harness.prune.sparsity import NM, Unstructured
from harness.text import draw, windows
from tests.tiny import save_tiny

CALIBRATION = Calibration(samples=6, length=24)


def linears(folder):
    """(linear, stored weight as float32) of every prunable linear."""
    checkpoint = Checkpoint.open(folder)
    checked = check_model(checkpoint)
    for linear in checked.spec.linears():
        yield linear, checked.checkpoint.rows(linear.weight)
    checkpoint.close()


def lowest(scores, count):
    """Slow: False at the `count` lowest of each row."""
    kept = np.ones(scores.shape, bool)
    np.put_along_axis(kept, np.argsort(scores, axis=1, kind="stable")[:, :count], False, 1)
    return kept


def note(seen, name):
    def hook(_, inputs):
        seen[name] = inputs[0].detach().numpy()

    return hook


def wanda_slowly(folder, share):
    """Masks by module: the whole model in float64, run from the start for every block."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    rows = windows(load_tokenizer(folder), CALIBRATION.source, CALIBRATION.length)
    ids = torch.from_numpy(draw(rows, CALIBRATION.samples, CALIBRATION.seed))
    modules = {n: m for n, m in model.named_modules() if n.endswith("_proj")}
    masks = {}
    for layer in range(model.config.num_hidden_layers):
        inside = {n: m for n, m in modules.items() if f".{layer}." in n}
        seen = {}
        hooks = [m.register_forward_pre_hook(note(seen, n)) for n, m in inside.items()]
        with torch.no_grad():
            model(input_ids=ids)
            for name, module in inside.items():
                norm = np.sqrt((seen[name] ** 2).sum(axis=(0, 1)))
                weight = module.weight.numpy()
                masks[name] = lowest(np.abs(weight) * norm, int(weight.shape[1] * share))
                module.weight.mul_(torch.from_numpy(masks[name]))
        for hook in hooks:
            hook.remove()
    return masks


@pytest.mark.parametrize("kind", ["smollm2", "llama2", "mistral", "qwen2", "qwen3"])
def test_wanda_is_the_slow_reference(tmp_path, kind):
    base = save_tiny(kind, tmp_path / "m", num_hidden_layers=3)
    prune_folder(base, tmp_path / "out", "wanda", Unstructured(0.6), CALIBRATION)
    expected = wanda_slowly(base, 0.6)
    differing = total = 0
    for linear, weight in linears(tmp_path / "out"):
        assert ((weight == 0).sum(axis=1) == int(linear.in_features * 0.6)).all()
        differing += ((weight != 0) != expected[linear.module]).sum()
        total += weight.size
    assert differing <= total * 1e-4  # scores that are equal in float32 alone


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_two_of_four_is_exact_in_every_group(tmp_path, method):
    base = save_tiny("smollm2", tmp_path / "m")
    prune_folder(base, tmp_path / "out", method, NM(2, 4), CALIBRATION)
    for _, weight in linears(tmp_path / "out"):
        assert ((weight.reshape(len(weight), -1, 4) != 0).sum(axis=2) == 2).all()
    checked = check_model(Checkpoint.open(tmp_path / "out"), masks=tmp_path / "out" / MASKS)
    assert {str(p.pattern) for p in checked.patterns.values()} == {"2:4"}


def test_only_zeros_are_new(tmp_path):
    base = save_tiny("smollm2", tmp_path / "m", dtype="bfloat16", shard="60KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    done = prune_folder(base, tmp_path / "out", "magnitude", Unstructured(0.7))
    before, after = Checkpoint.open(base), Checkpoint.open(tmp_path / "out")
    checked = check_model(after, masks=tmp_path / "out" / MASKS)
    pruned = {linear.weight: linear for linear in checked.spec.linears()}
    assert after.entries.keys() == before.entries.keys()
    kept = 0
    for name, entry in before.entries.items():
        assert (after.entries[name].dtype, after.entries[name].shape) == (entry.dtype, entry.shape)
        old, new = before.view(name).view(np.uint16), after.view(name).view(np.uint16)
        if name in pruned:
            mask = checked.masks.mask(pruned[name]).rows()
            np.testing.assert_array_equal(new, np.where(mask, old, 0))
            assert (mask.sum(axis=1) == mask.shape[1] - int(mask.shape[1] * 0.7)).all()
            kept += mask.sum()
        else:
            np.testing.assert_array_equal(new, old)
    assert (done.kept, done.linears) == (kept, len(pruned))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["asked"] == "70% unstructured, per row"
    assert record["sparsity"] == pytest.approx(done.sparsity)


def test_per_tensor_reaches_the_share_over_the_tensor_and_masks_nest(tmp_path):
    base = save_tiny("llama2", tmp_path / "m")
    half = prune_folder(base, tmp_path / "a", "magnitude", Unstructured(0.5, "tensor"))
    assert half.sparsity == pytest.approx(0.5)
    prune_folder(tmp_path / "a", tmp_path / "b", "magnitude", Unstructured(0.7, "tensor"))
    prune_folder(base, tmp_path / "c", "magnitude", Unstructured(0.7, "tensor"))
    for (_, twice), (_, once) in zip(linears(tmp_path / "b"), linears(tmp_path / "c"), strict=True):
        np.testing.assert_array_equal(twice, once)


def test_equal_runs_give_equal_bytes(tmp_path):
    base = save_tiny("qwen3", tmp_path / "m")
    for out in ("a", "b"):
        prune_folder(base, tmp_path / out, "wanda", Unstructured(0.5), CALIBRATION)
    names = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*"))
    assert MASKS in names
    for name in names:
        if (tmp_path / "a" / name).is_file():
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_model_with_nan_is_refused_and_nothing_is_written(tmp_path):
    base = save_tiny("smollm2", tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    model.save_pretrained(base)
    with pytest.raises(InputRefused, match=r"value-not-finite[\s\S]*layers.1.mlp.up_proj"):
        prune_folder(base, tmp_path / "out", "magnitude", Unstructured(0.5))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_existing_output_is_kept_without_force(tmp_path):
    base = save_tiny("smollm2", tmp_path / "m")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="output-exists"):
        prune_folder(base, tmp_path / "out", "magnitude", Unstructured(0.5))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_text_that_is_too_short_leaves_nothing(tmp_path):
    base = save_tiny("smollm2", tmp_path / "m")
    (tmp_path / "t.txt").write_text("too short")
    with pytest.raises(InputRefused, match="data-invalid"):
        prune_folder(
            base, tmp_path / "out", "wanda", NM(2, 4), Calibration(str(tmp_path / "t.txt"))
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "t.txt"]


@pytest.mark.parametrize("amount", [Unstructured(0.5), NM(2, 4)])
def test_gpt2_is_pruned_along_its_inputs(tmp_path, amount):
    """Its linears are stored [in, out]; scores, masks and zeros are of [out, in]."""
    source = save_tiny("gpt2", tmp_path / "dense")
    prune_folder(source, tmp_path / "sparse", "magnitude", amount)
    sparse = {linear.module: weight for linear, weight in linears(tmp_path / "sparse")}
    for linear, weight in linears(source):
        got = sparse[linear.module]
        if isinstance(amount, NM):
            groups = np.abs(weight).reshape(-1, 4)
            want = lowest(groups, 2).reshape(weight.shape)
            assert np.array_equal(got, np.where(want, weight, 0))
        assert np.array_equal(got[got != 0], weight[got != 0])
        assert np.count_nonzero(got) == weight.size // 2
    checked = check_model(Checkpoint.open(tmp_path / "sparse"), masks=tmp_path / "sparse" / MASKS)
    assert {p.pattern.kind for p in checked.patterns.values()} == {
        "n:m" if isinstance(amount, NM) else "unstructured"
    }


def test_wanda_on_gpt2_is_refused(tmp_path):
    source = save_tiny("gpt2", tmp_path / "dense")
    with pytest.raises(InputRefused) as caught:
        prune_folder(source, tmp_path / "sparse", "wanda", Unstructured(0.5), CALIBRATION)
    assert caught.value.code == "arch-unsupported" and "gpt2" in caught.value.found
