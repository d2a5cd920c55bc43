"""The quantisation config of `sparse-export`: which method each layer of a model gets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from backends.packed.spec import PackedLinear, PackedModel
from backends.vllm.plugin import METHOD
from backends.vllm.plugin.claims import claims, is_legacy
from backends.vllm.plugin.execution import Execution
from backends.vllm.plugin.experts import SparseExportExperts
from backends.vllm.plugin.folder import check_folder
from backends.vllm.plugin.gather import Shard
from backends.vllm.plugin.linear import SparseExportLinearMethod
from backends.vllm.plugin.shards import (
    LEGACY_PARTS,
    PACKED_PARTS,
    LegacyShard,
    PackedShard,
    PlainShard,
)
from exporter.errors import InputRefused

# A model class tells what its layers are fused of, but some too late: Qwen3-MoE adds gate_up_proj
# once the layers are being made (vllm/model_executor/models/qwen3_moe.py, 0.32).
_FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


class SparseExportConfig(QuantizationConfig):
    """What config.json says of packed layers, under the names of vLLM's modules.

    Args:
        layers: packed linears by module; None for a checkpoint of compressed-tensors.
        unstructured: of compressed-tensors: `sparse-bitmask`, not `sparse-24-bitmask`.
    """

    def __init__(self, layers: Mapping[str, PackedLinear] | None, unstructured: bool) -> None:
        super().__init__()
        self._layers = layers
        self._unstructured = unstructured
        self._stored = layers  # by the names of the checkpoint
        self._execution: Execution | None = None

    def get_name(self) -> str:
        """The method's name."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Types that vLLM may run the model in."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Any GPU that vLLM itself runs on: the dense fall-back asks for nothing."""
        return 70

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: everything stands in config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SparseExportConfig:
        """Read `quantization_config`.

        Raises:
            InputRefused: what `PackedModel.parse` raises.
        """
        if is_legacy(config):
            return cls(None, config["sparsity_config"]["format"] == "sparse-bitmask")
        return cls(PackedModel.parse(config).layers, False)

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Any, user_quant: str | None, **_: Any
    ) -> str | None:
        """Our name for our checkpoints and legacy ones; None, and never an error, for all others.

        vLLM calls it for every quantised checkpoint, with arguments that grow over versions.
        """
        return METHOD if claims(hf_quant_cfg, user_quant) else None

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Rename the layers as the model class renames the checkpoint's tensors."""
        if self._layers is not None:
            # A full stop at the end: some renamings are of ".name." (Mixtral's experts).
            mapped = {hf_to_vllm_mapper.map_name(f"{m}."): s for m, s in self._layers.items()}
            self._layers = {name.removesuffix("."): spec for name, spec in mapped.items() if name}

    def maybe_update_config(self, model_name: str, **_: Any) -> None:
        """Check the folder's headers; a model that is not a local folder is checked as it loads.

        Raises:
            InputRefused: what `check_folder` raises.
        """
        folder = Path(model_name)
        if self._stored is not None and any(folder.glob("*.safetensors")):
            check_folder(folder, self._stored)

    def get_quant_method(self, layer: Module, prefix: str) -> QuantizeMethodBase | None:
        """Ours for layers with something packed; vLLM's own for all others.

        Raises:
            InputRefused: `packed-invalid` for an embedding or head, or a fused layer packed whole.
        """
        if isinstance(layer, LinearBase):
            return self._linear(prefix)
        if isinstance(layer, RoutedExperts):
            return self._experts(layer, prefix)
        if isinstance(layer, VocabParallelEmbedding) and prefix in (self._layers or ()):
            found = "an embedding or head is packed"
            raise InputRefused("packed-invalid", found, expected="only linears", tensor=prefix)
        return None

    def _linear(self, prefix: str) -> QuantizeMethodBase:
        names = self._shard_names(prefix)
        if self._layers is None:
            legacy = [LegacyShard(name, self._unstructured) for name in names]
            return SparseExportLinearMethod(legacy, LEGACY_PARTS, self._executed())
        if prefix in self._layers and names != [prefix]:
            found = "it is fused in the checkpoint already"
            raise InputRefused(
                "packed-invalid", found, expected=f"packed as {', '.join(names)}", tensor=prefix
            )
        if not any(name in self._layers for name in names):
            return UnquantizedLinearMethod()
        shards = [self._shard(name) for name in names]
        return SparseExportLinearMethod(shards, PACKED_PARTS, self._executed())

    def _executed(self) -> Execution:
        """One for all layers, made with the first: vLLM's own config is known by then."""
        if self._execution is None:
            self._execution = Execution(get_current_vllm_config_or_none())
        return self._execution

    def _shard(self, name: str) -> Shard:
        spec = (self._layers or {}).get(name)
        return PlainShard(name) if spec is None else PackedShard(name, spec)

    def _shard_names(self, prefix: str) -> list[str]:
        parent, dot, last = prefix.rpartition(".")
        fused = (_FUSED | self.packed_modules_mapping).get(last, [last])
        return [f"{parent}{dot}{name}" for name in fused]

    def _experts(self, layer: RoutedExperts, prefix: str) -> QuantizeMethodBase | None:
        if self._layers is None:
            return None
        under = prefix.removesuffix(".routed_experts")
        mine = {m: s for m, s in self._layers.items() if m.startswith(f"{under}.")}
        return SparseExportExperts(layer.moe_config, under, mine) if mine else None
