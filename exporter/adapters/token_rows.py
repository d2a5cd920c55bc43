"""Trainable tokens: single rows of the embedding or the head, replaced.

Meaning: peft/tuners/trainable_tokens/layer.py (`get_merged_weights`: the rows replace the base's,
nothing is added) and peft/utils/other.py (`set_additional_trainable_modules`) of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from exporter.adapters.base import Replacement
from exporter.adapters.factors import embedding_module, head_module
from exporter.adapters.lora_config import LoraConfig
from exporter.adapters.names import PeftName
from exporter.adapters.tensors import TensorFile, largest_magnitude
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused

MARK = "token_adapter."
DELTA = "token_adapter.trainable_tokens_delta"
TOKENS = "trainable tokens"


@dataclass(frozen=True)
class TokenRows:
    """All replaced rows of one adapter; `unties` as in `Adapter`."""

    items: tuple[Replacement, ...] = ()
    unties: bool = False


def read_token_rows(
    names: Iterable[PeftName], config: LoraConfig, spec: ModelSpec, tensors: TensorFile, file: str
) -> TokenRows:
    """The rows that `trainable_token_indices` names. `file` is the config's name in errors.

    Raises:
        InputRefused: `adapter-option`, `adapter-invalid`, `adapter-tensor-missing`,
            `adapter-tensor-unused`, `adapter-shape`, `value-not-finite`, `dtype-unsupported`.
    """
    own = [n for n in names if n.part.startswith(MARK)]
    wanted = _wanted(config, spec, file)
    for name in own:
        if name.module not in wanted or name.part != DELTA:
            raise InputRefused(
                "adapter-tensor-unused",
                "trainable_token_indices does not call for it",
                expected=f"{DELTA} of {', '.join(wanted) or 'no module'}",
                file=tensors.label,
                tensor=name.tensor,
                hint="Save the adapter with save_embedding_layers=False.",
            )
    found = {n.module: n for n in own}
    items = [_rows(m, i, found.get(m), spec, tensors) for m, i in wanted.items()]
    # The tied head follows the embedding's rows (PEFT ties the two token adapters). Rows of the
    # head alone, or other rows than the embedding's, are the head's own.
    return TokenRows(tuple(items), unties=spec.tied and head_module(spec) in wanted)


def _wanted(config: LoraConfig, spec: ModelSpec, file: str) -> Mapping[str, tuple[int, ...]]:
    """Module -> rows, a tied head left out where it has the embedding's rows."""
    asked = config.trainable_token_indices
    embedding, head = embedding_module(spec), head_module(spec)
    if not asked:
        return {}
    if isinstance(asked, list):
        return {embedding: _indices(asked, spec, file)}
    wanted: dict[str, tuple[int, ...]] = {}
    for name, indices in asked.items():
        modules = [m for m in (embedding, head) if m.endswith(name)]
        if len(modules) != 1 or modules[0] in wanted:
            raise InputRefused(
                "adapter-option",
                f"trainable_token_indices names the layer {name!r:.60}",
                expected=f"{embedding} or {head}, each once",
                file=file,
            )
        wanted[modules[0]] = _indices(indices, spec, file)
    if spec.tied and len(wanted) == 2:
        if wanted[embedding] == wanted[head]:
            return {embedding: wanted[embedding]}
        if config.ensure_weight_tying:
            raise InputRefused(
                "tie-conflict",
                "ensure_weight_tying, and other trainable tokens for the head than for the "
                "embedding",
                expected="the same tokens",
                file=file,
            )
    return dict(sorted(wanted.items()))


def _indices(given: list[int], spec: ModelSpec, file: str) -> tuple[int, ...]:
    strange = [i for i in given if not 0 <= i < spec.vocab]
    if strange or len(set(given)) != len(given) or not given:
        what = f"token {strange[0]}" if strange else "a token twice" if given else "no token"
        raise InputRefused(
            "adapter-invalid",
            f"trainable_token_indices has {what}",
            expected=f"distinct tokens from 0 to {spec.vocab - 1}",
            file=file,
            hint="Was the vocabulary resized for training? Resize the base as well.",
        )
    return tuple(given)


def _rows(
    module: str,
    indices: tuple[int, ...],
    name: PeftName | None,
    spec: ModelSpec,
    tensors: TensorFile,
) -> Replacement:
    if name is None:
        raise InputRefused(
            "adapter-tensor-missing",
            f"trainable_token_indices names {len(indices)} tokens of {module}",
            expected=DELTA,
            file=tensors.label,
            tensor=module,
        )
    want = (len(indices), spec.hidden)
    if tensors.entries[name.tensor].shape != want:
        raise InputRefused(
            "adapter-shape",
            f"shape {list(tensors.entries[name.tensor].shape)}",
            expected=f"{list(want)}, one row for each trainable token",
            file=tensors.label,
            tensor=name.tensor,
        )
    largest_magnitude(tensors, name.tensor)
    rows = tensors.rows(name.tensor)
    return Replacement(f"{module}.weight", want, rows, "rows", TOKENS, indices)
