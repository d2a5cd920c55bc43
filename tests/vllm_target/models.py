"""Tiny models pruned to a pattern, and folders lowered from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from exporter.check.model import check_model
from exporter.contract import Target
from exporter.merge.fuse import fuse
from exporter.model import FusedModel
from exporter.quantise.stage import quantise, wanted
from exporter.sparsity.mask import Mask
from exporter.store.checkpoint import Checkpoint
from exporter.store.masks import write_masks
from exporter.store.writer import write_safetensors
from exporter.verify.result import StructureResult
from exporter.verify.structure import check_structure
from tests.tiny import save_tiny

Bools = NDArray[np.bool_]
Rule = Callable[[str, NDArray[Any]], Bools]  # weight's name, |weight| -> kept


def nm(n: int, m: int) -> Rule:
    """The N largest of each M inputs; a last group that is shorter keeps at most N too."""

    def rule(name: str, size: NDArray[Any]) -> Bools:
        del name
        padded = np.pad(size, ((0, 0), (0, -size.shape[1] % m)), constant_values=-1.0)
        groups = padded.reshape(len(size), -1, m)
        order = np.argsort(-groups, axis=-1, kind="stable")
        kept = np.zeros(groups.shape, np.bool_)
        np.put_along_axis(kept, order[..., :n], True, axis=-1)
        return kept.reshape(len(size), -1)[:, : size.shape[1]]

    return rule


def unstructured(sparsity: float) -> Rule:
    """The largest magnitudes of a weight."""

    def rule(name: str, size: NDArray[Any]) -> Bools:
        del name
        kept = np.ones(size.size, np.bool_)
        kept[np.argsort(size, axis=None, kind="stable")[: round(sparsity * size.size)]] = False
        return kept.reshape(size.shape)

    return rule


def everything(name: str, size: NDArray[Any]) -> Bools:
    """Nothing pruned."""
    del name
    return np.ones(size.shape, np.bool_)


def by_role(**rules: Rule) -> Rule:
    """A rule by part of the name, "rest" for all others."""

    def rule(name: str, size: NDArray[Any]) -> Bools:
        part = next((p for p in rules if p in name), "rest")
        return rules[part](name, size)

    return rule


PATTERNS: dict[str, Rule] = {
    "2:4": nm(2, 4),
    "2:8": nm(2, 8),
    "mixed": by_role(q_proj=nm(3, 8), k_proj=nm(5, 16), o_proj=everything, rest=nm(1, 4)),
    "unstructured": unstructured(0.7),
    "dense": everything,
}


def is_linear(name: str) -> bool:
    """Whether a tensor of a tiny model is a prunable weight, of experts too."""
    return name.endswith("_proj.weight") or ".experts." in name


def save_pruned(kind: str, folder: Path, rule: Rule, **fields: Any) -> Path:
    """A tiny model whose linears keep what `rule` says, in bfloat16 unless told otherwise."""
    fields = {"dtype": "bfloat16", "max_position_embeddings": 40} | fields
    save_tiny(kind, folder, **fields)
    tensors = load_file(folder / "model.safetensors")
    for name, values in tensors.items():
        if is_linear(name):
            values[~rule(name, np.abs(values.astype(np.float32)))] = 0
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    return folder


def save_masks(model: Path, file: Path, rule: Rule) -> Path:
    """A masks file that keeps what `rule` does, zeros among them."""
    tensors = load_file(model / "model.safetensors")
    names = [name for name in tensors if is_linear(name)]
    sizes = {name: np.abs(tensors[name].astype(np.float32)) for name in names}
    masks = [(n.removesuffix(".weight"), Mask.from_bool(rule(n, sizes[n]))) for n in names]
    write_masks(file, masks)
    return file


def fused(folder: Path, target: Target, masks: Path | None = None) -> FusedModel:
    """The model as the pipeline hands it to a target."""
    model = fuse(check_model(Checkpoint.open(folder), masks=masks), [])
    asked = wanted(target, calibrated=False)
    return model if asked is None else quantise(model, asked)


def lower(target: Target, model: FusedModel, out: Path) -> Path:
    """A lowered folder; every file is as large as the plan says."""
    out.mkdir()
    target.lower(model, out, lambda *_: None)
    sizes = {p.relative_to(out).as_posix(): p.stat().st_size for p in out.iterdir()}
    assert {f.name: f.nbytes for f in target.plan(model).files} == sizes
    return out


def structure(target: Target, model: FusedModel, out: Path) -> StructureResult:
    """What verification says of the bytes of a folder."""
    return check_structure(target, model, out)


def layers(out: Path) -> dict[str, dict[str, Any]]:
    """The entries of config.json by module."""
    config = json.loads((out / "config.json").read_text())
    return config["quantization_config"]["layers"]


def dense_weights(folder: Path) -> dict[str, NDArray[Any]]:
    """Linears of a plain folder as float64, by module."""
    tensors = load_file(folder / "model.safetensors")
    return {
        n.removesuffix(".weight"): v.astype(np.float64) for n, v in tensors.items() if is_linear(n)
    }
