"""VeRA of PEFT: two random matrices shared by all modules, and two trained vectors for each.

Format: adapter_config.json and adapter_model.safetensors of PEFT 0.21; see docs/formats/vera.md.
Delta: `diag(b) B diag(d) A` (Kopiczko et al. 2024, eq. 2; peft/tuners/vera/layer.py,
`Linear.get_delta_weight`), with B cut to the module's outputs and A to its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.held import LastMade
from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.options import COMMON_HARMLESS, OptionTable
from exporter.adapters.peft_config import PeftConfig
from exporter.adapters.peft_files import peft_type
from exporter.adapters.ranks import check_rank
from exporter.adapters.tensors import largest_magnitude
from exporter.adapters.tuner import Built, Opened, Tuner, finish, open_tuner
from exporter.adapters.tuner_checks import check_fits, check_shape, require_parts
from exporter.adapters.tuner_files import write_tuner
from exporter.adapters.vera_projection import SHARED_A, SHARED_B, Projection, drawn, stored
from exporter.arch.model_spec import ModelSpec
from exporter.store.dtypes import F32

_B, _D = "vera_lambda_b", "vera_lambda_d"


class VeraConfig(PeftConfig):
    """The fields that decide what a VeRA adds; defaults are PEFT's."""

    r: int = 256
    projection_prng_key: int = 0
    save_projection: bool = True


TUNER = Tuner(
    family="vera",
    mark="vera_",
    config=VeraConfig,
    options=OptionTable(
        read=frozenset(VeraConfig.model_fields) - {"exclude_modules", "ensure_weight_tying"},
        harmless=COMMON_HARMLESS | {"d_initial", "fan_in_fan_out", "init_weights", "vera_dropout"},
    ),
    apart=(SHARED_A, SHARED_B),
)


class VeraFamily:
    """Reads a PEFT folder of type VERA."""

    name: ClassVar[str] = TUNER.family

    def claims(self, folder: Path) -> bool:
        """Whether the config says VERA."""
        return peft_type(folder) == "VERA"

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly; every tensor of the file is used exactly once.

        Raises:
            InputRefused: the `adapter-*` codes and those of values and file formats.
        """
        opened = open_tuner(TUNER, folder, spec)
        config = opened.config
        check_rank(config.r, opened.folder.config_file)
        shapes = [opened.shapes[m] for m in opened.parts] or [(0, 0)]
        largest = max(out for out, _ in shapes), max(width for _, width in shapes)
        args = (opened.folder.tensors, config.r, largest)
        shared = (
            stored(*args) if config.save_projection else drawn(*args, config.projection_prng_key)
        )
        last: LastMade[tuple[F32, F32]] = LastMade()
        built = {module: _build(opened, module, shared, last) for module in opened.parts}
        warnings = [] if config.save_projection else [_REDRAWN]
        facts = {"ranks": [config.r], "warnings": warnings}
        return finish(opened, built, base, shared=shared.tensors, facts=facts)


_REDRAWN = (
    "save_projection is false: VeRA's shared matrices were drawn again from projection_prng_key, "
    "as PEFT does when it loads such an adapter"
)


def _build(
    opened: Opened[VeraConfig], module: str, shared: Projection, last: LastMade[tuple[F32, F32]]
) -> Built:
    b, d = require_parts(opened, module, _B, _D)
    out, width = opened.shapes[module]
    rank, tensors = opened.config.r, opened.folder.tensors
    check_shape(opened, b, (out,), "[out]")
    check_shape(opened, d, (rank,), "[r]")
    top = rank * shared.top * largest_magnitude(tensors, b) * largest_magnitude(tensors, d)
    check_fits(opened, module, top)
    read_b, read_d = tensors.float32(b), tensors.float32(d)

    def factors() -> tuple[F32, F32]:
        left = read_d()[:, None] * shared.a()[:, :width]
        return left, read_b()[:, None] * shared.b(0, out)

    delta = LowRankDelta(
        (out, width),
        lambda: last.get(module, factors)[0],
        lambda: last.get(module, factors)[1],
        1.0,
    )
    return Built(delta, moves=top > 0.0)


def write_vera(
    folder: Path,
    vectors: Mapping[str, tuple[F32, F32]],
    shared: tuple[F32, F32],
    *,
    base_name: str | None = None,
) -> None:
    """Write a VeRA that peft loads, with its shared matrices.

    Args:
        folder: new or empty.
        vectors: module -> b `[out]`, d `[r]`.
        shared: A `[r, in]`, B `[out, r]` for the largest in and out among the modules.
        base_name: what the config says of the base.

    Raises:
        InputRefused: `output-failed`.
    """
    parts = {m: {_B: b, _D: d} for m, (b, d) in vectors.items()}
    options = {"r": shared[0].shape[0], "save_projection": True}
    apart = {SHARED_A: shared[0], SHARED_B: shared[1]}
    write_tuner(folder, "VERA", parts, options, base_name=base_name, apart=apart)
