"""What the headers of a packed folder must hold, before vLLM loads anything.

vLLM leaves out its own check that every weight was loaded when a checkpoint is quantised
(vllm/model_executor/model_loader/default_loader.py). The linear method checks the tensors it
gets; this checks all the others too: embedding, norms, biases, head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backends.packed.spec import PackedLinear
from backends.packed.values import ValueType
from exporter.arch.model_spec import ModelSpec
from exporter.arch.spec import artefact_spec
from exporter.check.names import leftover
from exporter.errors import InputRefused
from exporter.store.checkpoint import Checkpoint
from exporter.store.header import TensorEntry

_WEIGHT = ".weight"


def check_folder(folder: Path, layers: Mapping[str, PackedLinear]) -> None:
    """Every tensor of the architecture must be there, plain or packed, and no other.

    Args:
        folder: the model's; only headers and config.json are read.
        layers: packed linears by module, from config.json.

    Raises:
        InputRefused: `tensor-missing`, `tensor-unexpected`, `tensor-shape`, `packed-invalid`, and
            what `Checkpoint.open` raises (a missing shard, a file cut short, ...).
    """
    checkpoint = Checkpoint.open(folder)
    try:
        for module, linear in layers.items():
            _check_parts(checkpoint.entries, module, linear)
        spec = _spec(checkpoint)
        if spec is not None:
            _check_rest(checkpoint, spec, layers)
    finally:
        checkpoint.close()


def _spec(checkpoint: Checkpoint) -> ModelSpec | None:
    try:
        return artefact_spec(checkpoint.config)
    except InputRefused as error:
        if error.code == "arch-unsupported":
            return None  # vLLM knows families that the exporter does not
        raise


def _check_parts(entries: Mapping[str, TensorEntry], module: str, linear: PackedLinear) -> None:
    free = linear.kind == "ragged" and linear.values is ValueType.INT4
    for part, (dtype, shape) in linear.tensors(0 if free else None).items():
        name = f"{module}.{part}"
        entry = entries.get(name)
        if entry is None:
            raise InputRefused("tensor-missing", "missing", tensor=name)
        if entry.dtype is not dtype or not (
            entry.shape == shape or (free and part == "values" and len(entry.shape) == 1)
        ):
            raise InputRefused(
                "packed-invalid",
                f"{entry.dtype.value} {list(entry.shape)}",
                expected=f"{dtype.value} {list(shape)}",
                file=entry.file,
                tensor=name,
            )


def _check_rest(
    checkpoint: Checkpoint, spec: ModelSpec, layers: Mapping[str, PackedLinear]
) -> None:
    left = dict(checkpoint.entries)
    for name, shape in spec.tensors().items():
        module = name.removesuffix(_WEIGHT)
        if name.endswith(_WEIGHT) and module in layers:
            _same_shape(name, layers[module].shape, shape)
            for part in layers[module].tensors(0):
                del left[f"{module}.{part}"]
            continue
        entry = left.pop(name, None)
        if entry is None:
            raise InputRefused("tensor-missing", "missing", tensor=name)
        _same_shape(name, entry.shape, shape)
    for name, entry in left.items():
        if leftover(name) or (spec.tied and name == spec.head):
            continue
        found = f"not part of a {spec.family} model of {spec.layers} layers"
        raise InputRefused("tensor-unexpected", found, file=entry.file, tensor=name)


def _same_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise InputRefused(
            "tensor-shape", str(list(found)), expected=str(list(wanted)), tensor=name
        )
