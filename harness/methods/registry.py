"""The training methods by name. No torch here: a module is imported when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import Any, Literal


class TrainMethod(str, Enum):
    """What `train` makes."""

    losa = "losa"
    swgi = "swgi"
    s2ft = "s2ft"
    sparse_lora = "sparse-lora"
    lors = "lors"
    spp = "spp"
    lora = "lora"
    dora = "dora"
    adalora = "adalora"
    sora = "sora"
    oracle = "oracle"
    lisa = "lisa"
    full = "full"


@dataclass(frozen=True)
class Entry:
    """Where a method lives under `harness.methods`, and how it is run.

    `once`: `attach(base, settings)` on one mask. `data`: the same with the training windows
    (selection by data). `rounds`: `attach(settings, sparsity_given)`, prune and train in turn.
    """

    module: str
    settings: str
    attach: str
    kind: Literal["once", "data", "rounds"] = "once"
    whole: bool = False  # writes a whole model, not an adapter
    exact: bool = True  # merges exactly into a sparse base
    shards: bool = False  # trains beside a frozen base, which FSDP may cut

    def load(self) -> tuple[type[Any], Any]:
        """The settings' class and the callable; imports torch."""
        module = import_module(f"harness.methods.{self.module}")
        return getattr(module, self.settings), getattr(module, self.attach)


METHODS: dict[TrainMethod, Entry] = {
    TrainMethod.losa: Entry("losa", "LosaSettings", "LosaRounds", "rounds", shards=True),
    TrainMethod.swgi: Entry("pool_rounds", "PoolSettings", "PoolRounds", "rounds"),
    TrainMethod.s2ft: Entry("s2ft", "S2ftSettings", "S2ft", "data"),
    TrainMethod.sparse_lora: Entry("sparse_lora", "LowRankSettings", "sparse_lora", shards=True),
    TrainMethod.lors: Entry("sparse_lora", "LowRankSettings", "lors", shards=True),
    TrainMethod.spp: Entry("spp", "SppSettings", "Spp"),
    TrainMethod.lora: Entry("peft_lora", "LowRankSettings", "lora", exact=False, shards=True),
    TrainMethod.dora: Entry("peft_lora", "LowRankSettings", "dora", exact=False),
    TrainMethod.adalora: Entry("adalora", "AdaloraSettings", "Adalora", exact=False),
    TrainMethod.sora: Entry("sora", "SoraSettings", "Sora", exact=False),
    TrainMethod.oracle: Entry("support", "OracleSettings", "Oracle"),
    TrainMethod.lisa: Entry("full", "LisaSettings", "lisa", whole=True),
    TrainMethod.full: Entry("full", "FullSettings", "full", whole=True),
}
