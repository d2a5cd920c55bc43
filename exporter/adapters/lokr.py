"""LoKr of PEFT: the Kronecker product of two small matrices, each whole or factored.

Format: adapter_config.json and adapter_model.safetensors of PEFT 0.21; see docs/formats/lokr.md.
Delta: `alpha / r * W1 (x) W2` (LyCORIS, Yeh et al. 2024; peft/tuners/lokr/layer.py,
`LoKrLayer.get_delta_weight`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.kronecker import KroneckerDelta
from exporter.adapters.loha import lycoris_facts
from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.lycoris import HARMLESS, NOT_HERE, LycorisConfig
from exporter.adapters.options import OptionTable
from exporter.adapters.peft_files import peft_type
from exporter.adapters.tensors import largest_magnitude
from exporter.adapters.tuner import Built, Opened, Tuner, finish, open_tuner
from exporter.adapters.tuner_checks import check_fits, check_shape, require_parts
from exporter.adapters.tuner_files import write_tuner
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.model import RowReader

Pair = tuple[int, int]


class LokrConfig(LycorisConfig):
    """The fields that decide what a LoKr adds; defaults are PEFT's."""

    decompose_both: bool = False
    decompose_factor: int = -1

    def factored(self, rank: int, left: Pair, right: Pair) -> tuple[bool, bool]:
        """Whether W1 and whether W2 is a product of rank `rank` (`LoKrLayer.update_layer`)."""
        return self.decompose_both and rank < max(left) / 2, rank < max(right) / 2


TUNER = Tuner(
    family="lokr",
    mark="lokr_",
    config=LokrConfig,
    options=OptionTable(
        read=frozenset(LokrConfig.model_fields) - NOT_HERE,
        harmless=HARMLESS | {"rank_dropout_scale"},
    ),
)


class LokrFamily:
    """Reads a PEFT folder of type LOKR."""

    name: ClassVar[str] = TUNER.family

    def claims(self, folder: Path) -> bool:
        """Whether the config says LOKR."""
        return peft_type(folder) == "LOKR"

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly; every tensor of the file is used exactly once.

        Raises:
            InputRefused: the `adapter-*` codes and those of values and file formats.
        """
        opened = open_tuner(TUNER, folder, spec)
        built = {module: _build(opened, module) for module in opened.parts}
        return finish(opened, built, base, facts=lycoris_facts(opened))


def kronecker_shapes(shape: Pair, factor: int) -> tuple[Pair, Pair]:
    """Shapes of W1 and W2 for a weight `[out, in]` and PEFT's `decompose_factor`."""
    (out1, out2), (in1, in2) = (_divisors(n, factor) for n in shape)
    return (out1, in1), (out2, in2)


def _divisors(dimension: int, factor: int) -> Pair:
    """Two divisors, the smaller first, as `factorization` of peft/tuners/lokr/layer.py finds them.

    `factor` itself where it divides; else the divisor nearest the square root from below that is
    no more than `factor` (-1: no bound).
    """
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    bound = dimension if factor == -1 else factor
    small, step = 1, 2
    while step * step <= dimension and step <= bound:
        if dimension % step == 0:
            small = step
        step += 1
    return small, dimension // small


def _build(opened: Opened[LokrConfig], module: str) -> Built:
    file = opened.folder.config_file
    rank, scale = opened.config.rank(module, file), opened.config.scale(module, file)
    left, right = kronecker_shapes(opened.shapes[module], opened.config.decompose_factor)
    split1, split2 = opened.config.factored(rank, left, right)
    parts = [*_parts("lokr_w1", split1), *_parts("lokr_w2", split2)]
    names = require_parts(opened, module, *parts)
    tops = [largest_magnitude(opened.folder.tensors, n) for n in names]
    top = abs(scale)
    for value in (*tops, *[float(rank)] * (split1 + split2)):
        top *= value
    check_fits(opened, module, top)
    w1 = _factor(opened, names[: 1 + split1], left, rank)
    w2 = _factor(opened, names[1 + split1 :], right, rank)
    delta = KroneckerDelta(opened.shapes[module], left, right, w1, w2, scale)
    return Built(delta, moves=top > 0.0)


def _parts(name: str, split: bool) -> tuple[str, ...]:
    return (f"{name}_a", f"{name}_b") if split else (name,)


def _factor(opened: Opened[LokrConfig], names: list[str], shape: Pair, rank: int) -> RowReader:
    """Rows of W1 or W2, whole or as the product of its two factors."""
    tensors = opened.folder.tensors
    if len(names) == 1:
        check_shape(opened, names[0], shape, "[out, in] of the factor")
        return tensors.rows(names[0])
    check_shape(opened, names[0], (shape[0], rank), "[out, rank] of the factor")
    check_shape(opened, names[1], (rank, shape[1]), "[rank, in] of the factor")
    a, b = (tensors.float32(n) for n in names)
    return LowRankDelta(shape, b, a, 1.0).rows


def write_lokr(
    folder: Path,
    factors: Mapping[str, Mapping[str, NDArray[Any]]],
    shapes: Mapping[str, Pair],
    *,
    rank: int,
    alpha: float,
    decompose_both: bool = False,
    decompose_factor: int = -1,
    base_name: str | None = None,
) -> None:
    """Write a LoKr that peft loads.

    Args:
        folder: new or empty.
        factors: module -> "w1" `[out1, in1]` or "w1_a" and "w1_b", the same for "w2".
        shapes: module -> `[out, in]` of its weight.
        rank: of all modules; with alpha it is the scale also where both factors are whole.
        alpha: the scale is `alpha / rank`.
        decompose_both: as PEFT's option.
        decompose_factor: as PEFT's option.
        base_name: what the config says of the base.

    Raises:
        InputRefused: `adapter-shape` where the factors are not those that PEFT expects;
            `output-failed`.
    """
    config = LokrConfig(
        r=rank, alpha=alpha, decompose_both=decompose_both, decompose_factor=decompose_factor
    )
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for module, own in factors.items():
        parts[module] = {f"lokr_{part}": values for part, values in own.items()}
        left, right = kronecker_shapes(shapes[module], decompose_factor)
        split1, split2 = config.factored(rank, left, right)
        wanted = {*_parts("lokr_w1", split1), *_parts("lokr_w2", split2)}
        if parts[module].keys() != wanted:
            raise InputRefused(
                "adapter-shape",
                f"factors {', '.join(sorted(own))}",
                expected=f"{', '.join(sorted(wanted))} for W1 {list(left)} and W2 {list(right)}",
                tensor=module,
            )
    options = config.model_dump(include={"r", "alpha", "decompose_both", "decompose_factor"})
    write_tuner(folder, "LOKR", parts, options, base_name=base_name)
