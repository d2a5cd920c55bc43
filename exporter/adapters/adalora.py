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

from exporter.adapters.adalora_config import DIAGONAL, IGNORED, OPTIONS, AdaLoraConfig
from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.peft_files import peft_type
from exporter.adapters.ranks import check_rank
from exporter.adapters.tensors import largest_magnitude
from exporter.adapters.tuner import Built, Opened, Tuner, finish, open_tuner
from exporter.adapters.tuner_checks import check_fits, check_shape, require_parts
from exporter.adapters.tuner_files import write_tuner
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.store.dtypes import F32

_A, _B, _E = "lora_A", "lora_B", DIAGONAL

TUNER = Tuner(family="adalora", mark="lora_", config=AdaLoraConfig, options=OPTIONS)


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
        ignored = [name for name in IGNORED if raw.get(name)]
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
