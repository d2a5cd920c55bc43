"""What a verification found, as it stands in report.json. No time, no host, no path.

Schema version 1; fields are only ever added. Figures of rounding error keep three significant
digits: more would say nothing and would differ between equal machines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from exporter.errors import VerificationFailed

SCHEMA = 1
Phase = Literal["prefill", "decode", "free run"]


def round_figure(value: float) -> float:
    """`value` to three significant digits; NaN and infinities as they are."""
    return float(f"{value:.3g}")


def _json_figure(value: float) -> float | str:
    return round_figure(value) if math.isfinite(value) else repr(value)


# JSON has no NaN and no infinity, so a report says "nan" or "inf" in their place.
Figure = Annotated[float, PlainSerializer(_json_figure, when_used="json")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NearTie(_Frozen):
    """A place where the engine's best token is another, and the reference itself is undecided."""

    prompt: int
    position: int  # in the whole sequence: the logits after this many tokens, less one
    phase: Phase
    reference: int  # token id
    engine: int
    gap: Figure  # between the two tokens' logits in the reference
    allowed: Figure  # twice the allowed absolute error there


class Magnified(_Frozen):
    """A position beyond the tolerance where the model itself magnifies float32's rounding."""

    prompt: int
    position: int
    phase: Phase
    error: Figure  # max|engine - reference| / max|reference|
    spread: Figure  # of the reference, when its roundings are disturbed
    allowed: Figure


class PhaseNumbers(_Frozen):
    """Errors over all positions of one phase, engine against reference, teacher-forced."""

    positions: int
    max_abs: Figure  # of a logit
    max_rel: Figure  # max over positions of max|engine - reference| / max|reference|
    kl_max: Figure  # KL(reference || engine) in nats, over positions
    kl_mean: Figure
    top1: Figure  # share of positions with the same best token
    top1_near_ties: int  # positions counted apart: see `NearTie`


class PromptResult(_Frozen):
    """The free greedy run after one prompt."""

    tokens: int  # of the prompt
    new_tokens: int
    compared: int  # up to the first near tie, else all
    equal: int  # of the compared


class NumbersResult(_Frozen):
    """Everything that running the engine showed."""

    truth: Literal["live reference", "stored self-test"]
    engine: str
    version: str
    threads: int
    ops_share: float | None
    allowed_rel: float
    prefill: PhaseNumbers
    decode: PhaseNumbers
    prompts: tuple[PromptResult, ...]
    near_ties: tuple[NearTie, ...] = ()
    magnified: tuple[Magnified, ...] = ()
    failures: tuple[str, ...] = ()
    # How each kind of linear runs on this machine: for people, in no report, which has no host.
    choices: dict[str, str] = Field(default_factory=dict, exclude=True)
    # Prompts of the positions that only their spread can excuse; empty where that cannot be.
    doubtful: tuple[int, ...] = Field(default=(), exclude=True)


class PackedResult(_Frozen):
    """Weights that are stored packed, by their bytes in the files."""

    linears: int
    nbytes: int  # values, masks, offsets, scales
    dense_nbytes: int  # of the same weights as plain arrays of the type the model came in
    ratio: Figure  # nbytes / dense_nbytes
    kinds: Mapping[str, int]  # "ragged, bf16" -> linears


class StructureResult(_Frozen):
    """Everything that re-reading the bytes showed."""

    tensors: int
    compared_values: int  # bit for bit with the fused model; 0 where the source is not at hand
    linears: int  # whose zeros were compared with their mask
    zeros: int  # outside the masks, all exactly +0.0
    kept_zeros: int  # zero by value though kept by the mask
    zero_values: int  # equal to zero over all linears, whether they have a mask or not
    # Largest abs(stored - fused) in units in the last place of the stored type; 0 for float32.
    rounding_ulp: Figure = 0.0
    tensor_bytes: int
    file_bytes: int  # of the files that hold the tensors
    ratio: Figure  # file_bytes / tensor_bytes
    files: tuple[str, ...]
    packed: PackedResult | None = None
    failures: tuple[str, ...] = ()


class LayerError(_Frozen):
    """Distance of one hidden state from the reference's."""

    layer: str  # "embedding", "layer.0", ..., "norm", "head"
    max_abs: Figure
    max_rel: Figure


class BisectResult(_Frozen):
    """Where the engine leaves the reference first."""

    first: str | None  # None: no hidden state leaves tolerance
    allowed_rel: float
    layers: tuple[LayerError, ...]
    note: str = ""


class SelftestInfo(_Frozen):
    """What the engine was asked."""

    prompts: Literal["text", "random ids"]
    lengths: tuple[int, ...]
    new_tokens: int
    cache_gap: Figure  # reference: cached decode against one prefill of the same tokens, relative


class Verdict(_Frozen):
    """Pass or fail, and why; `code` is of `errors.CATALOGUE`."""

    passed: bool
    code: Literal["verify-structure", "verify-numbers"] | None = None
    failures: tuple[str, ...] = ()


class VerifyReport(_Frozen):
    """The `verification` part of report.json."""

    schema_version: int = SCHEMA
    verdict: Verdict
    summary: str  # one line for people
    target: str
    engine: str  # what ran the artefact, with its version; "" where none did
    fallback: str | None = None  # why another engine than the target's own ran it
    structure: StructureResult | None = None
    selftest: SelftestInfo | None = None
    numbers: NumbersResult | None = None
    bisect: BisectResult | None = None
    not_checked: tuple[str, ...] = Field(default=())


class VerificationMissed(VerificationFailed):
    """A verification that failed, with all its figures."""

    def __init__(self, report: VerifyReport, *, hint: str | None = None) -> None:
        self.report = report
        verdict = report.verdict
        more = len(verdict.failures) - 1
        found = verdict.failures[0] + (f" (and {more} more)" if more > 0 else "")
        if report.bisect is not None and report.bisect.first is not None:
            found += f"; first layer out of tolerance: {report.bisect.first}"
        super().__init__(verdict.code or "verify-structure", found, hint=hint)
