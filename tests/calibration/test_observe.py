"""Blocks one by one against transformers' whole model: loss, and inputs of every linear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backends.calibration.run import TorchCalibrator
from backends.reference.build import build_model
from exporter.check.model import check_model
from exporter.errors import InputRefused
from exporter.merge.fuse import fuse
from exporter.model import FusedModel
from exporter.store.checkpoint import Checkpoint
from tests.tiny import CONV1D, VOCAB, save_tiny

KINDS = ("llama2", "llama3", "qwen2", "qwen3", "mistral", CONV1D)
IDS = np.random.default_rng(0).integers(0, VOCAB, (7, 20))


@pytest.fixture(scope="module", params=KINDS)
def fused(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FusedModel:
    folder = save_tiny(request.param, tmp_path_factory.mktemp("m") / "model", sparsity=0.5)
    return fuse(check_model(Checkpoint.open(folder)), [])


def whole_model(fused: FusedModel, modules: list[str], held_out: int) -> tuple[float, Any]:
    """Loss and Gram matrices of transformers' own forward, in float64."""
    net: Any = build_model(fused).double()
    inputs: dict[str, list[Any]] = {m: [] for m in modules}
    hooks = [
        net.get_submodule(m).register_forward_pre_hook(
            lambda _, args, m=m: inputs[m].append(args[0].detach().flatten(0, -2).numpy())
        )
        for m in modules
    ]
    with torch.no_grad():
        net(input_ids=torch.from_numpy(IDS[: len(IDS) - held_out]))
        for hook in hooks:
            hook.remove()
        logits = net(input_ids=torch.from_numpy(IDS[len(IDS) - held_out :])).logits
    want = torch.from_numpy(IDS[len(IDS) - held_out :, 1:])
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), want)
    grams = {m: sum(x.T @ x for x in seen) for m, seen in inputs.items()}
    return float(loss), grams


def test_blocks_compute_what_the_whole_model_computes(fused: FusedModel) -> None:
    modules = [linear.module for linear in fused.spec.linears()]
    kept: dict[str, Any] = {}
    calls: list[list[str]] = []

    def keep(names: Any, gram: Any) -> None:
        calls.append(list(names))
        kept.update(dict.fromkeys(names, gram.copy()))

    loss = TorchCalibrator().observe(fused, IDS, 3, modules, keep)
    want, grams = whole_model(fused, modules, 3)
    assert loss == pytest.approx(want, rel=1e-5)
    assert kept.keys() == grams.keys()
    for module, gram in grams.items():
        assert np.abs(kept[module] - gram).max() <= 1e-5 * np.abs(gram).max(), module
    # q, k and v read one input, gate and up another; GPT-2 has one linear for each input.
    shared = [1, 1, 1, 1] if fused.spec.family == CONV1D else [3, 1, 2, 1]
    assert [len(c) for c in calls] == shared * fused.spec.layers


def test_only_the_modules_asked_for_are_observed(fused: FusedModel) -> None:
    asked = [fused.spec.linears()[1].module]
    seen: list[Any] = []
    TorchCalibrator().observe(fused, IDS, 1, asked, lambda names, _: seen.append(list(names)))
    assert seen == [asked]


def test_held_out_text_changes_no_gram(fused: FusedModel) -> None:
    module = fused.spec.linears()[0].module
    grams: list[Any] = []
    other = IDS.copy()
    other[-2:] = 7
    for ids in (IDS, other):
        TorchCalibrator().observe(fused, ids, 2, [module], lambda _, g: grams.append(g.copy()))
    np.testing.assert_array_equal(grams[0], grams[1])


def test_memory_holds_one_block(fused: FusedModel, tmp_path: Path) -> None:
    """Weights are on the meta device outside the block that runs."""
    from backends.calibration.blocks import BlockStream

    stream = BlockStream(fused, IDS)
    net: Any = stream._model
    assert all(p.is_meta for p in net.parameters())
    stream.load(1)
    real = {n for n, p in net.named_parameters() if not p.is_meta}
    assert real and all(n.startswith(stream.prefix(1)) for n in real)
    stream.drop(1)
    assert all(p.is_meta for p in net.parameters())


def test_experts_are_refused(tmp_path: Path) -> None:
    checked = check_model(Checkpoint.open(save_tiny("mixtral", tmp_path)))
    with pytest.raises(InputRefused) as caught:
        TorchCalibrator().observe(fuse(checked, []), IDS, 1, [], lambda *_: None)
    assert caught.value.code == "arch-unsupported" and "mixtral" in caught.value.found
