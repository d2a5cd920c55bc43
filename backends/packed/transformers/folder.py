"""The tensors of a packed checkpoint by their headers, against config.json and the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.packed.spec import PackedLinear, PackedModel
from exporter.errors import InputRefused
from exporter.store.header import read_header

PARTS = ("mask", "values", "offsets", "starts", "scales")


@dataclass(frozen=True)
class PackedFolder:
    """Specs by module, and the file that holds each tensor. Copies of it are itself.

    transformers copies the conversion of a parameter for each parameter.
    """

    layers: Mapping[str, PackedLinear]
    files: Mapping[str, str]

    def __deepcopy__(self, memo: Any) -> PackedFolder:
        """Itself: it never changes."""
        return self


def read_folder(packed: PackedModel, files: Iterable[str | Path]) -> PackedFolder:
    """Names of all tensors; each packed linear has its parts, no more and no fewer.

    Raises:
        InputRefused: `tensor-duplicate`, `tensor-missing`, `tensor-unexpected`, and every fault of
            a header.
    """
    held: dict[str, str] = {}
    for file in map(Path, files):
        for name in read_header(file).entries:
            if name in held:
                raise InputRefused(
                    "tensor-duplicate", f"in {held[name]} too", file=file.name, tensor=name
                )
            held[name] = file.name
    wanted = {
        f"{module}.{part}": module
        for module, spec in packed.layers.items()
        for part in spec.tensors(slots=0)
    }
    for name, module in wanted.items():
        if name not in held:
            raise _missing(name, f"a part of the packed linear {module}")
    for name, file in held.items():
        module, _, part = name.rpartition(".")
        stray = part in PARTS and name not in wanted
        if stray or (part == "weight" and module in packed.layers):
            raise InputRefused(
                "tensor-unexpected",
                "config.json does not tell of it",
                expected="parts of the linears in quantization_config.layers",
                file=file,
                tensor=name,
            )
    return PackedFolder(packed.layers, held)


def check_names(folder: PackedFolder, model: Any, rename: Callable[[str], str]) -> None:
    """Every parameter of the model is in the folder, and every tensor of the folder is of it.

    transformers fills what is missing with random values, and goes on.

    Args:
        folder: as `read_folder` gives it.
        model: of transformers, not yet loaded.
        rename: the parameter of the model that a stored tensor goes into.

    Raises:
        InputRefused: `tensor-missing`, `tensor-unexpected`.
    """
    parameters = set(model.state_dict())
    reached = {rename(name): name for name in folder.files}
    for target, name in reached.items():
        if target not in parameters and not _ignored(
            name, model._keys_to_ignore_on_load_unexpected
        ):
            raise InputRefused(
                "tensor-unexpected",
                f"{type(model).__name__} has no {target}",
                file=folder.files[name],
                tensor=name,
            )
    tied = set(model.all_tied_weights_keys)
    for target in sorted(parameters - reached.keys() - tied):
        if not _ignored(target, model._keys_to_ignore_on_load_missing):
            raise _missing(target, f"a parameter of {type(model).__name__}")


def _ignored(name: str, patterns: Collection[str] | None) -> bool:
    return any(re.search(pattern, name) for pattern in patterns or ())


def _missing(name: str, what: str) -> InputRefused:
    return InputRefused("tensor-missing", f"it is not stored: {what}", tensor=name)
