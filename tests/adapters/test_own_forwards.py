"""Merged weights against each method's own unmerged forward, on a tiny Llama in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from exporter.adapters.pooling import write_pooling
from exporter.adapters.s2ft import write_s2ft
from exporter.adapters.spp import write_spp
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel
from tests.adapters.own import base_of, load, opened
from tests.tiny import save_tiny

TOKENS = torch.arange(3, 27).reshape(2, 12)
Extra = Callable[[Any, Any], Any]  # (x, weight) -> what the adapter adds to the linear's output


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CheckedModel]:
    root = tmp_path_factory.mktemp("bases")
    return {
        "dense": opened(save_tiny("llama2", root / "dense")),
        "sparse": opened(save_tiny("llama2", root / "sparse", sparsity=0.7)),
    }


def modules(base: CheckedModel) -> dict[str, tuple[int, int]]:
    return {li.module: (li.out_features, li.in_features) for li in base.spec.linears()}


def wide(values: Any) -> Any:
    return torch.from_numpy(values).double()


def spp(base: CheckedModel, folder: Path) -> dict[str, Extra]:
    rng = np.random.default_rng(0)
    pairs = {
        m: (rng.standard_normal((16, w)).astype("f4"), rng.standard_normal((o, 1)).astype("f4"))
        for m, (o, w) in modules(base).items()
    }
    write_spp(folder, factors=pairs, alpha=1)

    def added(pair: Any) -> Extra:
        a, c = (wide(v) for v in pair)
        return lambda x, w: x @ (a.repeat_interleave(w.shape[0] // 16, dim=0) * c * w).T * (1 / 8)

    return {m: added(p) for m, p in pairs.items()}


def pooling(base: CheckedModel, folder: Path, train_mask: str) -> dict[str, Extra]:
    """64 and 160 channels in 11 and 7 groups; pooled and expanded group by group."""
    rng = np.random.default_rng(1)
    tensors = {m: {"pool_G": rng.standard_normal((7, 11)).astype("f4")} for m in modules(base)}
    config = {"pool": "mean", "grouping": "balanced", "scale": 0.7, "train_mask": train_mask}
    write_pooling(folder, config, tensors)

    def expanded(x: Any, g: Any, out: int) -> Any:
        bins = [(k * x.shape[-1] // 11, (k + 1) * x.shape[-1] // 11) for k in range(11)]
        pooled = torch.stack([x[..., lo:hi].mean(dim=-1) for lo, hi in bins], dim=-1)
        repeats = torch.tensor([(k + 1) * out // 7 - k * out // 7 for k in range(7)])
        return 0.7 * (pooled @ g.T).repeat_interleave(repeats, dim=-1)

    def added(g: Any) -> Extra:
        def free(x: Any, w: Any) -> Any:
            return expanded(x, g, w.shape[0])

        def masked(x: Any, w: Any) -> Any:
            dense = expanded(torch.eye(w.shape[1]).double(), g, w.shape[0]).T
            return x @ (dense * (w != 0)).T

        return free if train_mask == "none" else masked

    return {m: added(wide(t["pool_G"])) for m, t in tensors.items()}


def s2ft(base: CheckedModel, folder: Path) -> dict[str, Extra]:
    rng = np.random.default_rng(2)
    chosen: dict[str, Any] = {}
    for module, (out, width) in modules(base).items():
        kind = "cols" if module.endswith(("down_proj", "o_proj")) else "rows"
        index = sorted(rng.choice(width if kind == "cols" else out, 6, replace=False).tolist())
        shape = (out, 6) if kind == "cols" else (6, width)
        chosen[module] = (kind, index, rng.standard_normal(shape).astype("f4") * 0.1)
    write_s2ft(folder, chosen)

    def added(kind: str, index: list[int], values: Any) -> Extra:
        v = wide(values.astype("f4"))
        if kind == "cols":
            return lambda x, w: x[..., index] @ v.T
        return lambda x, w: (
            torch.zeros(*x.shape[:-1], w.shape[0])
            .double()
            .index_add(-1, torch.tensor(index), x @ v.T)
        )

    return {m: added(*d) for m, d in chosen.items()}


def adding(extra: Extra) -> Callable[[Any, Any, Any], Any]:
    """A forward hook that puts an unmerged adapter beside a linear."""
    return lambda linear, x, y: y + extra(x[0], linear.weight)


CASES: dict[str, tuple[str, Callable[[CheckedModel, Path], dict[str, Extra]]]] = {
    "spp": ("sparse", spp),
    "spp, dense": ("dense", spp),
    "pooling": ("dense", lambda b, f: pooling(b, f, "none")),
    "pooling, masked": ("sparse", lambda b, f: pooling(b, f, "exact")),
    "s2ft": ("dense", s2ft),
}


@pytest.mark.parametrize("name", CASES)
def test_merged_is_unmerged(bases: dict[str, CheckedModel], tmp_path: Path, name: str):
    kind, make = CASES[name]
    base = bases[kind]
    extras = make(base, tmp_path / "adapter")
    fused = fuse(base, [(load(tmp_path / "adapter", base, base_of(base)), 1.0)])
    model: Any = AutoModelForCausalLM.from_pretrained(base.checkpoint.root).double().eval()
    with torch.no_grad():
        plain = model(TOKENS).logits
        hooks = [model.get_submodule(m).register_forward_hook(adding(e)) for m, e in extras.items()]
        want = model(TOKENS).logits
        for hook in hooks:
            hook.remove()
        tensors = {n: torch.from_numpy(t.rows(0, t.shape[0])) for n, t in fused.tensors.items()}
        model.load_state_dict(tensors, strict=False)
        found = model(TOKENS).logits
    assert (want - plain).abs().max() > 1e-2 * plain.abs().max()  # the adapter does something
    assert (found - want).abs().max() <= 1e-6 * want.abs().max()
