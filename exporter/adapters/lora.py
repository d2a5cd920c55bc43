"""LoRA of PEFT, with all options of its LoraConfig that a merge can carry out.

Format: adapter_config.json and adapter_model.safetensors of PEFT 0.21; see docs/formats/lora.md.
Delta: `W' = W + scale * B A` (Hu et al. 2021, eq. 3; peft/tuners/lora/layer.py,
`Linear.get_delta_weight`); DoRA in `dora.py`, SparsePEFT in `sparse_peft.py`, single tokens in
`token_rows.py`, experts in `lora_experts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from exporter.adapters.base import Adapter, BaseBound, BaseIdentity, Delta, Replacement
from exporter.adapters.biases import bias_additions, check_biases
from exporter.adapters.dora_file import dora_delta
from exporter.adapters.factors import (
    ALL,
    Factors,
    Shapes,
    build_delta,
    check_modules,
    group_factors,
)
from exporter.adapters.identity import base_facts
from exporter.adapters.lora_config import LoraConfig, parse_lora_config
from exporter.adapters.lora_experts import ExpertLora, read_experts, take_experts
from exporter.adapters.lora_targets import (
    Targeted,
    by_parameter,
    lora_shapes,
    parameters_held,
    settle,
)
from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.peft_files import PeftFolder, open_peft, peft_type
from exporter.adapters.replacements import EMBEDDING, Replaced, read_replacements
from exporter.adapters.sparse_peft import SparsePeftDelta, by_lors_names, refuse_elastic
from exporter.adapters.token_rows import MARK, TokenRows, read_token_rows
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused


@dataclass(frozen=True)
class _Opened:
    """A folder whose options are accounted for."""

    folder: PeftFolder
    config: LoraConfig
    spec: ModelSpec
    shapes: Shapes
    parameters: Mapping[str, str]  # adapted as parameters: module -> name of the weight in memory
    experts: ExpertLora

    @property
    def file(self) -> str:
        """The tensor file's name in errors."""
        return self.folder.tensors.label

    def scale(self, module: str) -> float:
        """The module's scale, by its name or its parameter's."""
        return self.config.scale(self._named(module), self.folder.config_file)

    def rank(self, module: str) -> int:
        """The module's rank, in the same way."""
        return self.config.rank(self._named(module), self.folder.config_file)

    def _named(self, module: str) -> str:
        return self.parameters.get(module, module)


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
        opened = _open(folder, spec)
        config, names, tensors = opened.config, opened.folder.names, opened.folder.tensors
        factors = group_factors(names, opened.file, ALL)
        check_modules(factors, spec, opened.file, opened.shapes)
        if config.sparse_adapter:
            factors = by_lors_names(factors, opened.shapes, opened.folder)
        targeted = settle(factors, config, opened.shapes, spec, opened.folder)
        deltas, nonzero = _deltas(targeted.factors, opened)
        replaced = read_replacements(names, config, spec, tensors)
        check_biases(replaced.items, targeted.factors, config, spec, opened.file)
        scales = {m: opened.scale(m) for m in targeted.factors}
        added = bias_additions(targeted.factors, scales, config, spec, tensors)
        rows = read_token_rows(
            opened.folder.names, config, spec, tensors, opened.folder.config_file
        )
        items = _replacements(replaced, targeted, rows, opened)
        deltas |= opened.experts.deltas
        if not nonzero and not items and not opened.experts.moves:
            raise _empty({**factors, **opened.experts.deltas}, config, opened.file)
        used = sum(f.tensors for f in targeted.factors.values()) + targeted.twins
        return Adapter(
            family=self.name,
            name=folder.name or folder.resolve().name,
            deltas=deltas,
            replacements=(*items, *added),
            masked=config.sparse_adapter,
            unties=replaced.unties or targeted.unties or rows.unties,
            tensors_used=replaced.tensors + used + len(rows.items) + opened.experts.tensors,
            facts=_facts(targeted.factors, scales, nonzero, opened, base),
        )


def _open(folder: Path, spec: ModelSpec) -> _Opened:
    opened = open_peft(folder, ("lora_", MARK))
    config = parse_lora_config(opened.config, opened.config_file)
    if config.sparse_adapter:
        refuse_elastic(folder)
    shapes = lora_shapes(spec)
    held = parameters_held(shapes, spec)
    parameters = {m: held[m] for m in by_parameter(config, held)}
    opened, names = take_experts(opened, spec)
    experts = read_experts(names, opened, config, spec)
    return _Opened(opened, config, spec, shapes, parameters, experts)


