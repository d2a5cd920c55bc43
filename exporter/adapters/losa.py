"""LoSA: low-rank factors trained under the base's mask; the bundle's reader and writer.

Source: Dynamic Low-Rank Sparse Adaptation (ICLR 2025, arXiv 2502.14816), eq. 1:
`W' = M . (W + alpha / r_ref * B A)`, with the rank of each module its own and the scale fixed.
Format: docs/formats/losa.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from exporter.adapters.base import Adapter, BaseIdentity, Delta
from exporter.adapters.factors import Factors, Shapes, build_delta, check_modules, group_factors
from exporter.adapters.identity import base_facts
from exporter.adapters.lora_config import parse_plain_lora_config
from exporter.adapters.losa_files import (
    LOSA_CONFIG,
    VERSION,
    BundleMasks,
    LosaConfig,
    check_claims,
    facts_of,
    is_losa,
    open_masks,
    read_losa_config,
)
from exporter.adapters.lowrank import MaskedLowRankDelta
from exporter.adapters.names import PREFIX
from exporter.adapters.peft_files import (
    CONFIG,
    WEIGHTS,
    PeftFolder,
    label,
    open_peft,
    validated,
)
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused, UsageError
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import F32
from exporter.store.jsonio import write_json
from exporter.store.masks import write_masks
from exporter.store.writer import write_safetensors


class LosaFamily:
    """Reads a LoSA bundle."""

    name: ClassVar[str] = "losa"

    def claims(self, folder: Path) -> bool:
        """Whether this is a LoSA bundle, whole or not; see `is_losa`."""
        return is_losa(folder)

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly. That the masks are the model's own is checked when fusing.

        Raises:
            InputRefused: the `adapter-*` codes, `input-missing`, `value-not-finite`.
        """
        config = read_losa_config(folder)
        opened = open_peft(folder)
        factors = group_factors(opened.names, opened.tensors.label)
        _check_all_factors(opened, factors)
        _check_rank_table(config, factors, folder)
        _check_peft_agrees(config, opened)
        facts = base_facts(config.base, config.base_sha256, base, label(folder, LOSA_CONFIG))
        shapes = check_modules(factors, spec, opened.tensors.label)
        linears = {li.module: (li.out_features, li.in_features) for li in spec.linears()}
        masks = open_masks(folder, config.mask, factors, linears)
        check_claims(config, masks, label(folder, LOSA_CONFIG))
        deltas = _deltas(config, factors, masks, shapes, opened)
        return Adapter(
            family=self.name,
            name=folder.name or folder.resolve().name,
            deltas=deltas,
            masks=masks,
            masked=True,
            tensors_used=len(opened.names) + len(masks),
            facts={**facts, **facts_of(config)},
        )


def _check_all_factors(opened: PeftFolder, factors: Mapping[str, Factors]) -> None:
    used = {t for f in factors.values() for t in (f.a, f.b)}
    extra = sorted(n.tensor for n in opened.names if n.tensor not in used)
    if extra:
        raise InputRefused(
            "adapter-tensor-unused",
            "a LoSA bundle holds factors only",
            expected="lora_A.weight and lora_B.weight",
            file=opened.tensors.label,
            tensor=extra[0],
        )


def _check_rank_table(config: LosaConfig, factors: Mapping[str, Factors], folder: Path) -> None:
    """The table names exactly the modules of the file: a lost row would be a wrong merge."""
    table, held = config.rank_pattern.keys(), factors.keys()
    if table - held:
        raise InputRefused(
            "adapter-tensor-missing",
            f"the rank table names {len(table - held)} modules without factors",
            file=label(folder, WEIGHTS),
            tensor=min(table - held),
        )
    if held - table:
        raise InputRefused(
            "adapter-invalid",
            f"{len(held - table)} modules have factors but no rank in rank_pattern",
            expected="one rank for each module",
            file=label(folder, LOSA_CONFIG),
            tensor=min(held - table),
        )


def _check_peft_agrees(config: LosaConfig, opened: PeftFolder) -> None:
    """adapter_config.json means the same ranks and scales, so that both readings agree."""
    peft = parse_plain_lora_config(opened.config, opened.config_file)
    for module, rank in config.rank_pattern.items():
        found = (
            peft.rank(module, opened.config_file),
            peft.scale(module, opened.config_file),
        )
        if found[0] != rank or abs(found[1] - config.scale) > 1e-6 * config.scale:
            raise InputRefused(
                "adapter-invalid",
                f"{CONFIG} gives rank {found[0]} and scale {found[1]:.6g}",
                expected=f"rank {rank} and scale {config.scale:.6g}, as {LOSA_CONFIG} says",
                file=opened.config_file,
                tensor=module,
            )


