"""AdaLoRA of PEFT: a low-rank product with a diagonal whose entries were pruned in training.

Format: adapter_config.json and adapter_model.safetensors of PEFT 0.21; see
docs/formats/adalora.md. Delta: `alpha / (init_r + 1e-5) * B diag(E) A` (Zhang et al. 2023, eq. 3;
peft/tuners/adalora/layer.py, `SVDLinear.get_delta_weight`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from pydantic import Field, field_validator

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.options import COMMON_HARMLESS, OptionTable
from exporter.adapters.peft_config import PeftConfig
from exporter.adapters.peft_files import peft_type
from exporter.adapters.tensors import largest_magnitude
from exporter.adapters.tuner import (
    Built,
    Opened,
    Tuner,
    check_fits,
    check_rank,
    check_shape,
    finish,
    open_tuner,
    require_parts,
)
from exporter.adapters.tuner_files import write_tuner
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.store.dtypes import F32

_A, _B, _E = "lora_A", "lora_B", "lora_E"
_EPSILON = 1e-5  # added to the rank in peft's layer

# Fields that AdaLoRA inherits from LoRA and never looks at, and which say something else there.
_IGNORED = ("use_rslora", "alpha_pattern", "lora_bias", "fan_in_fan_out")


_NOT_HERE = (
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "eva_config",
    "kasa_config",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "monteclora_config",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)


class AdaLoraConfig(PeftConfig):
    """The fields that decide what an AdaLoRA adds; defaults are PEFT's."""

    init_r: int = 12
    lora_alpha: int | float = 8
    rank_pattern: dict[str, list[bool]] = Field(default_factory=dict)

    @field_validator("rank_pattern", mode="before")
    @classmethod
    def _null_is_empty_map(cls, value: Any) -> Any:
        return {} if value is None else value

    def rank(self, module: str) -> int:
        """Rows of A in the file: what the budget has left of `init_r`."""
        left = self.rank_pattern.get(f"{module}.{_E}")
        return self.init_r if left is None else sum(left)

    def scale(self, module: str) -> float:
        """`alpha / (init_r + 1e-5)`; PEFT divides by the rank before pruning."""
        alpha = self.lora_alpha if self.lora_alpha > 0 else self.rank(module)
        return alpha / (self.init_r + _EPSILON)


TUNER = Tuner(
    family="adalora",
    mark="lora_",
    config=AdaLoraConfig,
    options=OptionTable(
        read=frozenset(AdaLoraConfig.model_fields),
        harmless=COMMON_HARMLESS
        | set(_IGNORED)
        | {
            "beta1",
            "beta2",
            "deltaT",
            "init_lora_weights",  # AdaLoRA knows its own initialisation only
            "lora_dropout",
            "megatron_core",
            "orth_reg_weight",
            "qalora_group_size",
            "r",  # init_r counts
            "runtime_config",
            "target_r",
            "tfinal",
            "tinit",
            "total_step",
        },
        refused=dict.fromkeys(_NOT_HERE, "AdaLoRA has no such variant in PEFT")
        | {
            "layer_replication": "it repeats layers of the base",
            "target_parameters": "it adapts fused expert parameters, not linears",
            "trainable_token_indices": "it replaces single rows of the embedding",
        },
    ),
)


class AdaloraFamily:
    """Reads a PEFT folder of type ADALORA."""

    name: ClassVar[str] = TUNER.family

    def claims(self, folder: Path) -> bool:
        """Whether the config says ADALORA."""
        return peft_type(folder) == "ADALORA"

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly; every tensor of the file is used exactly once.

        Raises:
            InputRefused: the `adapter-*` codes and those of values and file formats.
        """
        opened = open_tuner(TUNER, folder, spec)
        check_rank(opened.config.init_r, opened.folder.config_file)
        _check_pattern(opened)
        built = {module: _build(opened, module) for module in opened.parts}
        raw = opened.folder.config
        ignored = [name for name in _IGNORED if raw.get(name)]
        config = opened.config
        facts = {
            "ranks": sorted({config.rank(m) for m in built}),
            "scales": sorted({config.scale(m) for m in built}),
            "warnings": [f"PEFT's AdaLoRA ignores {name}; ignored" for name in ignored],
        }
        return finish(opened, built, base, facts=facts)


def _check_pattern(opened: Opened[AdaLoraConfig]) -> None:
    """Each key of `rank_pattern` names an adapted module, each list has `init_r` entries."""
    for key, kept in opened.config.rank_pattern.items():
        module = key.removesuffix(f".{_E}")
        if module == key or module not in opened.parts:
            found = "names no adapted module"
        elif len(kept) != opened.config.init_r:
            found = f"has {len(kept)} entries"
        else:
            continue
        raise InputRefused(
            "adapter-invalid",
            f"rank_pattern[{key[:80]!r}] {found}",
            expected=f"<module>.{_E} and init_r = {opened.config.init_r} of true and false",
            file=opened.folder.config_file,
        )


def _build(opened: Opened[AdaLoraConfig], module: str) -> Built:
    """`scale * B (E * A)`: E is folded into A row by row."""
    a, b, e = require_parts(opened, module, _A, _B, _E)
    out, width = opened.shapes[module]
    rank = opened.config.rank(module)
    check_shape(opened, a, (rank, width), "[rank, in]")
    check_shape(opened, b, (out, rank), "[out, rank]")
    check_shape(opened, e, (rank, 1), "[rank, 1]")
    tensors, scale = opened.folder.tensors, opened.config.scale(module)
    top = rank * abs(scale)
    for name in (a, b, e):
        top *= largest_magnitude(tensors, name)
    check_fits(opened, module, top)
    if rank == 0:
        return Built(None, moves=False)
    read_a, read_b, read_e = (tensors.float32(name) for name in (a, b, e))
    delta = LowRankDelta((out, width), lambda: read_e() * read_a(), read_b, scale)
    return Built(delta, moves=top > 0.0)


def write_adalora(
    folder: Path,
    triplets: Mapping[str, tuple[F32, F32, F32]],
    *,
    init_r: int,
    alpha: float,
    kept: Mapping[str, Sequence[bool]] | None = None,
    base_name: str | None = None,
) -> None:
    """Write an AdaLoRA that peft loads.

    Args:
        folder: new or empty.
        triplets: module -> A `[r, in]`, E `[r]` or `[r, 1]`, B `[out, r]`.
        init_r: rank before the budget was spent.
        alpha: the scale's numerator.
        kept: module -> which of the `init_r` triplets are left; r is their number.
        base_name: what the config says of the base.

    Raises:
        InputRefused: `output-failed`.
    """
    parts = {
        module: {_A: a, _B: b, _E: cast("F32", np.reshape(e, (-1, 1)))}
        for module, (a, e, b) in triplets.items()
    }
    pattern = {f"{module}.{_E}": [bool(k) for k in rows] for module, rows in (kept or {}).items()}
    options: dict[str, Any] = {
        "init_r": init_r,
        "target_r": init_r,
        "lora_alpha": alpha,
        "total_step": 1,  # peft wants a schedule, also where nothing is trained
        "rank_pattern": pattern or None,
    }
    write_tuner(folder, "ADALORA", parts, options, base_name=base_name)
