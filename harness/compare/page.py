"""One HTML page of a comparison: the table and four plots, with nothing fetched from elsewhere."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from typing import Any

from harness.compare.table import HEADER, Line, Result, texts
from harness.prune.sparsity import parse_sparsity, share_of

_STYLE = """body{font:15px sans-serif;max-width:75em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse}td,th{padding:.25em .6em;border-bottom:1px solid #ccc;
text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%}"""


def page(found: Sequence[Line], results: Sequence[Result], title: str) -> str:
    """The whole page."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in texts(line)) + "</tr>"
        for line in found
    )
    plots: list[tuple[str, Callable[[Any], bool]]] = [
        ("Perplexity against sparsity", lambda ax: _perplexity(ax, found)),
        ("Sparsity of each block in the last iteration", lambda ax: _rates(ax, results)),
        ("Size of the adapter by block and iteration", lambda ax: _sizes(ax, results)),
        ("Norm of the delta that the mask takes", lambda ax: _norms(ax, results)),
    ]
    drawn = "".join(f"<h2>{name}</h2>{_svg(draw)}" for name, draw in plots)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{drawn}</html>\n"
    )


def _svg(draw: Callable[[Any], bool]) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasSVG(figure)
    axes: Any = figure.subplots()
    if not draw(axes):
        return "<p>No run of this comparison has it.</p>"
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _perplexity(axes: Any, found: Sequence[Line]) -> bool:
    for row in dict.fromkeys(line.row for line in found):
        own = sorted(
            (share_of(parse_sparsity(x.sparsity)), x.perplexity) for x in found if x.row == row
        )
        axes.plot([p[0] for p in own], [p[1] for p in own], marker="o", label=row)
    axes.set(xlabel="share of zeros", ylabel="perplexity", yscale="log")
    return bool(found)


def _rates(axes: Any, results: Sequence[Result]) -> bool:
    rows = _first_seeds(results)
    for name, result in rows.items():
        rates = result["history"][-1]["rates"]
        axes.plot(range(len(rates)), rates, marker=".", label=name)
    axes.set(xlabel="block", ylabel="share of zeros")
    return bool(rows)


def _sizes(axes: Any, results: Sequence[Result]) -> bool:
    rows = _first_seeds(results)
    for name, result in rows.items():
        for entry in result["history"]:
            by_block: dict[int, int] = {}
            for module, size in entry["sizes"].items():
                block = next(int(p) for p in module.split(".") if p.isdigit())
                by_block.setdefault(block, size)
            axes.plot(
                list(by_block), list(by_block.values()), marker=".",
                label=f"{name}, iteration {entry['iteration']}",
            )  # fmt: skip
    axes.set(xlabel="block", ylabel="rank, or parameters of G", yscale="log")
    return bool(rows)


def _norms(axes: Any, results: Sequence[Result]) -> bool:
    rows = {f"{r['row']} {r['sparsity']}": r["norms"] for r in results if r["norms"]}
    for name, norms in rows.items():
        lost = [v["outside_mask"] / v["delta"] if v["delta"] else 0.0 for v in norms.values()]
        axes.plot(range(len(lost)), lost, label=name)
    axes.set(
        xlabel="linear, in the order of the model", ylabel="share of the norm outside the mask"
    )
    return bool(rows)


def _first_seeds(results: Sequence[Result]) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for result in results:
        if result["history"]:
            found.setdefault(f"{result['row']} {result['sparsity']}", result)
    return found
