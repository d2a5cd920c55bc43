"""A PEFT adapter folder: adapter_config.json and adapter_model.safetensors, read strictly.

Format: peft/config.py and peft/utils/save_and_load.py of PEFT 0.21. Nothing is executed: a
pickle (adapter_model.bin) is refused, and class names in `auto_mapping` are not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from exporter.adapters.names import PeftName, parse_names
from exporter.adapters.tensors import TensorFile
from exporter.errors import InputRefused
from exporter.store.jsonio import read_json
from exporter.store.sink import RawWriter
from exporter.store.writer import write_safetensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class PeftFolder:
    """One opened folder: parsed config, tensor file and parsed names."""

    root: Path
    config: Mapping[str, Any]
    tensors: TensorFile
    names: tuple[PeftName, ...]

    @property
    def config_file(self) -> str:
        """The config's name in errors."""
        return label(self.root, CONFIG)


def label(folder: Path, name: str) -> str:
    """How errors name a file of an adapter: the folder's own name and the file's."""
    return f"{folder.name or folder.resolve().name}/{name}"


def peft_type(folder: Path) -> str | None:
    """`peft_type` of the config in upper case; None where there is no config.

    Raises:
        InputRefused: `json-invalid`, `adapter-invalid`.
    """
    if not (folder / CONFIG).is_file():
        return None
    kind = read_config(folder).get("peft_type")
    if not isinstance(kind, str):
        raise InputRefused(
            "adapter-invalid",
            f"peft_type is {kind!r}",
            expected='a name such as "LORA"',
            file=label(folder, CONFIG),
        )
    return kind.upper()


def read_config(folder: Path, name: str = CONFIG) -> Mapping[str, Any]:
    """A JSON object from the folder.

    Raises:
        InputRefused: `input-missing`, `json-invalid`, `adapter-invalid`.
    """
    path = folder / name
    if not path.is_file():
        raise InputRefused("input-missing", "the file is not there", file=label(folder, name))
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputRefused(
            "adapter-invalid", "not a JSON object", expected="an object", file=label(folder, name)
        )
    return cast("dict[str, Any]", value)


def open_peft(
    folder: Path, marks: tuple[str, ...] = ("lora_",), apart: tuple[str, ...] = ()
) -> PeftFolder:
    """Open a folder whose config is there.

    Args:
        folder: of the adapter.
        marks: as in `parse_names`.
        apart: tensors that belong to no module, if they are there; not among `names`.

    Raises:
        InputRefused: `pickle-refused`, `ambiguous-weights`, `input-missing`, header codes,
            and those of `parse_names`.
    """
    config = read_config(folder)
    one_set_of_weights(folder)
    tensors = TensorFile(folder / WEIGHTS, label(folder, WEIGHTS))
    own = (n for n in tensors.entries if n not in apart)
    names = parse_names(own, tensors.label, marks)
    return PeftFolder(folder, config, tensors, tuple(names))


def write_peft(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Write a folder that `open_peft` and the peft library read; equal inputs give equal bytes.

    Args:
        folder: new or empty.
        config: adapter_config.json, with `peft_type`.
        tensors: by their whole names, "base_model.model....".

    Raises:
        InputRefused: `output-failed`, also where one of the files is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    write_safetensors(folder / WEIGHTS, plain, {"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    with RawWriter(folder / CONFIG) as file:
        file.write(text.encode())
        file.close()


def one_set_of_weights(folder: Path) -> None:
    """The folder holds adapter_model.safetensors and no pickle.

    Raises:
        InputRefused: `pickle-refused`, `ambiguous-weights`.
    """
    pickles = [n for n in _PICKLES if (folder / n).exists()]
    if not pickles:
        return
    if (folder / WEIGHTS).exists():
        raise InputRefused(
            "ambiguous-weights",
            f"both {WEIGHTS} and {pickles[0]}",
            expected=f"{WEIGHTS} alone",
            file=label(folder, pickles[0]),
        )
    raise InputRefused(
        "pickle-refused",
        "the adapter's weights are a pickle",
        expected=WEIGHTS,
        file=label(folder, pickles[0]),
        # Not through PEFT: it would drop what it does not know, the columns of SPP for one.
        hint="Where you trust it, convert it with torch.load(path, weights_only=True) and "
        "safetensors.torch.save_file, which keep every tensor.",
    )


def validated(model: type[ModelT], raw: Mapping[str, Any], file: str) -> ModelT:
    """`raw` as `model`; the first fault becomes a typed error.

    Raises:
        InputRefused: `adapter-invalid`.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "the whole"
        raise InputRefused("adapter-invalid", f"{where}: {first['msg']}", file=file) from error
