"""LoRA of PEFT: rsLoRA, rank and alpha patterns, saved modules and biases.

Format: adapter_config.json and adapter_model.safetensors of PEFT 0.21; see docs/formats/lora.md.
Delta: `W' = W + scale * B A` (Hu et al. 2021, eq. 3; peft/tuners/lora/layer.py,
`Linear.get_delta_weight`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from exporter.adapters.base import Adapter, BaseIdentity, Delta
from exporter.adapters.biases import bias_additions, check_biases
from exporter.adapters.factors import (
    Factors,
    Shapes,
    build_delta,
    check_modules,
    group_factors,
    head_module,
)
from exporter.adapters.identity import base_facts
from exporter.adapters.lora_config import LoraConfig, parse_lora_config
from exporter.adapters.peft_config import Files, check_targets
from exporter.adapters.peft_files import PeftFolder, open_peft, peft_type
from exporter.adapters.replacements import (
    Replaced,
    read_replacements,
)
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused


class LoraFamily:
    """Reads a PEFT folder of type LORA."""

    name: ClassVar[str] = "lora"

    def claims(self, folder: Path) -> bool:
        """Whether the config says LORA."""
        return peft_type(folder) == "LORA"

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly; every tensor of the file is used exactly once.

        Raises:
            InputRefused: the `adapter-*` codes, `tie-conflict`, `value-not-finite`,
                `value-overflow`, `pickle-refused` and those of the file formats.
        """
        opened = open_peft(folder)
        config = parse_lora_config(opened.config, opened.config_file)
        file = opened.tensors.label
        factors = group_factors(opened.names, file)
        shapes = check_modules(factors, spec, file)
        _check_targets(factors, config, shapes, spec, opened)
        deltas, scales, nonzero = _deltas(factors, config, shapes, opened)
        replaced = read_replacements(opened.names, config, spec, opened.tensors)
        check_biases(replaced.items, factors, config, spec, file)
        added = bias_additions(factors, scales, config, spec, opened.tensors)
        _check_not_empty(factors, nonzero, replaced, config, file)
        return Adapter(
            family=self.name,
            name=folder.name or folder.resolve().name,
            deltas=deltas,
            replacements=(*replaced.items, *added),
            unties=replaced.unties,
            tensors_used=replaced.tensors + sum(f.tensors for f in factors.values()),
            facts=_facts(config, factors, scales, nonzero, opened, base),
        )


def _deltas(
    factors: Mapping[str, Factors], config: LoraConfig, shapes: Shapes, opened: PeftFolder
) -> tuple[dict[str, Delta], dict[str, float], int]:
    """Deltas and scales by module, and how many deltas are other than zero."""
    deltas: dict[str, Delta] = {}
    scales: dict[str, float] = {}
    nonzero = 0
    for module, pair in factors.items():
        rank = config.rank(module, opened.config_file)
        scales[module] = config.scale(module, opened.config_file)
        deltas[module], moves = build_delta(
            pair,
            shapes[module],
            rank,
            scales[module],
            opened.tensors,
        )
        nonzero += moves
    return deltas, scales, nonzero


def _check_targets(
    factors: Mapping[str, Factors],
    config: LoraConfig,
    shapes: Shapes,
    spec: ModelSpec,
    opened: PeftFolder,
) -> None:
    """The config's targets and the file's modules are the same set."""
    head = head_module(spec)
    if spec.tied and head in factors:
        raise InputRefused(
            "adapter-option",
            "a LoRA on a head that is the embedding: the base ties them, the result would not",
            expected="LoRA on the linears of the layers, or an untied base",
            file=opened.tensors.label,
            tensor=head,
            hint="Untie the base (store its head apart, tie_word_embeddings false) and try again.",
        )
    found = {m: pair.a for m, pair in factors.items()}
    files = Files(opened.config_file, opened.tensors.label)
    check_targets(found, config, shapes, spec, files)


def _check_not_empty(
    factors: Mapping[str, Factors], nonzero: int, replaced: Replaced, config: LoraConfig, file: str
) -> None:
    if nonzero or replaced.items:
        return
    if not factors:
        found = "the file holds no tensor"
    elif not config.lora_alpha and not config.alpha_pattern:
        found = "lora_alpha is 0"
    else:
        found = f"the delta of all {len(factors)} modules is zero (B is all zeros before training)"
    raise InputRefused("adapter-empty", found, expected="a trained adapter", file=file)


def _facts(
    config: LoraConfig,
    factors: Mapping[str, Factors],
    scales: Mapping[str, float],
    nonzero: int,
    opened: PeftFolder,
    base: BaseIdentity,
) -> dict[str, Any]:
    ranks = {m: config.rank(m, opened.config_file) for m in factors}
    warnings: list[str] = []
    if config.fan_in_fan_out:
        # PEFT itself sets it to False on nn.Linear, which all linears here are
        # (peft/tuners/lora/layer.py, `dispatch_default`).
        warnings.append("fan_in_fan_out is true, which PEFT ignores on linear layers; ignored")
    facts = base_facts(config.base_model_name_or_path, config.base_sha256, base, opened.config_file)
    return {
        **facts,
        "ranks": sorted(set(ranks.values())),
        "scales": sorted(set(scales.values())),
        "rslora": config.use_rslora,
        "zero_deltas": len(factors) - nonzero,
        "modules_to_save": sorted(config.modules_to_save),
        "bias": config.bias,
        "lora_bias": config.lora_bias,
        "warnings": warnings,
    }
