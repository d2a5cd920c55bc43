"""Whole tensors in a PEFT file: saved modules, biases, and what they mean for a tied head.

Meaning: peft/utils/other.py (`ModulesToSaveWrapper`) and peft/utils/save_and_load.py of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from exporter.adapters.base import Replacement
from exporter.adapters.names import PeftName
from exporter.adapters.patterns import saves_module
from exporter.adapters.peft_config import PeftConfig
from exporter.adapters.tensors import TensorFile, largest_magnitude
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused

SAVED = "modules_to_save"
EMBEDDING = "saved embedding"  # PEFT's save_embedding_layers
BIAS = "bias"


@dataclass(frozen=True)
class Replaced:
    """All replacements of one adapter; `unties` as in `Adapter`."""

    items: tuple[Replacement, ...]
    unties: bool
    tensors: int  # of the file that were used


def read_replacements(
    names: Iterable[PeftName], config: PeftConfig, spec: ModelSpec, tensors: TensorFile
) -> Replaced:
    """Every tensor of the file that is no factor.

    Raises:
        InputRefused: `adapter-module`, `adapter-shape`, `adapter-option`, `adapter-tensor-unused`,
            `adapter-tensor-missing`, `tie-conflict`, `value-not-finite`, `dtype-unsupported`.
    """
    whole = [n for n in names if n.part in ("weight", "bias")]
    # A tied head counts as a tensor here, since an adapter may give it apart.
    shapes = {**spec.tensors(), spec.head: (spec.vocab, spec.hidden)}
    linears = {li.weight for li in spec.linears()}
    items: dict[str, Replacement] = {}
    for name in whole:
        if f"{name.module}.{name.part}" in linears:
            raise _replaces_linear(name, tensors.label)
        found = _one(name, config, shapes, spec, tensors)
        items[found.tensor] = found
    _saved_are_there(whole, config, tensors.label)
    unties = _settle_tie(items, config, spec, tensors.label) if spec.tied else False
    return Replaced(tuple(items.values()), unties, len(whole))


def _one(
    name: PeftName,
    config: PeftConfig,
    shapes: Mapping[str, tuple[int, ...]],
    spec: ModelSpec,
    tensors: TensorFile,
) -> Replacement:
    target = f"{name.module}.{name.part}"
    want = shapes.get(target)
    if want is None:
        lacks = "no bias here" if name.part == "bias" else "no such tensor"
        raise InputRefused(
            "adapter-module",
            f"the base has {lacks}",
            expected="a tensor of the base",
            file=tensors.label,
            tensor=name.tensor,
        )
    why = _reason(name, config, spec, tensors.label)
    found = tensors.entries[name.tensor].shape
    if found != want:
        raise InputRefused(
            "adapter-shape",
            f"shape {list(found)} for {target}",
            expected=f"{list(want)}, as in the base",
            file=tensors.label,
            tensor=name.tensor,
            hint=_shape_hint(target, spec),
        )
    largest_magnitude(tensors, name.tensor)
    return Replacement(target, want, tensors.rows(name.tensor), "replace", why)


def _reason(name: PeftName, config: PeftConfig, spec: ModelSpec, file: str) -> str:
    if saves_module(config.modules_to_save, name.module):
        return SAVED
    if name.part == "bias" and config.bias != "none":
        return BIAS
    if f"{name.module}.{name.part}" in (spec.embedding, spec.head):
        return EMBEDDING
    raise InputRefused(
        "adapter-tensor-unused",
        "neither modules_to_save nor bias of the config calls for it",
        expected="tensors that the config names",
        file=file,
        tensor=name.tensor,
    )


def _replaces_linear(name: PeftName, file: str) -> InputRefused:
    return InputRefused(
        "adapter-option",
        "modules_to_save replaces a prunable linear as a whole",
        expected="a low-rank delta on linears",
        file=file,
        tensor=name.tensor,
        hint="Put the weight into the base, prune that, and leave it out of the adapter.",
    )


def _shape_hint(target: str, spec: ModelSpec) -> str | None:
    if target not in (spec.embedding, spec.head):
        return None
    return (
        "The vocabulary was resized for training: resize the base's embedding with transformers "
        "and save it, then export that base."
    )


def _saved_are_there(whole: list[PeftName], config: PeftConfig, file: str) -> None:
    for saved in config.modules_to_save:
        if not any(saves_module([saved], n.module) for n in whole):
            raise InputRefused(
                "adapter-tensor-missing",
                f"modules_to_save names {saved!r}, and the file has no tensor of it",
                expected="the saved module's tensors",
                file=file,
            )


def _settle_tie(
    items: dict[str, Replacement], config: PeftConfig, spec: ModelSpec, file: str
) -> bool:
    """Decide what a replaced embedding or head means where the base ties them.

    With `ensure_weight_tying`, and for embeddings saved for a resized vocabulary, PEFT's forward
    uses one tensor for both ends. With plain `modules_to_save` it uses a copy for the saved end
    only: the result is untied, and a merge that ties it again is wrong (peft#2777).
    """
    ends = [items[t] for t in (spec.embedding, spec.head) if t in items]
    if not ends:
        return False
    shared = config.ensure_weight_tying or all(r.why == EMBEDDING for r in ends)
    if len(ends) == 1 and not shared:
        return True
    if len(ends) == 2 and not _equal(ends[0], ends[1]):
        if not shared:
            return True
        raise InputRefused(
            "tie-conflict",
            "the adapter holds an embedding and a head that differ, and says that they are tied",
            expected="equal values",
            file=file,
            tensor=spec.head,
            hint="Save the adapter again from the model that was trained.",
        )
    items.pop(spec.head, None)
    items[spec.embedding] = replace(ends[0], tensor=spec.embedding)
    return False


def _equal(left: Replacement, right: Replacement) -> bool:
    step = max(1, (4 << 20) // max(1, left.shape[-1]))
    return all(
        np.array_equal(left.rows(r0, r1), right.rows(r0, r1))
        for r0 in range(0, left.shape[0], step)
        for r1 in [min(r0 + step, left.shape[0])]
    )