def _deltas(
    factors: Mapping[str, Factors], opened: _Opened
) -> tuple[dict[str, Delta | BaseBound], int]:
    """Deltas by module, and how many of them change anything."""
    deltas: dict[str, Delta | BaseBound] = {}
    nonzero = 0
    for module, pair in factors.items():
        plain, moves = build_delta(
            pair,
            opened.shapes[module],
            opened.rank(module),
            opened.scale(module),
            opened.folder.tensors,
        )
        if opened.config.sparse_adapter:
            deltas[module] = _sparse(plain, pair, opened)
        elif opened.config.use_dora or pair.magnitude is not None:
            deltas[module], moves = dora_delta(plain, pair, opened.config, opened.folder), True
        else:
            deltas[module] = plain
        nonzero += moves
    return deltas, nonzero


def _sparse(plain: LowRankDelta, pair: Factors, opened: _Opened) -> SparsePeftDelta:
    if pair.embedding or pair.magnitude is not None:
        raise InputRefused(
            "adapter-option",
            "sparse_adapter, and factors of an embedding or a magnitude vector: SQFT masks "
            "plain factors of linears",
            expected="lora_A and lora_B of linears",
            file=opened.file,
            tensor=pair.module,
        )
    return SparsePeftDelta(plain)


def _replacements(
    replaced: Replaced, targeted: Targeted, rows: TokenRows, opened: _Opened
) -> tuple[Replacement, ...]:
    """Whole tensors and single rows; a saved embedding is the head's too until LoRA unties them."""
    spec = opened.spec
    items = {r.tensor: r for r in replaced.items}
    _tokens_alone(rows, targeted, items, opened)
    saved = items.get(spec.embedding)
    unties = spec.tied and (targeted.unties or rows.unties)
    if unties and saved is not None and saved.why == EMBEDDING:
        items.setdefault(spec.head, replace(saved, tensor=spec.head))
    return (*items.values(), *rows.items)


def _tokens_alone(
    rows: TokenRows, targeted: Targeted, items: Mapping[str, Replacement], opened: _Opened
) -> None:
    spec = opened.spec
    touched = items.keys() | {f"{m}.weight" for m in targeted.factors}
    ends = {spec.embedding, spec.head} if spec.tied else {r.tensor for r in rows.items}
    both = sorted(touched & ends) if rows.items else []
    if both:
        raise InputRefused(
            "adapter-option",
            f"trainable_token_indices, and {both[0]} is adapted or replaced as well",
            expected="one or the other",
            file=opened.folder.config_file,
            hint="PEFT's own forward fails or mixes them up; train one of the two.",
        )


def _empty(factors: Mapping[str, object], config: LoraConfig, file: str) -> InputRefused:
    if not factors:
        found = "the file holds no tensor"
    elif not config.lora_alpha and not config.alpha_pattern:
        found = "lora_alpha is 0"
    else:
        found = f"the delta of all {len(factors)} modules is zero (B is all zeros before training)"
    return InputRefused("adapter-empty", found, expected="a trained adapter", file=file)


def _facts(
    factors: Mapping[str, Factors],
    scales: Mapping[str, float],
    nonzero: int,
    opened: _Opened,
    base: BaseIdentity,
) -> dict[str, Any]:
    config, file = opened.config, opened.folder.config_file
    return {
        **base_facts(config.base_model_name_or_path, config.base_sha256, base, file),
        "ranks": sorted({opened.rank(m) for m in factors} | opened.experts.ranks),
        "scales": sorted({*scales.values(), *opened.experts.scales}),
        "rslora": config.use_rslora,
        "dora": config.use_dora,
        "sparse_adapter": config.sparse_adapter,
        "target_parameters": sorted(config.target_parameters),
        "zero_deltas": len(factors) - nonzero,
        "modules_to_save": sorted(config.modules_to_save),
        "bias": config.bias,
        "lora_bias": config.lora_bias,
        "warnings": _warnings(factors, opened),
    }


def _warnings(factors: Mapping[str, Factors], opened: _Opened) -> list[str]:
    # PEFT itself sets fan_in_fan_out by the kind of layer, false on nn.Linear and true on Conv1D
    # (peft/tuners/lora/layer.py, `dispatch_default`).
    conv1d = {li.module for li in opened.spec.linears() if li.transposed}
    if opened.config.fan_in_fan_out and not factors.keys() & conv1d:
        return ["fan_in_fan_out is true, which PEFT ignores on linear layers; ignored"]
    return []
