"""Transformers' own model class, filled with the fused tensors in float32, row block by row block.

The class is chosen by config.json's `model_type` from the installed transformers; nothing is
fetched and no code of the model folder runs. It shares no line with the lowering, so a mistake in
reading the architecture shows up as a difference instead of being made twice.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from backends.reference.experts import places
from exporter.arch.model_spec import FusedExperts
from exporter.errors import InputRefused, VerificationFailed
from exporter.model import FusedModel, FusedTensor, LowRank

BLOCK_BYTES = 16 << 20  # of float32 rows in flight while filling


def build_model(fused: FusedModel) -> torch.nn.Module:
    """The fused model as a float32 transformers model in eval mode, eager attention.

    Peak memory is the model itself plus one row block. A branch kept apart is added into its
    weight, `W + scale * B A` in float32: mathematically what `x W^T + scale * (x A^T) B^T`
    computes, so the reference needs no branch of its own.

    Raises:
        InputRefused: `config-invalid`, `tensor-missing`, `tensor-unexpected`, `tensor-shape`.
        VerificationFailed: `reference-broken` where a parameter or buffer was left empty.
    """
    model = empty_model(fused)
    _fill(model, fused)
    if fused.tied:
        _tie(model, fused)
    _check_whole(model, fused.tied)
    return model.eval().requires_grad_(False)


def empty_model(fused: FusedModel, attention: str = "eager") -> torch.nn.Module:
    """Transformers' class for the model, its parameters on the meta device, its buffers real.

    Raises:
        InputRefused: `config-invalid`.
    """
    config = make_config(fused)
    with torch.device("meta"):
        model = cast(
            torch.nn.Module,
            AutoModelForCausalLM.from_config(
                config, attn_implementation=attention, dtype=torch.float32, trust_remote_code=False
            ),
        )
    _real_buffers(model, config)
    return model


def make_config(fused: FusedModel) -> PretrainedConfig:
    """The transformers config of the parsed config.json; `auto_map` (code) is left out.

    The tie is that of the fused model: an adapter on one end of a tied pair undoes it.
    """
    raw = {k: v for k, v in fused.checked.checkpoint.config.items() if k != "auto_map"}
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise InputRefused(
            "config-invalid",
            f"model_type {kind!r} is unknown to the installed transformers",
            expected="a model_type of a decoder that transformers knows",
            file="config.json",
        )
    config: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(raw)
    config.tie_word_embeddings = fused.tied
    return config


def _fill(model: torch.nn.Module, fused: FusedModel) -> None:
    head = fused.spec.head if fused.tied else None
    wanted = {n: p for n, p in model.named_parameters(remove_duplicate=False) if n != head}
    held = places(fused.spec)
    needed = {tensor for name in wanted for tensor in held.tensors(name)}
    missing = sorted(needed - fused.tensors.keys())
    if missing:
        raise InputRefused(
            "tensor-missing",
            f"transformers' {type(model).__name__} needs it, the fused model lacks it",
            tensor=missing[0],
        )
    extra = sorted(fused.tensors.keys() - needed)
    if extra:
        raise InputRefused(
            "tensor-unexpected",
            f"transformers' {type(model).__name__} has no such parameter",
            tensor=extra[0],
        )
    for name in wanted:
        experts = held.fused.get(name)
        if experts is None:
            fill_parameter(model, name, fused, held.renamed.get(name))
        else:
            _give(model, name, _experts(experts, fused))
    _check_branches(fused, needed)


def fill_parameter(
    model: torch.nn.Module, name: str, fused: FusedModel, stored: str | None = None
) -> None:
    """Give one parameter of `model` its fused values in float32, with its branch where one is.

    Args:
        model: of `empty_model`.
        name: of the parameter.
        fused: the model.
        stored: name of the tensor, where it is another.

    Raises:
        InputRefused: `tensor-missing`, `tensor-shape`.
    """
    _give(model, name, _values(fused, stored or name))


def _values(fused: FusedModel, name: str) -> torch.Tensor:
    """One tensor, as the model holds it."""
    tensor = fused.tensors.get(name)
    if tensor is None:
        raise InputRefused("tensor-missing", "the fused model lacks it", tensor=name)
    module, _, leaf = name.rpartition(".")
    values = _read(tensor, fused.branches.get(module) if leaf == "weight" else None)
    if tensor.linear is not None and tensor.linear.transposed:
        values = values.t().contiguous()
    return values


def _experts(experts: FusedExperts, fused: FusedModel) -> torch.Tensor:
    """float32 `[experts, out, in]`."""
    shape = (len(experts.linears), experts.out_features, experts.in_features)
    values = torch.empty(shape, dtype=torch.float32)
    for expert, linears in enumerate(experts.linears):
        torch.cat([_values(fused, linear.weight) for linear in linears], out=values[expert])
    return values


def _give(model: torch.nn.Module, name: str, values: torch.Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    want = tuple(model.get_parameter(name).shape)
    if tuple(values.shape) != want:
        raise InputRefused(
            "tensor-shape", f"shape {list(values.shape)}", expected=f"{list(want)}", tensor=name
        )
    setattr(model.get_submodule(module), leaf, torch.nn.Parameter(values, requires_grad=False))


def _check_branches(fused: FusedModel, wanted: set[str]) -> None:
    lost = sorted(m for m in fused.branches if f"{m}.weight" not in wanted)
    if lost:
        raise InputRefused("tensor-unexpected", "a branch on no weight", tensor=lost[0])


def _read(tensor: FusedTensor, branch: LowRank | None) -> torch.Tensor:
    if not tensor.shape:
        raise InputRefused(
            "tensor-shape", "a scalar", expected="one axis or more", tensor=tensor.name
        )
    values = torch.empty(tensor.shape, dtype=torch.float32)
    view = values.numpy()
    count, width = tensor.shape[0], math.prod(tensor.shape[1:])
    step = max(1, BLOCK_BYTES // max(1, 4 * width))
    for r0 in range(0, count, step):
        r1 = min(r0 + step, count)
        view[r0:r1] = tensor.rows(r0, r1)
        if branch is not None:
            view[r0:r1] += np.float32(branch.scale) * (branch.b[r0:r1] @ branch.a)
    return values


def _tie(model: torch.nn.Module, fused: FusedModel) -> None:
    owner, _, leaf = fused.spec.head.rpartition(".")
    source, _, source_leaf = fused.spec.embedding.rpartition(".")
    shared = getattr(model.get_submodule(source), source_leaf)
    setattr(model.get_submodule(owner), leaf, shared)


def _real_buffers(model: torch.nn.Module, config: PretrainedConfig) -> None:
    """Recompute buffers that no checkpoint holds (the rotary frequencies), off the meta device.

    Transformers' rotary modules are functions of the config alone, so a second instance, made on
    the CPU, has the right values; any other empty buffer is caught by `_check_whole`.
    """
    for name, module in list(model.named_modules()):
        if (
            any(b.is_meta for b in module.buffers(recurse=False))
            and "Rotary" in type(module).__name__
        ):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, cast(Any, type(module))(config=config))


def _check_whole(model: torch.nn.Module, tied: bool) -> None:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    for name, values in named:
        if values.is_meta or (values.is_floating_point() and values.dtype is not torch.float32):
            raise VerificationFailed(
                "reference-broken",
                "left without values" if values.is_meta else f"held as {values.dtype}",
                expected="float32 values",
                tensor=name,
            )
    ends = cast(Any, model)
    same = ends.get_input_embeddings().weight is ends.get_output_embeddings().weight
    if same != tied:
        raise VerificationFailed(
            "reference-broken",
            f"embedding and head are {'one tensor' if same else 'two tensors'}",
            expected="one tensor" if tied else "two tensors",
        )
