"""Target `packed`: a packed folder and our own decoder on the CPU kernels."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from backends.packed.engine import fits
from backends.packed.engine.choose import Chooser, Execute
from backends.packed.engine.load import Head, Settings
from backends.packed.kernels.library import library
from backends.packed.kernels.linear import Precision
from backends.vllm.diagnose import sizes
from backends.vllm.lower import label
from backends.vllm.target import PackedTarget
from exporter.contract import Diagnostic, RuntimeStatus, RuntimeWindow, Session, Tolerance
from exporter.errors import EngineUnfit, UsageError
from exporter.model import FusedModel
from exporter.store.dtypes import F32

__all__ = ["PackedCpuTarget"]


@dataclass(frozen=True)
class PackedCpuTarget(PackedTarget):
    """Options of `--target packed`, beside those of the vLLM targets.

    Args:
        head: "int8" to quantise the head as it is loaded, one scale a row; the folder keeps it as
            it is, and so does the embedding, of which a step reads single rows.
        activations: "fp32": float32 activations for float values, 16 bits for int8 and int4 ones;
            "int16": the same, but bfloat16 for bfloat16 values; "int8": 8 bits for integers.
        context: longest sequence, where the model allows so many.
        execute: "sparse" or "dense" for all linears that are stored sparse; "auto": each as it is
            fastest for steps of one row, of a few and of many, measured once a machine.
    """

    head: Head = "stored"
    activations: Precision = "fp32"
    context: int = 8192
    execute: Execute = "auto"

    own_process: ClassVar[bool] = False
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse options that contradict one another.

        Raises:
            UsageError: `target-option`.
        """
        super().__post_init__()
        if not 1 <= self.context <= 1 << 20:
            found = f"{self.name}: context={self.context}"
            raise UsageError("target-option", found, expected="1 to 1048576")

    @property
    def name(self) -> str:
        """The name given to --target."""
        return "packed"

    @property
    def window(self) -> RuntimeWindow:
        """The kernels of this package; the portable ones run anywhere."""
        here = version("sparse-export")
        hardware = "any CPU; written for x86-64 with AVX2 or AVX-512"
        return RuntimeWindow("sparse-export packed", here, ">=3.10,<3.14", hardware)

    @property
    def tolerance(self) -> Tolerance:
        """What rounding activations, and the head, may do to logits.

        Float values with float32 activations leave float32's own rounding: 8e-6 on SmolLM2. Rounded
        to bfloat16 they moved its logits by 0.012, and by 0.1 where pruning without healing had
        left it outliers. The bounds with integers come of small random models only.
        """
        plain = self.values not in ("int8", "int4") and self.head == "stored"
        if plain and self.activations == "fp32":
            return Tolerance(max_rel=1e-4)
        if self.values in ("int8", "int4") and self.activations == "int8":
            return Tolerance(max_rel=1e-1, top1=0.9)
        return Tolerance(max_rel=3e-2, top1=0.97)

    def runtime(self) -> RuntimeStatus:
        """Whether the kernels are built and run here."""
        python = platform.python_version()
        try:
            isa = library().choose()
        except EngineUnfit as error:
            return RuntimeStatus(False, str(error).splitlines()[0], python=python)
        return RuntimeStatus(True, "ready", f"{version('sparse-export')} ({isa.label})", python)

    def inspect(self, model: FusedModel) -> Sequence[Diagnostic]:
        """Every refusal; else how the linears are stored, and what bounds sequences."""
        return list(fits.refusals(model)) or self.notes(model)

    def refusals(self, model: FusedModel) -> Iterator[Diagnostic]:
        """None: any mask can be stored."""
        del model
        return iter(())

    def notes(self, model: FusedModel) -> list[Diagnostic]:
        """What is said of a model that is not refused."""
        chosen = self._choose(model).values()
        kinds = [f"{label(each)} {each.spec.values.value}" for each in chosen]
        found = [sizes(model, self.plan(model), kinds)]
        spec = fits.decoder_of(model.spec)
        if spec.sliding_window is not None:
            text = f"sequences end at {spec.sliding_window}, the model's sliding window"
            found.append(Diagnostic("warning", text))
        if spec.full_context > self.context:
            text = f"sequences end at {self.context} of {spec.full_context} tokens: option context"
            found.append(Diagnostic("note", text))
        return found

    def open(self, folder: Path, *, threads: int | None = None) -> Session:
        """Run the folder in this process.

        Raises:
            EngineUnfit: `engine-missing`, `engine-unfit`, `engine-refused`.
        """
        from backends.packed.engine.session import open_session

        return open_session(folder, self._settings(), Chooser(self.execute), threads)

    def probe(self, folder: Path, tokens: Sequence[int]) -> Mapping[str, F32]:
        """As `Target.probe`."""
        from backends.packed.engine.session import open_session

        session = open_session(folder, self._settings(), Chooser(self.execute))
        try:
            return session.hidden_states(tokens)
        finally:
            session.close()

    def _settings(self) -> Settings:
        return Settings(self.head, self.activations, self.context)
