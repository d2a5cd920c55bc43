"""The table of merge policies for one model and its adapters, on calibration text."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class PolicyRow(_Frozen):
    """What one policy gives."""

    policy: str
    impossible: str = ""  # why it cannot be had; every figure is None then
    sparsity: float | None = None  # zeros of all linears after the merge
    branches: int | None = None  # low-rank branches that stay in the graph
    norm_lost: float | None = None  # ||W' - (W + D)|| / ||D||, over all merged modules
    positions_moved: int | None = None
    error: float | None = None  # tr(E H E^T) / tr(W* H W*^T), mean over merged modules
    perplexity: float | None = None  # of the merged model, on the held-out text
    seconds: float | None = None  # that the merge took here


class PoliciesReport(_Frozen):
    """`sparse-export policies --json`."""

    schema_version: int = Field(default=SCHEMA, alias="schema", serialization_alias="schema")
    tool: str
    family: str
    pattern: str
    linears: int
    linears_lossy: int  # where the delta has weight outside the mask
    sparsity: float  # of the base
    adapters: tuple[str, ...]  # family of each, in the order given
    observed_tokens: int
    held_out_tokens: int
    window: int
    texts: tuple[str, ...]  # names of the files
    perplexity_base: float  # without the adapters
    perplexity_unmerged: float  # base and adapters, nothing dropped
    rows: tuple[PolicyRow, ...]


HEAD = (
    "policy",
    "zeros",
    "branches",
    "norm lost",
    "moved",
    "output error",
    "perplexity",
    "merge s",
)


def cells(report: PoliciesReport) -> list[tuple[str, ...]]:
    """Rows below `HEAD`, as text: the two models that are not merged, then the policies."""
    base, whole = f"{report.sparsity:.2%}", f"{report.perplexity_unmerged:.4g}"
    rows = [
        ("(base alone)", base, "", "", "", "", f"{report.perplexity_base:.4g}", ""),
        ("(unmerged)", base, "", "", "", "", whole, ""),
    ]
    return [*rows, *(_cells(row) for row in report.rows)]


def _cells(row: PolicyRow) -> tuple[str, ...]:
    if row.impossible:
        return (row.policy, row.impossible, *[""] * (len(HEAD) - 2))
    return (
        row.policy,
        f"{row.sparsity:.2%}",
        f"{row.branches}",
        f"{row.norm_lost:.1%}",
        f"{row.positions_moved:,}",
        f"{row.error:.3g}",
        f"{row.perplexity:.4g}",
        f"{row.seconds:.1f}",
    )


def notes(report: PoliciesReport) -> tuple[str, ...]:
    """What a reader needs beside the table."""
    return (
        f"{report.linears_lossy} of {report.linears} linears lose something when merged; "
        f"{report.pattern}",
        f"inputs observed on {report.observed_tokens:,} tokens, perplexity on "
        f"{report.held_out_tokens:,} others, windows of {report.window}: {', '.join(report.texts)}",
    )
