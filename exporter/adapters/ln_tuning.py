"""LN tuning of PEFT: norms replaced as wholes, with gain and, where the base has one, bias.

Format: adapter_config.json and adapter_model.safetensors of PEFT 0.21; see
docs/formats/ln_tuning.md. Meaning: Zhao et al. 2023; peft/tuners/ln_tuning/layer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from exporter.adapters.base import Adapter, BaseIdentity, Replacement
from exporter.adapters.options import COMMON_HARMLESS, OptionTable
from exporter.adapters.peft_config import PeftConfig
from exporter.adapters.peft_files import peft_type
from exporter.adapters.tensors import largest_magnitude
from exporter.adapters.tuner import Built, Opened, Tuner, finish, open_tuner
from exporter.adapters.tuner_checks import check_shape, require_parts
from exporter.adapters.tuner_files import write_tuner
from exporter.arch.model_spec import ModelSpec
from exporter.store.dtypes import F32

_PART = "ln_tuning_layers"

TUNER = Tuner(
    family="ln_tuning",
    mark="ln_tuning_",
    config=PeftConfig,
    options=OptionTable(
        read=frozenset(PeftConfig.model_fields)
        - {"bias", "ensure_weight_tying", "layers_pattern", "layers_to_transform"},
        harmless=COMMON_HARMLESS,
    ),
)


class LnTuningFamily:
    """Reads a PEFT folder of type LN_TUNING."""

    name: ClassVar[str] = TUNER.family

    def claims(self, folder: Path) -> bool:
        """Whether the config says LN_TUNING."""
        return peft_type(folder) == "LN_TUNING"

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly; every tensor of the file is used exactly once.

        Raises:
            InputRefused: the `adapter-*` codes and those of values and file formats.
        """
        norms = norms_of(spec)
        shapes = {module: (norm["weight"], 1) for module, norm in norms.items()}
        opened = open_tuner(TUNER, folder, spec, shapes)
        built = {module: _build(opened, module, norms[module]) for module in opened.parts}
        return finish(opened, built, base)


def norms_of(spec: ModelSpec) -> dict[str, dict[str, int]]:
    """Norms by module name, with the length of each of their tensors: "weight", "bias"."""
    linears = {linear.module for linear in spec.linears()}
    norms: dict[str, dict[str, int]] = {}
    for name, shape in spec.tensors().items():
        module, _, leaf = name.rpartition(".")
        if len(shape) == 1 and module not in linears:
            norms.setdefault(module, {})[leaf] = shape[0]
    return norms


def _build(opened: Opened[PeftConfig], module: str, norm: Mapping[str, int]) -> Built:
    names = require_parts(opened, module, *(f"{_PART}.{leaf}" for leaf in norm))
    added: list[Replacement] = []
    for tensor, (leaf, length) in zip(names, norm.items(), strict=True):
        check_shape(opened, tensor, (length,), "[hidden]")
        largest_magnitude(opened.folder.tensors, tensor)  # finite
        rows = opened.folder.tensors.rows(tensor)
        added.append(Replacement(f"{module}.{leaf}", (length,), rows, "replace", TUNER.family))
    return Built(None, moves=True, added=tuple(added))


def write_ln_tuning(
    folder: Path, norms: Mapping[str, Mapping[str, F32]], *, base_name: str | None = None
) -> None:
    """Write an LN tuning that peft loads.

    Args:
        folder: new or empty.
        norms: module -> "weight" and, where the base has one, "bias", each `[hidden]`.
        base_name: what the config says of the base.

    Raises:
        InputRefused: `output-failed`.
    """
    parts = {m: {f"{_PART}.{leaf}": v for leaf, v in own.items()} for m, own in norms.items()}
    write_tuner(folder, "LN_TUNING", parts, {}, base_name=base_name)
