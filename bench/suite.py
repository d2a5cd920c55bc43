"""A suite file: what a team measures in CI, typed, so that one command runs it.

TOML (https://toml.io/en/v1.0.0); `sparse-bench schema suite` prints the JSON schema, by which
editors complete and check it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from bench.decide.rule import Rule
from bench.pairs import Plan
from bench.parts import Frozen
from bench.prompts import read_prompts
from bench.warmup import Bounds
from bench.workloads import Gate, Measures, Workload, decode, mixed, prefill, standard
from exporter.errors import InputRefused

# tomli is what became the standard library's tomllib in Python 3.11.
_TOML: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

_Count = Annotated[int, Field(ge=1, le=1 << 20)]
_GATES: dict[str, tuple[Measures, Gate]] = {
    "decode": ("generate", "itl"),
    "prefill": ("prefill", "prefill"),
    "mixed": ("generate", "e2e"),
    "both": ("both", "tpot"),
}


class WorkloadEntry(Frozen):
    """One `[[workload]]`."""

    kind: Literal["decode", "prefill", "mixed", "both"]
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,60}$")
    batch: _Count = 1
    prompt_tokens: _Count = 128
    new_tokens: Annotated[int, Field(ge=2)] = 64
    prompts: str | None = Field(default=None, description="file of prompts, beside the suite")
    slo_ttft_ms: Annotated[float, Field(gt=0)] | None = None
    slo_tpot_ms: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> WorkloadEntry:
        if self.kind in ("prefill", "both") and self.batch != 1:
            raise ValueError("a prompt alone is fed at batch 1")
        return self

    def make(self, folder: Path, tokenizer: Path, seed: int) -> Workload:
        """The workload; prompts are tokenised by the artefact's own tokenizer."""
        measures, gate = _GATES[self.kind]
        named = self.name or self._name()
        prompts = read_prompts(folder / self.prompts, tokenizer) if self.prompts else ()
        return Workload(
            prompt_tokens=max(map(len, prompts)) if prompts else self.prompt_tokens,
            new_tokens=0 if measures == "prefill" else self.new_tokens,
            seed=seed,
            name=named,
            batch=self.batch,
            measures=measures,
            gate=gate,
            prompts=prompts,
            slo_ttft_ms=self.slo_ttft_ms,
            slo_tpot_ms=self.slo_tpot_ms,
        )

    def _name(self) -> str:
        shapes = {
            "decode": decode(self.batch).name,
            "prefill": prefill(self.prompt_tokens).name,
            "mixed": mixed(self.prompt_tokens, self.new_tokens).name,
        }
        text = shapes.get(self.kind, self.kind)
        return f"{text}-{Path(self.prompts).stem}" if self.prompts else text


class Suite(Frozen):
    """The whole file."""

    version: Literal[1] = 1
    base: str | None = Field(default=None, description="artefact folder or result file")
    new: str | None = Field(default=None, description="artefact folder or result file")
    title: str = ""
    processes: _Count = 8
    max_processes: _Count = 48
    rounds: _Count = Field(default=2, description="of each process, at least")
    seconds: Annotated[float, Field(ge=0)] = Field(
        default=4.0, description="fewest, of each workload in each process: more rounds if short"
    )
    warmup: Annotated[int, Field(ge=0)] = 2
    warmup_seconds: Annotated[float, Field(gt=0)] = 30.0
    threads: _Count | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    min_effect: Annotated[float, Field(gt=0, lt=1)] = Rule.min_effect
    precision: Annotated[float, Field(gt=0, lt=1)] = Rule.precision
    alpha: Annotated[float, Field(gt=0, lt=1)] = Rule.alpha
    workload: list[WorkloadEntry] = []

    @model_validator(mode="after")
    def _names(self) -> Suite:
        names = [w.name or w._name() for w in self.workload]  # pyright: ignore[reportPrivateUsage]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two workloads are called {sorted(twice)[0]}")
        return self

    def plan(self, folder: Path, tokenizer: Path) -> Plan:
        """What is measured: the standard set where the file names none.

        Args:
            folder: of the suite file, where its prompts lie.
            tokenizer: artefact folder.
        """
        made = [entry.make(folder, tokenizer, self.seed) for entry in self.workload]
        return Plan(
            workloads=tuple(made) or standard(),
            processes=self.processes,
            most=max(self.processes, self.max_processes) if self.processes > 1 else 1,
            rounds=(self.rounds,),
            seconds=self.seconds,
            warmup=Bounds(least=self.warmup, seconds=self.warmup_seconds),
            threads=self.threads,
            seed=self.seed,
        )

    def rule(self) -> Rule:
        """What counts as a change."""
        return Rule(min_effect=self.min_effect, alpha=self.alpha, precision=self.precision)


def read_suite(path: Path) -> Suite:
    """Read strictly.

    Raises:
        InputRefused: `input-unreadable`, `suite-invalid`.
    """
    try:
        raw: dict[str, Any] = _TOML.loads(path.read_text(encoding="utf-8"))
        return Suite.model_validate(raw)
    except OSError as error:
        raise InputRefused("input-unreadable", f"{error.strerror}", file=str(path)) from None
    except ValidationError as error:
        raise InputRefused("suite-invalid", _first(error), file=str(path)) from None
    except ValueError as error:  # TOML's own, or not UTF-8
        raise InputRefused("suite-invalid", str(error), file=str(path)) from None


def suite_schema() -> dict[str, Any]:
    """JSON schema of the file."""
    return Suite.model_json_schema()


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    parts: Sequence[int | str] = first["loc"]
    return f"{'.'.join(str(p) for p in parts)}: {first['msg']}"
