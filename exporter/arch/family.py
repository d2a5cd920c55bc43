"""The data files of the decoder families: names, biases, norms and defaults, never code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict

from exporter.arch.fields import FILE
from exporter.errors import InputRefused


class BiasRule(BaseModel):
    """Whether a group of linears has a bias: always, never, or by this flag of the config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    qkv: bool | str
    o: bool | str
    mlp: bool | str


class ExpertRule(BaseModel):
    """Experts in place of the MLP; templates have "{i}" for the layer and "{e}" for the expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: str  # key of the config
    linears: Mapping[str, str]  # "gate", "up", "down"
    router: str
    memory: str  # module of transformers that has router ("gate") and "experts"


class Family(BaseModel):
    """One file of `exporter/arch/data`.

    `window` says when the config's sliding_window counts: "never"; "always" (Mistral); "flag"
    (Qwen: with use_sliding_window, on the layers that layer_types or max_window_layers name).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str  # model_type of the config
    architecture: str
    source: str  # where the facts come from
    embedding: str
    final_norm: str
    head: str
    names: Mapping[str, str]
    bias: BiasRule
    qk_norm: bool
    window: str
    defaults: Mapping[str, str | bool | int | float | None]
    experts: ExpertRule | None = None  # such a family has no graph


@cache
def families() -> Mapping[str, Family]:
    """Every family by its model_type."""
    found: dict[str, Family] = {}
    for file in sorted(resources.files("exporter.arch.data").iterdir(), key=str):
        if file.name.endswith(".json"):
            family = Family.model_validate(json.loads(file.read_text(encoding="utf-8")))
            found[family.family] = family
    return found


def find_family(model_type: object, architectures: object) -> Family:
    """The family of a config's `model_type`.

    Raises:
        InputRefused: `arch-unsupported` for another model type, or another head on the same
            body (LlamaForSequenceClassification).
    """
    known = families()
    family = known.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise InputRefused(
            "arch-unsupported",
            f"model_type is {model_type!r:.80}",
            expected=f"one of {', '.join(known)}, gpt2",
            file=FILE,
        )
    check_architecture(architectures, family.architecture)
    return family


def check_architecture(found: object, expected: str) -> None:
    """A config's `architectures` is the model with its language head, or left out.

    Raises:
        InputRefused: `arch-unsupported`.
    """
    if found is not None and found != [expected]:
        raise InputRefused(
            "arch-unsupported",
            f"architectures is {found!r:.80}",
            expected=f"[{expected!r}]",
            file=FILE,
        )
