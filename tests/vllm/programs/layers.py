"""layers.py PACKED DENSE RANKS...: every rank's layers of one folder against the dense folder's.

Ranks are played one after the other in this process: vLLM asks two functions for rank and count.
Prints, as its last line, a JSON object: by "<ranks>/<rank>/<layer>" whether weight and result are
those of vLLM's own layer, loaded from the dense folder by vLLM's own loader; and by
"<ranks>/<rank>/<layer> sparse" whether the CPU kernels give that result.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor import parameter as parameters
from vllm.model_executor.layers import linear as layers
from vllm.model_executor.model_loader.reload.meta import to_meta_tensor

from backends.vllm.plugin.config import SparseExportConfig

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
IDS: dict[str, Any] = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "gate_proj": 0, "up_proj": 1}


@contextmanager
def as_rank(rank: int, ranks: int) -> Iterator[None]:
    """Let vLLM's layers believe that this is rank `rank` of `ranks`."""
    for module in (parameters, layers):
        module.get_tensor_model_parallel_rank = lambda: rank
        module.get_tensor_model_parallel_world_size = lambda: ranks
    with set_current_vllm_config(VllmConfig()):
        yield


def build(name: str, config: dict[str, Any], quantised: Any) -> Any:
    """The layer of a Llama-like model that vLLM would make."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv, size = (
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["head_dim"],
    )
    last = name.rpartition(".")[2]
    how: dict[str, Any] = {"quant_config": quantised, "prefix": name, "bias": False}
    how["params_dtype"] = torch.bfloat16
    if last == "qkv_proj":
        return layers.QKVParallelLinear(hidden, size, heads, kv, **how)
    if last == "gate_up_proj":
        return layers.MergedColumnParallelLinear(hidden, [inner, inner], **how)
    if last == "o_proj":
        return layers.RowParallelLinear(heads * size, hidden, reduce_results=False, **how)
    if last == "down_proj":
        return layers.RowParallelLinear(inner, hidden, reduce_results=False, **how)
    kind = layers.ReplicatedLinear if last == "up_proj" else layers.ColumnParallelLinear
    return kind(hidden, inner, **how)


def load(layer: Any, folder: Path, name: str) -> None:
    """Give the layer its tensors as vLLM's loader would: sorted, and shard by shard."""
    parent, _, last = name.rpartition(".")
    modules = {f"{parent}.{part}": IDS.get(part) for part in FUSED.get(last, [])} or {name: None}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for key in sorted(file.keys()):
            module, _, part = key.rpartition(".")
            if module not in modules or part == "bias":
                continue
            target = getattr(layer, part)
            shard = modules[module]
            extra = () if shard is None else (shard,)
            target.weight_loader(target, file.get_tensor(key), *extra)


def pair(name: str, packed: Path, dense: Path) -> tuple[Any, Any]:
    """The layer of ours and vLLM's own, loaded."""
    config = json.loads((packed / "config.json").read_text())
    ours_config = SparseExportConfig.from_config(config["quantization_config"])
    ours, own = build(name, config, ours_config), build(name, config, None)
    load(ours, packed, name)
    load(own, dense, name)
    return ours, own


def results(layers: tuple[Any, Any], columns: int) -> list[torch.Tensor]:
    """What both make of five rows, once they are ready."""
    x = torch.randn(5, columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    for layer in layers:
        layer.quant_method.process_weights_after_loading(layer)
    return [layer.quant_method.apply(layer, x, None) for layer in layers]


def compare(name: str, packed: Path, dense: Path) -> bool:
    """Weight and result of ours and of vLLM's own."""
    os.environ["SPARSE_EXPORT_EXECUTE"] = "dense"
    ours, own = pair(name, packed, dense)
    if not torch.equal(ours.weight.data, own.weight.data):
        return False
    # vLLM keeps attributes of the parameters that it first saw; none may hold the weight.
    seen = to_meta_tensor(ours.get_parameter("weight"))
    equal = torch.equal(*results((ours, own), ours.weight.shape[1]))
    left = {key for key, value in ours.named_parameters() if value.numel()}
    return equal and left <= {"weight"} and seen.__dict__["_gather"].closed


def compare_sparse(name: str, packed: Path, dense: Path) -> bool:
    """The result of the kernels, which round other sums, and that no dense weight is held."""
    os.environ["SPARSE_EXPORT_EXECUTE"] = "sparse"
    ours, own = pair(name, packed, dense)
    found, want = (each.double() for each in results((ours, own), own.weight.shape[1]))
    held = {key: value.numel() for key, value in ours.named_parameters()}
    return held == {"weight": 0, "packed_0": 1} and bool((found - want).norm() < 8e-3 * want.norm())


def main(packed: str, dense: str, *counts: str) -> dict[str, bool]:
    """All layers of the first decoder layer, on every rank of every count."""
    names = [f"model.layers.0.{name}" for name in ("self_attn.qkv_proj", "self_attn.o_proj")]
    names += [f"model.layers.0.mlp.{name}" for name in ("gate_up_proj", "down_proj")]
    names += [f"model.layers.0.mlp.{name}" for name in ("gate_proj", "up_proj")]  # unfused
    found: dict[str, bool] = {}
    for ranks in map(int, counts):
        for rank in range(ranks):
            with as_rank(rank, ranks):
                for name in names:
                    at, folders = f"{ranks}/{rank}/{name}", (Path(packed), Path(dense))
                    found[at] = compare(name, *folders)
                    if not name.endswith("up_proj") or "gate" in name:
                        found[f"{at} sparse"] = compare_sparse(name, *folders)
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
