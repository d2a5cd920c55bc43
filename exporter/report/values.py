"""The table of quantised values: what each kind costs one sparse model on text."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from exporter.report.bars import bars, page, section

SCHEMA = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ValuesRow(_Frozen):
    """What one kind of values costs; errors are means over the quantised linears."""

    kind: str
    group: int  # columns that share a scale; 0: a row
    method: str
    weight: float  # ||W' - W|| / ||W||
    weight_max: float  # the most of any linear: max|W' - W| / max|W|
    zeroed: int  # kept weights that were not zero and are now
    error: float  # tr(E H E^T) / tr(W H W^T)
    perplexity: float
    seconds: float  # that choosing the codes took here; rounding does it whenever rows are read

    @property
    def label(self) -> str:
        """ "int4 g128 gptq"."""
        return " ".join([self.kind, *([f"g{self.group}"] if self.group else []), self.method])


class ValuesReport(_Frozen):
    """What `python -m scripts.quantised` writes as JSON."""

    schema_version: int = Field(default=SCHEMA, alias="schema", serialization_alias="schema")
    tool: str
    family: str
    pattern: str
    sparsity: float
    stored: str  # type of the checkpoint's weights, "bf16"
    adapters: tuple[str, ...]  # merged before; family of each
    policy: str | None  # of that merge
    linears: int  # quantised
    observed_tokens: int
    held_out_tokens: int  # none of them is observed
    window: int
    texts: tuple[str, ...]  # names of the files
    perplexity: float  # of the merged weights rounded to `stored`
    rows: tuple[ValuesRow, ...]


HEAD = ("values", "change", "largest", "became 0", "output error", "perplexity", "choose s")


def cells(report: ValuesReport) -> list[tuple[str, ...]]:
    """Rows below `HEAD`, as text."""
    base = (f"({report.stored})", "", "", "", "", f"{report.perplexity:.5g}", "")
    return [base, *(_cells(row) for row in report.rows)]


def _cells(row: ValuesRow) -> tuple[str, ...]:
    return (
        row.label,
        f"{row.weight:.2%}",
        f"{row.weight_max:.2%}",
        f"{row.zeroed:,}",
        f"{row.error:.3g}",
        f"{row.perplexity:.5g}",
        f"{row.seconds:.1f}",
    )


def notes(report: ValuesReport) -> tuple[str, ...]:
    """What a reader needs beside the table."""
    merged = f"{', '.join(report.adapters)} merged by {report.policy}" if report.adapters else ""
    return (
        *([merged] if merged else []),
        f"{report.linears} linears quantised, {report.pattern}, {report.sparsity:.2%} zeros, "
        "all of which stay",
        f"inputs observed on {report.observed_tokens:,} tokens, perplexity on "
        f"{report.held_out_tokens:,} others, windows of {report.window}: {', '.join(report.texts)}",
    )


def values_html(report: ValuesReport) -> str:
    """One page; no script, nothing fetched."""
    shown = [(f"({report.stored})", report.perplexity)]
    shown += [(row.label, row.perplexity) for row in report.rows]
    title = "perplexity on held-out text, less is better"
    plot = bars(shown, "perplexity by kind of values", title)
    body = section(plot, [HEAD, *cells(report)], notes(report))
    return page("Quantised values", f"a sparse {report.family}", body)