def _deltas(
    config: LosaConfig,
    factors: Mapping[str, Factors],
    masks: BundleMasks,
    shapes: Shapes,
    opened: PeftFolder,
) -> dict[str, Delta]:
    deltas: dict[str, Delta] = {}
    nonzero = 0
    for module, pair in factors.items():
        rank = config.rank_pattern[module]
        inner, moves = build_delta(pair, shapes[module], rank, config.scale, opened.tensors)
        deltas[module] = MaskedLowRankDelta(inner, lambda m=module: masks[m])
        nonzero += moves
    if not nonzero:
        raise InputRefused(
            "adapter-empty",
            f"the delta of all {len(factors)} modules is zero",
            expected="a trained adapter",
            file=opened.tensors.label,
        )
    return deltas


def write_losa(
    folder: Path,
    *,
    base_name: str | None,
    base_sha256: str,
    factors: Mapping[str, tuple[F32, F32]],
    masks: Mapping[str, Mask],
    alpha: float,
    r_ref: int,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a LoSA bundle into `folder`, which is made and must be empty.

    Args:
        folder: the bundle.
        base_name: name of the sparse base, for people.
        base_sha256: digest of the sparse base, as `BaseIdentity.sha256` gives it.
        factors: module -> (A `[r_l, in]`, B `[out, r_l]`), float32.
        masks: module -> mask that the base has and the factors were trained under.
        alpha: numerator of the scale.
        r_ref: its denominator, the same for all modules.
        facts: how it was made: T, schedule, s_final, delta, beta, pattern,
            sparsity_pattern, seed.

    Raises:
        UsageError: `output-exists`.
        InputRefused: `adapter-invalid` for facts or numbers outside the format, `adapter-shape`
            for factors that do not fit their mask, `output-failed`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("output-exists", "the bundle's folder is not empty", file=folder.name)
    raw: dict[str, Any] = {
        **(facts or {}),
        "method": "losa",
        "version": VERSION,
        "base": base_name,
        "base_sha256": base_sha256,
        "alpha": alpha,
        "r_ref": r_ref,
        "rank_pattern": {m: int(a.shape[0]) for m, (a, _) in sorted(factors.items())},
    }
    config = validated(LosaConfig, raw, LOSA_CONFIG)
    _check_fits(factors, masks)
    folder.mkdir(parents=True, exist_ok=True)
    # First, so that a bundle cut short is refused and never read as a plain LoRA.
    write_json(folder / LOSA_CONFIG, config.model_dump(exclude_none=True))
    write_masks(folder / config.mask, sorted(masks.items(), key=lambda item: item[0]))
    write_json(folder / CONFIG, _peft_config(config))
    tensors = {
        f"{PREFIX}{module}.lora_{side}.weight": np.ascontiguousarray(values)
        for module, pair in sorted(factors.items())
        for side, values in zip("AB", pair, strict=True)
    }
    write_safetensors(folder / WEIGHTS, tensors)


def _check_fits(factors: Mapping[str, tuple[F32, F32]], masks: Mapping[str, Mask]) -> None:
    for module, (a, b) in factors.items():
        mask = masks.get(module)
        want = None if mask is None else (mask.out_features, mask.in_features)
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or want != (len(b), a.shape[1]):
            raise InputRefused(
                "adapter-shape",
                f"A {list(a.shape)}, B {list(b.shape)}, mask {list(want) if want else 'missing'}",
                expected="A [r, in], B [out, r] and a mask [out, in]",
                tensor=module,
            )


def _peft_config(config: LosaConfig) -> dict[str, Any]:
    """A config by which PEFT gives every module the scale `alpha / r_ref`.

    PEFT divides by each module's own rank, so alpha is multiplied by it.
    """
    ranks = config.rank_pattern
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base,
        "inference_mode": True,
        "r": config.r_ref,
        "lora_alpha": config.alpha,
        "bias": "none",
        "target_modules": sorted(ranks),
        "rank_pattern": dict(sorted(ranks.items())),
        "alpha_pattern": {m: config.alpha * r / config.r_ref for m, r in sorted(ranks.items())},
    }
