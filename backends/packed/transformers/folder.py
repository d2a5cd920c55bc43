"""The tensors of a checkpoint by their headers: parts of linears, against config and model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from exporter.errors import InputRefused
from exporter.store.header import read_header

# Module, its parts (CPU tensors, by name), the file that the message names, the type asked for.
Decode = Callable[[str, Mapping[str, torch.Tensor], str, torch.dtype], torch.Tensor]


@dataclass(frozen=True)
class Packing:
    """How the linears of a folder are stored."""

    parts: tuple[str, ...]  # every name that a part may have: "mask", "values", ...
    linears: Mapping[str, Collection[str]]  # module -> its parts
    decode: Decode  # checks the parts, and gives `[out, in]` in the type asked for


@dataclass(frozen=True)
class Folder:
    """How linears are stored, and the file that holds each tensor. Copies of it are itself.

    transformers copies the conversion of a parameter for each parameter.
    """

    packing: Packing
    files: Mapping[str, str]

    def __deepcopy__(self, memo: Any) -> Folder:
        """Itself: it never changes."""
        return self

    def dense(
        self, module: str, parts: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> torch.Tensor:
        """The weight `[out, in]` of `module`, which may be plain: then its part is `weight`."""
        if module not in self.packing.linears:
            (plain,) = parts.values()
            return plain.to(dtype)
        file = self.files[f"{module}.{next(iter(parts))}"]
        return self.packing.decode(module, parts, file, dtype)


def read_names(files: Iterable[str | Path]) -> dict[str, str]:
    """The file of each tensor.

    Raises:
        InputRefused: `tensor-duplicate`, and every fault of a header.
    """
    held: dict[str, str] = {}
    for file in map(Path, files):
        for name in read_header(file).entries:
            if name in held:
                raise InputRefused(
                    "tensor-duplicate", f"in {held[name]} too", file=file.name, tensor=name
                )
            held[name] = file.name
    return held


def check_parts(folder: Folder) -> None:
    """Each packed linear has its parts, no more and no fewer.

    Raises:
        InputRefused: `tensor-missing`, `tensor-unexpected`.
    """
    linears = folder.packing.linears
    wanted = {f"{module}.{part}": module for module, parts in linears.items() for part in parts}
    for name, module in wanted.items():
        if name not in folder.files:
            raise _missing(name, f"a part of the packed linear {module}")
    for name, file in folder.files.items():
        module, _, part = name.rpartition(".")
        stray = part in folder.packing.parts and name not in wanted
        if stray or (part == "weight" and module in linears):
            raise InputRefused(
                "tensor-unexpected",
                "config.json does not tell of it",
                expected="the parts of packed linears, and plain tensors of others",
                file=file,
                tensor=name,
            )


def check_names(folder: Folder, model: Any, rename: Callable[[str], str]) -> None:
    """Every parameter of the model is in the folder, and every tensor of the folder is of it.

    transformers fills what is missing with random values, and goes on.

    Args:
        folder: one that `check_parts` takes.
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
