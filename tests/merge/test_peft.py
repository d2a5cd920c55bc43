"""Against the real PEFT on tiny models: saved adapters, merged weights, and forwards."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.load import load_adapter
from exporter.adapters.losa import write_losa
from exporter.check.model import check_model
from exporter.errors import InputRefused
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel, FusedModel
from exporter.store.checkpoint import Checkpoint
from tests.tiny import save_tiny

TOKENS = torch.arange(3, 27).reshape(2, 12)


@dataclass
class Case:
    """A base on disk, and PEFT's model over it with the adapter that lies in `adapter`."""

    checked: CheckedModel
    adapter: Path
    peft: Any

    def load(self) -> Adapter:
        checkpoint = self.checked.checkpoint
        base = BaseIdentity(checkpoint.root.name, checkpoint.identity)
        return load_adapter(self.adapter, self.checked.spec, base)

    def fused(self, policy: str | None = None) -> FusedModel:
        return fuse(self.checked, [(self.load(), 1.0)], policy)


def trained(tmp_path: Path, base: dict[str, Any] | None = None, **lora: Any) -> Case:
    """Make a base, give it a random adapter, save that with PEFT."""
    folder = save_tiny(**{"kind": "llama2", "folder": tmp_path / "base", **(base or {})})
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "init_lora_weights": False, **lora})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in (p for p in peft.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.save_pretrained(tmp_path / "adapter")
    checked = check_model(Checkpoint.open(folder))
    return Case(checked, tmp_path / "adapter", peft)


def values(fused: FusedModel) -> dict[str, Any]:
    return {n: t.rows(0, t.shape[0]) for n, t in fused.tensors.items()}


def assert_merged_alike(case: Case, fused: FusedModel) -> None:
    """Every weight against PEFT's merge, largest error against largest value."""
    merged = copy.deepcopy(case.peft).merge_and_unload().state_dict()
    mine = values(fused)
    for name, found in mine.items():
        want = merged[name].numpy()
        assert np.abs(found - want).max() <= 1e-6 * np.abs(want).max(), name


def forward_of(case: Case, fused: FusedModel) -> Any:
    """Logits of a plain transformers model that holds the fused tensors."""
    config = copy.deepcopy(case.peft.config)
    config.tie_word_embeddings = fused.tied
    model = AutoModelForCausalLM.from_config(config).eval()
    tensors = {n: torch.from_numpy(v) for n, v in values(fused).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if fused.tied else set())
    model.tie_weights()
    with torch.no_grad():
        return model(TOKENS).logits.numpy()


def assert_same_forward(case: Case, fused: FusedModel) -> None:
    plain_model = AutoModelForCausalLM.from_pretrained(case.checked.checkpoint.root)
    with torch.no_grad():
        want = case.peft(TOKENS).logits.numpy()
        plain = plain_model(TOKENS).logits.numpy()
    assert np.abs(want - plain).max() > 1e-2 * np.abs(want).max()  # the adapter does something
    assert np.abs(forward_of(case, fused) - want).max() <= 1e-5 * np.abs(want).max()


PLAIN = {"target_modules": ["q_proj", "v_proj"]}


def test_float32_forward_of_a_head_size_of_its_own(tmp_path: Path):
    """Qwen3; the options of LoRA have their rows in tests/peft."""
    case = trained(tmp_path, base={"kind": "qwen3"}, target_modules="all-linear")
    fused = case.fused()
    assert_merged_alike(case, fused)
    assert_same_forward(case, fused)


def test_deltas_equal_get_delta_weight(tmp_path: Path):
    case = trained(tmp_path, target_modules="all-linear", rank_pattern={"up_proj": 5})
    adapter = case.load()
    assert len(adapter.deltas) == 14
    for module, delta in adapter.deltas.items():
        layer = case.peft.get_base_model().get_submodule(module)
        want = layer.get_delta_weight("default").detach().numpy()
        found = delta.rows(0, delta.shape[0])
        assert np.abs(found - want).max() <= 1e-6 * np.abs(want).max(), module


def test_overlapping_patterns_that_saving_has_reordered(tmp_path: Path):
    """PEFT sorts the keys when it saves, and takes the first that matches when it loads."""
    patterns = {r"layers\.0\..*": 2, "down_proj": 7}
    case = trained(tmp_path, target_modules=["down_proj"], rank_pattern=patterns)
    with pytest.raises(InputRefused) as caught:
        case.load()
    assert caught.value.code == "adapter-shape"


TIED = {"base": {"kind": "smollm2"}}
TIES: dict[str, tuple[dict[str, Any], bool]] = {
    "embedding, tied": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "head, tied": ({"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, True),
    "embedding alone": ({"modules_to_save": ["embed_tokens"]}, False),
    "head alone": ({"modules_to_save": ["lm_head"]}, False),
    "both apart": ({"modules_to_save": ["embed_tokens", "lm_head"]}, False),
    "neither": ({}, True),
}  # fmt: skip


@pytest.mark.parametrize("name", TIES)
def test_tied_bases(tmp_path: Path, name: str):
    """peft#2777, peft#2972, transformers#45127: a tie lost, or tied again though trained apart."""
    options, tied = TIES[name]
    case = trained(tmp_path, **TIED, **PLAIN, **options)
    fused = case.fused()
    assert fused.tied is tied
    assert_same_forward(case, fused)


def test_sparse_base_in_bfloat16(tmp_path: Path):
    """Real zeros, real files: masked, the zeros stay; the branch computes PEFT's forward."""
    base = {"sparsity": 0.7, "dtype": "bfloat16"}
    case = trained(tmp_path, base=base, target_modules=["down_proj"])
    weight = "model.layers.0.mlp.down_proj.weight"
    before = case.checked.checkpoint.rows(weight)
    found = values(case.fused("mask"))[weight]
    assert not found[before == 0].any()
    delta = case.load().deltas["model.layers.0.mlp.down_proj"].rows(0, 64)
    np.testing.assert_array_equal(found, np.where(before != 0, before + delta, 0))
    apart = case.fused("separate")
    np.testing.assert_array_equal(values(apart)[weight], before)
    branch = apart.branches["model.layers.0.mlp.down_proj"]
    product = np.float32(branch.scale) * (branch.b @ branch.a)
    assert np.abs(product - delta).max() <= 1e-6 * np.abs(delta).max()


def test_peft_reads_a_losa_bundle_at_the_same_scale(tmp_path: Path):
    """Other tools may load it, unmasked; ours differs from theirs by the mask and nothing else."""
    folder = save_tiny("llama2", tmp_path / "base", sparsity=0.5)
    checked = check_model(Checkpoint.open(folder))
    linears = [li for li in checked.spec.linears() if li.role in ("q", "down")]
    rng = np.random.default_rng(0)
    factors = {
        li.module: (
            rng.standard_normal((rank, li.in_features)).astype(np.float32),
            rng.standard_normal((li.out_features, rank)).astype(np.float32),
        )
        for rank, li in enumerate(linears, start=2)
    }
    write_losa(
        tmp_path / "losa",
        base_name="base",
        base_sha256=checked.checkpoint.identity(),
        factors=factors,
        masks={li.module: checked.masks.mask(li) for li in linears},
        alpha=16,
        r_ref=8,
    )
    case = Case(checked, tmp_path / "losa", None)
    adapter, fused = case.load(), case.fused()
    peft: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder), str(tmp_path / "losa")
    )
    for linear in linears:
        layer = peft.get_base_model().get_submodule(linear.module)
        kept = checked.masks.mask(linear).rows()
        want = layer.get_delta_weight("default").detach().numpy() * kept
        found = adapter.deltas[linear.module].rows(0, linear.out_features)
        assert np.abs(found - want).max() <= 1e-6 * np.abs(want).max()
        merged = values(fused)[linear.weight]
        assert not merged[~kept].any()


def test_a_losa_bundle_on_another_base(tmp_path: Path):
    """Same widths, other weights."""
    checked = [
        check_model(Checkpoint.open(save_tiny("llama2", tmp_path / str(s), sparsity=0.5, seed=s)))
        for s in (0, 1)
    ]
    linear = checked[0].spec.linears()[0]
    shape = (linear.out_features, linear.in_features)
    write_losa(
        tmp_path / "losa",
        base_name="0",
        base_sha256=checked[0].checkpoint.identity(),
        factors={linear.module: (np.ones((1, shape[1]), "f4"), np.ones((shape[0], 1), "f4"))},
        masks={linear.module: checked[0].masks.mask(linear)},
        alpha=1,
        r_ref=1,
    )
    assert Case(checked[0], tmp_path / "losa", None).load().masked
    with pytest.raises(InputRefused) as caught:
        Case(checked[1], tmp_path / "losa", None).load()
    assert caught.value.code == "adapter-base"


_THREADS = """
import hashlib, numpy as np
from exporter.adapters.lowrank import LowRankDelta
rng = np.random.default_rng(0)
for out, width, rank in ((300, 700, 16), (130, 1030, 64), (64, 64, 300)):
    a = rng.standard_normal((rank, width)).astype("f4")
    b = rng.standard_normal((out, rank)).astype("f4")
    delta = LowRankDelta((out, width), lambda: a, lambda: b, 0.7)
    print(hashlib.sha256(delta.rows(0, out).tobytes()).hexdigest())
"""


def test_number_of_threads_changes_no_bit():
    digests = {
        subprocess.run(
            [sys.executable, "-c", _THREADS],
            env={**os.environ, "OPENBLAS_NUM_THREADS": n, "OMP_NUM_THREADS": n},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for n in ("1", "2", "4")
    }
    assert len(digests) == 1
