"""Pairs of folders with the same weights: packed by hand, and stored dense for any engine.

The exporter is not used, so that the plugin's tests show what the plugin makes of the format.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from backends.packed.pack import pack
from backends.packed.spec import PackedLinear, PackedModel, ValueType
from backends.packed.torch_unpack import dense_torch, to_torch

FLOATS = {
    ValueType.BF16: torch.bfloat16,
    ValueType.FP16: torch.float16,
    ValueType.FP32: torch.float32,
}


@dataclass(frozen=True)
class How:
    """How a linear is pruned and packed; `density` is for kind ragged."""

    kind: str = "ragged"
    values: str = "bf16"
    n: int = 0
    m: int = 0
    group: int = 0
    density: float = 0.4


def nm(n: int, m: int, values: str = "bf16", group: int = 0) -> How:
    """N of M kept."""
    return How("nm", values, n, m, group)


def kept_positions(weight: torch.Tensor, how: How) -> torch.Tensor:
    """The largest magnitudes: bool `[out, in]`."""
    size = weight.abs().float()
    if how.kind == "dense":
        return torch.ones_like(size, dtype=torch.bool)
    if how.kind == "ragged":
        order = size.flatten().argsort(descending=True, stable=True)
        kept = torch.zeros(size.numel(), dtype=torch.bool)
        kept[order[: round(how.density * size.numel())]] = True
        return kept.view(size.shape)
    columns = size.shape[1]
    groups = torch.nn.functional.pad(size, (0, -columns % how.m), value=-1.0)
    best = groups.view(size.shape[0], -1, how.m).argsort(dim=-1, descending=True, stable=True)
    kept = torch.zeros(groups.shape, dtype=torch.bool).view(size.shape[0], -1, how.m)
    kept.scatter_(-1, best[..., : how.n], True)
    return kept.view(groups.shape)[:, :columns]


def pack_weight(
    weight: torch.Tensor, how: How
) -> tuple[PackedLinear, dict[str, torch.Tensor], torch.Tensor]:
    """Spec and parts of a pruned and rounded weight, and that weight as bfloat16 or wider."""
    kept = kept_positions(weight, how)
    values = ValueType(how.values)
    group = how.group
    nnz = int(kept.sum()) if how.kind != "dense" else weight.numel()
    spec = PackedLinear(how.kind, values, tuple(weight.shape), nnz, how.n, how.m, group)  # type: ignore[arg-type]
    scales = None
    if values.quantised:
        codes, scales = _quantise(torch.where(kept, weight, 0).float().numpy(), spec)
    else:
        pruned = torch.where(kept, weight, 0).to(FLOATS[values])
        codes = pruned.view(torch.uint8).numpy().view(values.codes).reshape(weight.shape)
    parts = pack(spec, codes, kept.numpy(), scales)
    dense = dense_torch(spec, parts, FLOATS.get(values, torch.float32))
    return spec, {name: to_torch(np.array(part)) for name, part in parts.items()}, dense


def _quantise(weight: Any, spec: PackedLinear) -> tuple[Any, Any]:
    most = {ValueType.INT8: 127.0, ValueType.INT4: 7.0, ValueType.FP8: 448.0}[spec.values]
    columns = weight.shape[1]
    group = spec.group or columns
    padded = np.pad(weight, ((0, 0), (0, -columns % group)))
    peak = np.abs(padded.reshape(weight.shape[0], -1, group)).max(-1)
    scales = np.where(peak == 0, 1.0, peak * 1.01 / most).astype(ml_dtypes.bfloat16)
    wide = np.repeat(scales.astype(np.float32), group, axis=1)[:, :columns]
    if spec.values is ValueType.FP8:
        return (weight / wide).astype(ml_dtypes.float8_e4m3fn), scales
    return np.clip(np.rint(weight / wide), -most, most).astype(np.int8), scales


def pack_pair(
    model: Path, where: Path, how: Mapping[str, How], *, exact: torch.dtype | None = None
) -> tuple[Path, Path]:
    """The folders `packed` and `dense` in `where`, of one set of weights.

    Args:
        model: a dense folder.
        how: by module; modules that are not named stay plain.
        exact: type of the dense folder's linears; their packed type where left out (quantised:
            bfloat16, which is how the plugin rounds them in a bfloat16 engine).
    """
    tensors = load_file(model / "model.safetensors")
    packed, dense = dict(tensors), dict(tensors)
    layers: dict[str, PackedLinear] = {}
    for module, choice in how.items():
        weight = packed.pop(f"{module}.weight")
        layers[module], parts, twin = pack_weight(weight, choice)
        packed |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
        dense[f"{module}.weight"] = twin.to(exact or weight.dtype)
    folders = where / "packed", where / "dense"
    for folder, stored in zip(folders, (packed, dense), strict=True):
        shutil.copytree(model, folder)
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = PackedModel(layers).to_json()
    (folders[0] / "config.json").write_text(json.dumps(config, indent=1))
    return folders


def linears(layer: int) -> list[str]:
    """The seven linears of a Llama-like layer, as q, k, v, o, gate, up, down."""
    below = [f"self_attn.{name}_proj" for name in "qkvo"]
    below += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    return [f"model.layers.{layer}.{name}" for name in below]
