"""The differential matrix: an adapter made by peft, merged by us, run by plain transformers.

The reference is PEFT's own unmerged forward in float64. `build` makes a case, and
`assert_forward_alike` and `assert_weights_alike` hold our merge against it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.load import load_adapter
from exporter.check.model import check_model
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel, FusedModel
from exporter.store.checkpoint import Checkpoint
from tests.tiny import save_tiny

TOKENS = torch.arange(3, 27).reshape(2, 12)
RELATIVE = 1e-6  # largest error over largest value, both over all logits


@dataclass
class Case:
    """A base on disk, and PEFT's model in float64 over it with the adapter in `adapter`."""

    checked: CheckedModel
    adapter: Path
    peft: Any

    @property
    def base(self) -> Path:
        """The base's folder."""
        return self.checked.checkpoint.root

    def load(self) -> Adapter:
        """The adapter as our reader sees it."""
        checkpoint = self.checked.checkpoint
        base = BaseIdentity(checkpoint.root.name, checkpoint.identity)
        return load_adapter(self.adapter, self.checked.spec, base)

    def fused(self, policy: str | None = None) -> FusedModel:
        """Our merge."""
        return fuse(self.checked, [(self.load(), 1.0)], policy)


def build(
    kind: str,
    folder: Path,
    config: Any,
    *,
    base: dict[str, Any] | Path | None = None,
    tweak: Callable[[Any], None] | None = None,
) -> Case:
    """Make a tiny base of `kind`, put a random trained adapter of `config` on it with peft, save.

    Args:
        kind: one of `tests.tiny.KINDS`.
        folder: gets "adapter", and "base" unless that is given.
        config: a PEFT config object.
        base: the folder of a base that is there, or further arguments of `save_tiny` (bias, tied,
            sparsity, ...).
        tweak: called with the PEFT model after noise was added to all that is trained.
    """
    root = base if isinstance(base, Path) else save_tiny(kind, folder / "base", **(base or {}))
    model = AutoModelForCausalLM.from_pretrained(root)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(model, config).eval()
    _train(peft)
    if tweak is not None:
        tweak(peft)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.save_pretrained(str(folder / "adapter"))
    checked = check_model(Checkpoint.open(root))
    return Case(checked, folder / "adapter", in_float64(peft))


def _train(peft: Any) -> None:
    with torch.no_grad():
        for parameter in (p for p in peft.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.1)


def in_float64(model: Any) -> Any:
    """`model` in float64, but for the choice of experts: RMSNorm comes in float32 by itself."""
    model = model.double().eval()
    model.config._experts_implementation = "eager"  # torch has no grouped products in float64
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _wide_norm(module)
    return model


def _wide_norm(module: Any) -> Callable[[Any], Any]:
    def forward(x: Any) -> Any:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)
        return module.weight * x * scale

    return forward


def logits(model: Any) -> Any:
    """Logits of `TOKENS` as a float64 array."""
    with torch.no_grad():
        return model(TOKENS).logits.numpy()


def values(fused: FusedModel) -> dict[str, Any]:
    """All tensors of our merge as the checkpoint stores them, float32 and not yet rounded."""
    found: dict[str, Any] = {}
    for name, tensor in fused.tensors.items():
        block = tensor.rows(0, tensor.shape[0])
        turned = tensor.linear is not None and getattr(tensor.linear, "transposed", False)
        found[name] = np.ascontiguousarray(block.T) if turned else block
    return found


def plain_model(case: Case, fused: FusedModel) -> Any:
    """A plain transformers model in float64 that holds our merged tensors."""
    config = copy.deepcopy(case.peft.config)
    config.tie_word_embeddings = fused.tied
    model = AutoModelForCausalLM.from_config(config)
    tensors = {n: torch.from_numpy(v) for n, v in values(fused).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if fused.tied else set())
    model.tie_weights()
    return in_float64(model)


def assert_forward_alike(case: Case, fused: FusedModel | None = None) -> None:
    """Our merged model computes what PEFT's unmerged one computes, and not what the base does."""
    want = logits(case.peft)
    base = _base_logits(case.base)
    largest = np.abs(want).max()
    assert np.abs(want - base).max() > 1e-2 * largest, "the adapter does nothing"
    found = logits(plain_model(case, fused or case.fused()))
    error = np.abs(found - want).max() / largest
    assert error <= RELATIVE, error


@lru_cache(maxsize=4)
def _base_logits(folder: Path) -> Any:
    return logits(in_float64(AutoModelForCausalLM.from_pretrained(folder)))


def assert_weights_alike(case: Case, fused: FusedModel | None = None) -> None:
    """Every weight, and its rounding to bfloat16, against PEFT's merge in float64.

    Allowed is half a unit in the last place of bfloat16 and, before it, what a float32 sum of
    base and delta may lose (it shows where they cancel). Uses up `case.peft`.
    """
    merged = _merged_by_peft(case.peft)
    before = case.checked.checkpoint
    for name, found in values(fused or case.fused()).items():
        want = merged[name].numpy()
        assert np.abs(found - want).max() <= RELATIVE * np.abs(want).max(), name
        rounded = found.astype(ml_dtypes.bfloat16).astype(np.float64)
        start = before.rows(name if name in before.entries else case.checked.spec.embedding)
        start = start.T if start.shape != want.shape else start
        sums = np.abs(start) + np.abs(want - start).max()
        error = np.abs(rounded - want) - 2.0**-22 * sums
        assert (error <= 0.5 * _bfloat16_ulp(want)).all(), name


def _merged_by_peft(peft: Any) -> dict[str, Any]:
    """PEFT's merge, once each end has its own weight: PEFT adds to a tied one twice (#2777)."""
    model = peft.get_base_model()
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer = end
        for inner in ("original_module", "token_adapter", "base_layer"):
            layer = getattr(layer, inner, layer)
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    return peft.merge_and_unload().state_dict()


def _bfloat16_ulp(values: Any) -> Any:
    """Distance of neighbours in bfloat16 (8 bits of significand) at each value."""
    _, exponent = np.frexp(values)
    return np.ldexp(1.0, np.maximum(exponent, -125) - 8)
