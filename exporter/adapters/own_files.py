"""Folders of families that PEFT does not know: one JSON config and one safetensors file.

Tensors are named `<module>.<part>`, with the module names of the base and no prefix.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.adapters.peft_files import WEIGHTS, label, one_set_of_weights, read_config
from exporter.adapters.tensors import TensorFile
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused, UsageError
from exporter.store.jsonio import write_json
from exporter.store.writer import write_safetensors

Parts = Mapping[str, Mapping[str, str]]  # module -> part -> tensor


@dataclass(frozen=True)
class OwnFolder:
    """One opened folder: raw config, tensor file, and tensors by module and part."""

    root: Path
    config: Mapping[str, Any]
    config_file: str  # how errors name it
    tensors: TensorFile
    parts: Parts

    @property
    def file(self) -> str:
        """How errors name the tensor file."""
        return self.tensors.label


def open_own(folder: Path, config: str, parts: Collection[str]) -> OwnFolder:
    """Open a folder of a family whose tensors end in one of `parts`.

    Raises:
        InputRefused: `input-missing`, `pickle-refused`, `ambiguous-weights`,
            `adapter-tensor-unused`, and those of JSON and header.
    """
    raw = read_config(folder, config)
    one_set_of_weights(folder)
    tensors = TensorFile(folder / WEIGHTS, label(folder, WEIGHTS))
    found = _group(tensors.entries, parts, tensors.label)
    return OwnFolder(folder, raw, label(folder, config), tensors, found)


def _group(names: Iterable[str], parts: Collection[str], file: str) -> Parts:
    grouped: dict[str, dict[str, str]] = {}
    for name in sorted(names):
        module, _, part = name.rpartition(".")
        if part not in parts or not module:
            raise InputRefused(
                "adapter-tensor-unused",
                "nothing in the format has such a name",
                expected=f"<module>.{' or '.join(sorted(parts))}",
                file=file,
                tensor=name,
            )
        grouped.setdefault(module, {})[part] = name
    return grouped


def linear_shapes(opened: OwnFolder, spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """`[out, in]` of every linear of the base, once all modules of the file are known there.

    Raises:
        InputRefused: `adapter-module`, `adapter-empty` for a file without tensors.
    """
    shapes = {li.module: (li.out_features, li.in_features) for li in spec.linears()}
    if not opened.parts:
        raise InputRefused("adapter-empty", "the file holds no tensor", file=opened.file)
    strange = [m for m in opened.parts if m not in shapes]
    if strange:
        raise InputRefused(
            "adapter-module",
            f"the {spec.family} base of {spec.layers} layers has no linear of this name "
            f"({len(strange)} of {len(opened.parts)} modules)",
            expected="modules of the base, without a prefix",
            file=opened.file,
            tensor=strange[0],
        )
    return shapes


def require_parts(opened: OwnFolder, module: str, wanted: Collection[str]) -> None:
    """A module has all of `wanted`.

    Raises:
        InputRefused: `adapter-tensor-missing`.
    """
    for part in wanted:
        if part not in opened.parts[module]:
            raise InputRefused(
                "adapter-tensor-missing",
                f"{', '.join(sorted(opened.parts[module]))} without {part}",
                expected=" and ".join(wanted),
                file=opened.file,
                tensor=module,
            )


def require_same_modules(table: Collection[str], opened: OwnFolder, key: str) -> None:
    """The modules that the config's `key` names are those of the file.

    Raises:
        InputRefused: `adapter-tensor-missing`, `adapter-invalid`.
    """
    named, held = set(table), opened.parts.keys()
    if named - held:
        raise InputRefused(
            "adapter-tensor-missing",
            f"{key} names {len(named - held)} modules without tensors",
            file=opened.file,
            tensor=min(named - held),
        )
    if held - named:
        raise InputRefused(
            "adapter-invalid",
            f"{len(held - named)} modules have tensors and are not in {key}",
            expected="each module of the file",
            file=opened.config_file,
            tensor=min(held - named),
        )


def require_shape(tensors: TensorFile, name: str, want: tuple[int, ...], axes: str) -> None:
    """A tensor has this shape; `axes` says what its axes are.

    Raises:
        InputRefused: `adapter-shape`.
    """
    found = tensors.entries[name].shape
    if found != want:
        raise InputRefused(
            "adapter-shape",
            f"shape {list(found)}",
            expected=f"{list(want)} {axes}",
            file=tensors.label,
            tensor=name,
        )


def write_own(
    folder: Path, config_name: str, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Write a folder that `open_own` reads; equal inputs give equal bytes.

    Raises:
        UsageError: `output-exists` where the folder is not empty.
        InputRefused: `output-failed`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("output-exists", "the adapter's folder is not empty", file=folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    ordered = {n: np.ascontiguousarray(tensors[n]) for n in sorted(tensors)}
    write_json(folder / config_name, config)
    write_safetensors(folder / WEIGHTS, ordered, {"format": "pt"})
