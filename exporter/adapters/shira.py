"""SHiRA of PEFT, and the "oracle": single values at given positions of a weight.

Format: adapter_config.json and adapter_model.safetensors of PEFT 0.21; see docs/formats/shira.md.
Delta: `D[i, j] = v` for each index (Bhardwaj et al. 2024; peft/tuners/shira/layer.py,
`Linear.get_delta_weight`; the scale that PEFT keeps beside it is not saved, and 1 when loaded).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.options import COMMON_HARMLESS, OptionTable
from exporter.adapters.peft_config import PeftConfig
from exporter.adapters.peft_files import peft_type
from exporter.adapters.ranks import check_rank
from exporter.adapters.scatter import ScatterDelta, read_positions
from exporter.adapters.tensors import largest_magnitude
from exporter.adapters.tuner import Built, Opened, Tuner, finish, open_tuner
from exporter.adapters.tuner_checks import check_shape, require_parts
from exporter.adapters.tuner_files import write_tuner
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.store.dtypes import F32

_VALUES, _INDICES = "shira_weight", "shira_indices"


class ShiraConfig(PeftConfig):
    """The fields that decide what a SHiRA adds; defaults are PEFT's."""

    r: int | None = 32  # None, which PEFT does not know: any number of values


TUNER = Tuner(
    family="shira",
    mark="shira_",
    config=ShiraConfig,
    options=OptionTable(
        read=frozenset(ShiraConfig.model_fields)
        - {
            "bias",
            "ensure_weight_tying",
            "exclude_modules",
            "layers_pattern",
            "layers_to_transform",
        },
        harmless=COMMON_HARMLESS | {"fan_in_fan_out", "init_weights", "mask_type", "random_seed"},
    ),
)


class ShiraFamily:
    """Reads a PEFT folder of type SHIRA."""

    name: ClassVar[str] = TUNER.family

    def claims(self, folder: Path) -> bool:
        """Whether the config says SHIRA."""
        return peft_type(folder) == "SHIRA"

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly; every tensor of the file is used exactly once.

        Raises:
            InputRefused: the `adapter-*` codes and those of values and file formats.
        """
        opened = open_tuner(TUNER, folder, spec)
        if opened.config.r is not None:
            check_rank(opened.config.r, opened.folder.config_file)
        built = {module: _build(opened, module) for module in opened.parts}
        count = sum(opened.shape_of(m, _VALUES)[0] for m in built)
        return finish(opened, built, base, facts={"values": count})


def _build(opened: Opened[ShiraConfig], module: str) -> Built:
    """Values and positions agree with one another, with the weight, and with `r`."""
    values, indices = require_parts(opened, module, _VALUES, _INDICES)
    out, width = opened.shapes[module]
    shape = opened.shape_of(module, _VALUES)
    count = shape[0] if opened.config.r is None and shape else 0
    if opened.config.r is not None:
        count = opened.config.r * (out + width)
    check_shape(opened, values, (count,), "[r * (in + out)], or any number where r is null")
    check_shape(opened, indices, (2, count), "[2, number of values]")
    tensors = opened.folder.tensors
    top = largest_magnitude(tensors, values)
    starts = read_positions(tensors, indices, (out, width))
    return Built(ScatterDelta((out, width), tensors, indices, values, starts), moves=top > 0.0)


def write_shira(
    folder: Path,
    entries: Mapping[str, tuple[NDArray[Any], F32]],
    *,
    r: int | None,
    base_name: str | None = None,
    base_sha256: str | None = None,
) -> None:
    """Write a SHiRA that peft loads, or with `r=None` an oracle of any number of values.

    Args:
        folder: new or empty.
        entries: module -> (indices `[2, K]`: output and input of each value, in any order;
            values `[K]`). With `r`, K is `r * (in + out)`.
        r: as PEFT counts; None for any K, which this reader takes and peft does not.
        base_name: what the config says of the base.
        base_sha256: digest of the base, so that the adapter is refused on another one.

    Raises:
        InputRefused: `adapter-invalid` for a position that comes twice; `output-failed`.
    """
    parts = {module: _sorted(module, *own) for module, own in entries.items()}
    # An unknown mask type keeps PEFT from drawing positions of its own.
    options: dict[str, Any] = {"r": r, "mask_type": "given"}
    if base_sha256 is not None:
        options["base_sha256"] = base_sha256
    write_tuner(folder, "SHIRA", parts, options, base_name=base_name)


def _sorted(module: str, indices: NDArray[Any], values: F32) -> dict[str, NDArray[Any]]:
    order = np.lexsort((indices[1], indices[0]))
    indices = np.ascontiguousarray(indices[:, order], np.int32)
    if (np.diff(indices, axis=1) == 0).all(axis=0).any():
        raise InputRefused(
            "adapter-invalid", "a position comes twice", expected="one value each", tensor=module
        )
    return {_VALUES: values[order], _INDICES: indices}
