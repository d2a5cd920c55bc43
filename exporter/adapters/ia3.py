"""(IA)^3 of PEFT: one factor for each output, or for each input, of a linear.

Format: adapter_config.json and adapter_model.safetensors of PEFT 0.21; see docs/formats/ia3.md.
Delta: `W' = diag(l) W` and `b' = l . b`, or `W' = W diag(l)` for feed-forward modules (Liu et al.
2022, section 3.3; peft/tuners/ia3/layer.py, `Linear.merge`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import numpy as np

from exporter.adapters.base import Adapter, BaseIdentity, KeptRows, Replacement
from exporter.adapters.options import COMMON_HARMLESS, OptionTable
from exporter.adapters.patterns import names_module
from exporter.adapters.peft_config import PeftConfig
from exporter.adapters.peft_files import peft_type
from exporter.adapters.tensors import largest_magnitude
from exporter.adapters.tuner import Built, Opened, Tuner, finish, open_tuner
from exporter.adapters.tuner_checks import check_shape, require_parts
from exporter.adapters.tuner_files import write_tuner
from exporter.arch.model_spec import ModelSpec
from exporter.model import LowRank, RowReader
from exporter.store.dtypes import F32

_PART = "ia3_l"


class Ia3Config(PeftConfig):
    """The fields that decide what an (IA)^3 scales; defaults are PEFT's."""

    feedforward_modules: str | list[str] | None = None

    def feedforward(self, module: str, file: str) -> bool | None:
        """Whether inputs are scaled; None where the file's shape has to tell.

        PEFT compares the ends of names letter by letter here, not at the dots.
        """
        names = self.feedforward_modules
        if names is None:
            return None
        if isinstance(names, str):
            return names_module(names, module, file)
        return any(module.endswith(name) for name in names)


TUNER = Tuner(
    family="ia3",
    mark="ia3_",
    config=Ia3Config,
    options=OptionTable(
        read=frozenset(Ia3Config.model_fields)
        - {"bias", "ensure_weight_tying", "layers_pattern", "layers_to_transform"},
        harmless=COMMON_HARMLESS | {"fan_in_fan_out", "init_ia3_weights"},
    ),
)


@dataclass(frozen=True)
class ScaledDelta:
    """`W . l - W` on one base; `l` is a column `[out, 1]` or a row `[1, in]`.

    The product is rounded before the base is taken off, so that adding the base again gives
    the product itself wherever `l` lies between 1/2 and 2 (Sterbenz).
    """

    shape: tuple[int, int]
    factors: Callable[[], F32]
    base: RowReader

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, float32 `[r1 - r0, in]`; +0.0 or -0.0 where the base is zero."""
        factors, weight = self.factors(), self.base(r0, r1)
        own = factors if factors.shape[0] == 1 else factors[r0:r1]
        return weight * own - weight

    def low_rank(self) -> LowRank | None:
        """None: its rank is the weight's."""
        return None


@dataclass(frozen=True)
class Scaling:
    """The same, not yet bound to a base."""

    shape: tuple[int, int]
    factors: Callable[[], F32]

    def bind(self, base: RowReader, kept: KeptRows | None) -> ScaledDelta:
        """The delta on this base; the mask changes nothing."""
        del kept
        return ScaledDelta(self.shape, self.factors, base)


class Ia3Family:
    """Reads a PEFT folder of type IA3."""

    name: ClassVar[str] = TUNER.family

    def claims(self, folder: Path) -> bool:
        """Whether the config says IA3."""
        return peft_type(folder) == "IA3"

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly; every tensor of the file is used exactly once.

        Raises:
            InputRefused: the `adapter-*` codes and those of values and file formats.
        """
        opened = open_tuner(TUNER, folder, spec)
        built = {module: _build(opened, module) for module in opened.parts}
        inputs = [m for m in built if opened.shape_of(m, _PART)[0] == 1]
        return finish(opened, built, base, masked=True, facts={"inputs_scaled": len(inputs)})


def _build(opened: Opened[Ia3Config], module: str) -> Built:
    (name,) = require_parts(opened, module, _PART)
    out, width = opened.shapes[module]
    inputs = opened.config.feedforward(module, opened.folder.config_file)
    if inputs is None:
        inputs = opened.shape_of(module, _PART) == (1, width)
    want, axes = ((1, width), "[1, in]") if inputs else ((out, 1), "[out, 1]")
    check_shape(opened, name, want, axes)
    tensors = opened.folder.tensors
    largest_magnitude(tensors, name)  # finite
    factors = tensors.float32(name)
    moves = bool((factors() != 1.0).any())
    bias = f"{module}.bias"
    added: tuple[Replacement, ...] = ()
    if not inputs and bias in opened.spec.tensors():
        added = (Replacement(bias, (out,), _column(factors), "scale", _PART),)
    return Built(Scaling((out, width), factors), moves=moves, added=added)


def _column(factors: Callable[[], F32]) -> RowReader:
    def rows(r0: int, r1: int) -> F32:
        return factors()[r0:r1, 0].copy()

    return rows


def write_ia3(
    folder: Path,
    outputs: Mapping[str, F32],
    inputs: Mapping[str, F32],
    *,
    base_name: str | None = None,
) -> None:
    """Write an (IA)^3 that peft loads.

    Args:
        folder: new or empty.
        outputs: module -> factors `[out]` of its outputs.
        inputs: module -> factors `[in]` of its inputs ("feed-forward").
        base_name: what the config says of the base.

    Raises:
        InputRefused: `output-failed`.
    """
    parts = {m: {_PART: cast("F32", np.reshape(v, (-1, 1)))} for m, v in outputs.items()}
    parts |= {m: {_PART: cast("F32", np.reshape(v, (1, -1)))} for m, v in inputs.items()}
    options = {"feedforward_modules": sorted(inputs)}
    write_tuner(folder, "IA3", parts, options, base_name=base_name)
