"""Trained adapters: LoSA bundles keep every zero, plain LoRA does not; bad runs leave nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from exporter.adapters.base import BaseIdentity
from exporter.adapters.load import load_adapter
from exporter.check.model import check_model
from exporter.errors import InputRefused, VerificationFailed
from exporter.merge.fuse import fuse
from exporter.store.checkpoint import Checkpoint
from harness.hf import load_float32, load_tokenizer
from harness.methods.base import Base
from harness.methods.lors import LorsLinear
from harness.methods.losa import Losa, LosaSettings
from harness.methods.masked import MaskedLoraLinear
from harness.methods.options import Training
from harness.methods.recipe import Recipe
from harness.methods.registry import TrainMethod
from harness.methods.run import train_folder
from harness.text import windows
from tests.tiny import save_tiny

SHORT = Training(steps=6, batch=2, length=24, lr=5e-3)


@pytest.fixture
def base(tmp_path):
    return save_tiny("smollm2", tmp_path / "m", sparsity=0.7, seed=1)


def quiet(step, loss):
    pass


def run(base, out, method, options=SHORT, **more):
    resume, force = more.pop("resume", False), more.pop("force", False)
    more.setdefault("settings", ("rank=4", "alpha=8"))
    recipe = Recipe(TrainMethod(method), options, **more)
    return train_folder(base, out, recipe, report=quiet, resume=resume, force=force)


def opened(base, adapter):
    checkpoint = Checkpoint.open(base)
    checked = check_model(checkpoint)
    identity = BaseIdentity(base.name, checkpoint.identity)
    return checked, load_adapter(adapter, checked.spec, identity)


def test_losa_lowers_the_loss_and_fuses_without_losing_a_zero(tmp_path, base):
    slow = Training(steps=30, batch=2, length=24, lr=1e-2)
    losses = run(base, tmp_path / "losa", "losa", slow)["losses"]
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 0.1
    checked, adapter = opened(base, tmp_path / "losa")
    assert adapter.masked
    fused = fuse(checked, [(adapter, 1.0)], None)
    for linear in checked.spec.linears():
        tensor = fused.tensors[linear.weight]
        old, new = checked.checkpoint.rows(linear.weight), tensor.rows(0, linear.out_features)
        assert not new[old == 0].any()
        assert (new[old != 0] != old[old != 0]).mean() > 0.9


def test_plain_lora_has_weight_outside_the_mask(tmp_path, base):
    run(base, tmp_path / "lora", "lora")
    checked, adapter = opened(base, tmp_path / "lora")
    assert not adapter.masked
    linear = checked.spec.linears()[0]
    delta = adapter.deltas[linear.module].rows(0, linear.out_features)
    assert np.abs(delta[checked.checkpoint.rows(linear.weight) == 0]).max() > 0
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "m"
    for file in (tmp_path / "lora").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), "a path of this machine"


def test_equal_seeds_give_equal_bundles(tmp_path, base):
    for out in ("a", "b"):
        run(base, tmp_path / out, "losa")
    for file in (tmp_path / "a").iterdir():
        if file.name == "cost.json":  # holds times
            continue
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_ranks_may_differ_and_leave_modules_out(tmp_path, base):
    checked = check_model(Checkpoint.open(base))
    one, two = (checked.spec.linears()[i].module for i in (0, 5))
    method = Losa(Base(load_float32(base), checked, SHORT), LosaSettings(), {one: 2, two: 5})
    with torch.no_grad():
        for layer in method.layers.values():
            layer.lora_b.fill_(0.1)
    method.write(tmp_path / "losa")
    _, adapter = opened(base, tmp_path / "losa")
    assert set(adapter.deltas) == {one, two}
    tensors = load_file(tmp_path / "losa" / "adapter_model.safetensors")
    ranks = {n.split("model.model.")[1]: t.shape[0] for n, t in tensors.items() if "lora_A" in n}
    assert sorted(ranks.values()) == [2, 5]


def test_the_trained_function_is_the_fused_one(tmp_path, base):
    """What training computed at its end is what the exporter makes of base and bundle."""
    run(base, tmp_path / "losa", "losa")
    checked, adapter = opened(base, tmp_path / "losa")
    fused = fuse(checked, [(adapter, 1.0)], None)
    ids = torch.from_numpy(windows(load_tokenizer(base), "builtin", 24)[:2])
    model, plain = load_float32(base), load_float32(base)
    tensors = load_file(tmp_path / "losa" / "adapter_model.safetensors")
    ranks = {linear.module: 4 for linear in checked.spec.linears()}
    settings = LosaSettings(rank=4, alpha=8.0)
    for name, layer in Losa(Base(model, checked, SHORT), settings, ranks).layers.items():
        layer.lora_a.data = torch.from_numpy(tensors[f"base_model.model.{name}.lora_A.weight"])
        layer.lora_b.data = torch.from_numpy(tensors[f"base_model.model.{name}.lora_B.weight"])
        weight = fused.tensors[f"{name}.weight"]
        plain.get_submodule(name).weight.data = torch.from_numpy(weight.rows(0, weight.shape[0]))
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=1e-4, atol=1e-5
        )


def test_the_cheap_gradient_of_losa_is_that_of_lors(base):
    """One function, and gradients that differ only by what the mask takes."""
    checked = check_model(Checkpoint.open(base))
    ids = torch.from_numpy(windows(load_tokenizer(base), "builtin", 24)[:2])
    ranks = {linear.module: 4 for linear in checked.spec.linears()}
    losses, grads = [], []
    for gradient in ("exact", "cheap"):
        settings = LosaSettings(rank=4, gradient=gradient)
        method = Losa(Base(load_float32(base), checked, SHORT), settings, ranks)
        assert {type(layer) for layer in method.layers.values()} == {
            LorsLinear if gradient == "cheap" else MaskedLoraLinear
        }
        with torch.no_grad():
            for layer in method.layers.values():
                layer.lora_b.fill_(0.01)
        loss = method.model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
        grads.append({n: p.grad.clone() for n, p in method.trained.items() if n.endswith(".b")})
    assert losses[0] == losses[1]
    assert not any(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@pytest.mark.parametrize("method", ["losa", "lora"])
def test_numbers_that_explode_leave_nothing(tmp_path, base, method):
    with pytest.raises(VerificationFailed, match="training-failed"):
        run(base, tmp_path / "out", method, Training(steps=20, batch=2, length=24, lr=1e30))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_empty_data_is_refused_before_training(tmp_path, base):
    (tmp_path / "t.txt").write_text("  ")
    with pytest.raises(InputRefused, match="data-invalid"):
        run(base, tmp_path / "out", "losa", data=str(tmp_path / "t.txt"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_linears_that_are_no_modules_are_refused_before_torch_is_loaded(tmp_path, kind):
    base = save_tiny(kind, tmp_path / "m", sparsity=0.5)
    with pytest.raises(InputRefused) as caught:
        run(base, tmp_path / "out", "losa")
    assert caught.value.code == "arch-unsupported" and kind in caught.value.found
    assert not (tmp_path / "out").exists()
