"""The common course of reading a PEFT folder whose tensors are parts of modules.

Every family that is no LoRA goes this way: open, account for the options, group the tensors by
module, compare modules and targets, build a delta for each, take whole tensors and biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from exporter.adapters.base import Adapter, BaseBound, BaseIdentity, Delta, Replacement
from exporter.adapters.biases import check_biases
from exporter.adapters.factors import Shapes, adaptable, head_module
from exporter.adapters.identity import base_facts
from exporter.adapters.options import OptionTable, check_options
from exporter.adapters.peft_config import Files, PeftConfig, check_targets
from exporter.adapters.peft_files import PeftFolder, open_peft, validated
from exporter.adapters.replacements import read_replacements
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused

ConfigT = TypeVar("ConfigT", bound=PeftConfig)


@dataclass(frozen=True)
class Tuner(Generic[ConfigT]):
    """What sets one method's folders apart."""

    family: str  # as the report names it
    mark: str  # beginning of its parts' names, "hada_"
    config: type[ConfigT]
    options: OptionTable
    apart: tuple[str, ...] = ()  # tensors that belong to no module


@dataclass(frozen=True)
class Opened(Generic[ConfigT]):
    """A folder whose options and modules are accounted for, its tensors not yet."""

    tuner: Tuner[ConfigT]
    folder: PeftFolder
    config: ConfigT
    parts: Mapping[str, Mapping[str, str]]  # module -> part -> tensor of the file
    shapes: Shapes  # [out, in] of every module that could be adapted
    spec: ModelSpec

    @property
    def file(self) -> str:
        """The tensor file's name in errors."""
        return self.folder.tensors.label

    def shape_of(self, module: str, part: str) -> tuple[int, ...]:
        """Shape of one part as stored."""
        return self.folder.tensors.entries[self.parts[module][part]].shape


@dataclass(frozen=True)
class Built:
    """What one module's tensors amount to. `moves` tells whether it changes anything."""

    delta: Delta | BaseBound | None  # None where there is nothing to add: a rank of 0
    moves: bool
    added: tuple[Replacement, ...] = field(default=())


def open_tuner(
    tuner: Tuner[ConfigT], folder: Path, spec: ModelSpec, modules: Shapes | None = None
) -> Opened[ConfigT]:
    """Open `folder` up to the point where the family's own tensors are looked at.

    Args:
        tuner: the method.
        folder: of the adapter.
        spec: the base.
        modules: what can be adapted; None for all linears and the head.

    Raises:
        InputRefused: the codes of `open_peft`, `check_options`, `validated` and `check_targets`;
            `adapter-module`, and `adapter-option` for an adapter on a tied head.
    """
    opened = open_peft(folder, (tuner.mark,), tuner.apart)
    check_options(opened.config, tuner.options, opened.config_file)
    config = validated(tuner.config, opened.config, opened.config_file)
    parts: dict[str, dict[str, str]] = {}
    for name in opened.names:
        if name.part.startswith(tuner.mark):
            parts.setdefault(name.module, {})[name.part] = name.tensor
    shapes = adaptable(spec) if modules is None else modules
    found = {module: next(iter(own.values())) for module, own in parts.items()}
    _check_modules(found, shapes, spec, opened.tensors.label)
    files = Files(opened.config_file, opened.tensors.label)
    check_targets(found, config, shapes, spec, files)
    return Opened(tuner, opened, config, parts, shapes, spec)


def _check_modules(found: Mapping[str, str], shapes: Shapes, spec: ModelSpec, file: str) -> None:
    strange = [m for m in found if m not in shapes]
    if strange:
        raise InputRefused(
            "adapter-module",
            f"the {spec.family} base of {spec.layers} layers has no such module to adapt "
            f"({len(strange)} of {len(found)} modules)",
            expected="modules of the base",
            file=file,
            tensor=strange[0],
        )
    head = head_module(spec)
    if spec.tied and head in found:
        raise InputRefused(
            "adapter-option",
            "an adapter on a head that is the embedding: the base ties them, the result would not",
            expected="an adapter on the linears of the layers, or an untied base",
            file=file,
            tensor=head,
            hint="Untie the base (store its head apart, tie_word_embeddings false) and try again.",
        )


def finish(
    opened: Opened[ConfigT],
    built: Mapping[str, Built],
    base: BaseIdentity,
    *,
    masked: bool = False,
    shared: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> Adapter:
    """The adapter, with whole tensors and biases of the file.

    Args:
        opened: by `open_tuner`.
        built: by module, in the order of the report.
        base: who the base is.
        masked: as in `Adapter`.
        shared: tensors of the file used by all modules.
        facts: of the family, for the report; "warnings" are shown.

    Raises:
        InputRefused: the codes of `read_replacements` and `check_biases`; `adapter-empty`,
            `adapter-base`.
    """
    folder, config = opened.folder, opened.config
    replaced = read_replacements(folder.names, config, opened.spec, folder.tensors)
    check_biases(replaced.items, opened.parts, config, opened.spec, opened.file)
    if not replaced.items and not any(b.moves for b in built.values()):
        what = f"the delta of all {len(built)} modules is zero" if built else "there is no tensor"
        raise InputRefused("adapter-empty", what, expected="a trained adapter", file=opened.file)
    added = [a for b in built.values() for a in b.added]
    parts = sum(len(own) for own in opened.parts.values())
    return Adapter(
        family=opened.tuner.family,
        name=folder.root.name or folder.root.resolve().name,
        deltas={m: b.delta for m, b in built.items() if b.delta is not None},
        replacements=(*replaced.items, *added),
        masked=masked,
        unties=replaced.unties,
        tensors_used=replaced.tensors + parts + shared,
        facts={**_facts(opened, built, base), **(facts or {})},
    )


def _facts(
    opened: Opened[ConfigT], built: Mapping[str, Built], base: BaseIdentity
) -> dict[str, Any]:
    config = opened.config
    named, digest = config.base_model_name_or_path, config.base_sha256
    return {
        **base_facts(named, digest, base, opened.folder.config_file),
        "zero_deltas": sum(not b.moves for b in built.values()),
        "modules_to_save": sorted(config.modules_to_save),
        "bias": config.bias,
        "warnings": [],
    }
