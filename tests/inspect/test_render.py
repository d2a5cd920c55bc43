"""Table, heat map and page: what they show, that they are self-contained, and that they escape."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from rich.console import Console

from exporter.errors import InputRefused
from exporter.report.heatmap import colour, heatmap_svg
from exporter.report.inspect import InspectReport, LinearEntry, NoteEntry, Totals
from exporter.report.inspect_grid import build_grid
from exporter.report.inspect_html import inspect_html, write_inspect_html
from exporter.report.inspect_table import render_table

SVG = "{http://www.w3.org/2000/svg}"


def entry(layer: int | None, role: str, zeros: int, pattern: str) -> LinearEntry:
    return LinearEntry(
        module=f"layers.{layer}.{role}",
        layer=layer,
        role=role,
        out_features=10,
        in_features=100,
        sparsity=zeros / 1000,
        pattern=pattern,
        kept=1000 - zeros,
        zero_rows=0,
        zero_columns=0,
        group_max={"4": 4, "8": 8, "16": 16},
    )


def report(*linears: LinearEntry, name: str = "tiny", notes: int = 0) -> InspectReport:
    weights = 1000 * len(linears)
    kept = sum(x.kept for x in linears)
    labels = [x.pattern for x in linears]
    return InspectReport(
        model=name,
        family="llama",
        mask_origin="zeros",
        totals=Totals(
            linears=len(linears),
            weights=weights,
            kept=kept,
            sparsity=1 - kept / weights,
            pattern=labels[0] if len(set(labels)) == 1 else "mixed",
            patterns={label: labels.count(label) for label in labels},
        ),
        linears=linears,
        notes=tuple(NoteEntry(tensor=f"t{i}", what="denormals", count=2) for i in range(notes)),
        dropped={"old.inv_freq": "buffer"},
    )


def small() -> InspectReport:
    return report(
        entry(0, "q", 500, "2:4"),
        entry(0, "up", 700, "unstructured"),
        entry(1, "q", 0, "dense"),
        entry(1, "up", 900, "unstructured"),
        entry(None, "proj", 250, "rows"),
        notes=3,
    )


def table(data: InspectReport, width: int = 200) -> str:
    out = io.StringIO()
    render_table(data, Console(file=out, width=width))
    return out.getvalue()


def test_grid_aggregates_by_weights() -> None:
    grid = build_grid(small())
    assert grid.roles == ("q", "up", "proj")
    assert [r.label for r in grid.rows] == ["0", "1", "-"]
    assert grid.rows[0].whole.sparsity == pytest.approx(0.6)
    assert grid.rows[0].whole.pattern == "various"
    assert grid.columns.cells["up"].sparsity == pytest.approx(0.8)
    assert grid.columns.cells["up"].pattern == "unstructured"
    assert grid.columns.whole.sparsity == pytest.approx(0.47)


@pytest.mark.parametrize(("layers", "rows"), [(1, 1), (40, 40), (41, 21), (126, 32), (4096, 40)])
def test_long_models_become_runs_that_hold_every_layer(layers, rows) -> None:
    data = report(*(entry(i, "q", i % 1000, "unstructured") for i in range(layers)))
    grid = build_grid(data, 40)
    assert len(grid.rows) == rows
    spans = [[int(x) for x in r.label.split("-")] for r in grid.rows]
    held = [i for span in spans for i in range(span[0], span[-1] + 1)]
    assert held == list(range(layers))
    assert sum(r.whole.linears for r in grid.rows) == layers


def test_table_shows_every_cell_and_the_totals() -> None:
    text = table(small())
    assert "tiny: 5 linears, 47.0% zeros, mixed (1 2:4, 2 unstructured, 1 dense, 1 rows)" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["0", "50.0", "2:4", "70.0", "60.0", "var."] in lines
    assert ["1", "0.0", "dense", "90.0", "45.0", "var."] in lines
    assert any(line[:2] == ["all", "25.0"] and "47.0" in line for line in lines)
    assert "Note: 6 denormal values; first t0." in text
    assert "Not exported: 1 tensors" in text


@pytest.mark.parametrize("mixed", [False, True])
def test_a_decoder_fits_eighty_columns(mixed) -> None:
    roles = ("q", "k", "v", "o", "gate", "up", "down")
    pattern = {"down": "2:4", "q": "2:4"} if mixed else {}
    linears = [entry(i, r, 700, pattern.get(r, "unstructured")) for i in range(30) for r in roles]
    lines = table(report(*linears), 80).splitlines()
    rows = [line.split() for line in lines if line.split().count("70.0") == 8]
    assert [row[0] for row in rows] == [*map(str, range(30)), "all"]
    assert all(row.count("2:4") == (2 if mixed else 0) for row in rows)
    assert "unstructured" in lines[0]


def test_table_hides_roles_past_a_dozen_and_says_so() -> None:
    data = report(*(entry(0, f"w{i}", 500, "2:4") for i in range(15)))
    assert "3 further modules are in --json and --html." in table(data)


def test_table_names_the_unknown_and_the_masks_file() -> None:
    data = small().model_copy(update={"family": None, "mask_origin": "m.safetensors"})
    assert "Unknown architecture" in table(data)
    assert "Masks read from m.safetensors." in table(data)


def test_heat_map_has_a_coloured_cell_for_every_linear() -> None:
    root = ET.fromstring(heatmap_svg(small()))
    cells = {
        title.text: (rect.get("fill"), text.text)
        for g in root.iter(f"{SVG}g")
        for title, rect, text in [list(g)]
    }
    assert len(cells) == 5 + 3 + 3 + 1  # linears, row totals, column totals, the whole
    assert cells["layer 0, q: 50.00% zeros, 2:4"] == (colour(0.5), "50.0 2:4")
    assert cells["layer 1, up: 90.00% zeros, unstructured"] == (colour(0.9), "90.0")
    assert cells["layer 1, q: 0.00% zeros, dense"] == (colour(0.0), "0.0 dense")
    assert cells["layer all, all: 47.00% zeros, various, 5 linears"][1] == "47.0 var."
    assert "".join(root.find(f"{SVG}title").itertext()) == "tiny: 47.0% zeros in 5 linears"


def test_nothing_leaves_the_drawing() -> None:
    root = ET.fromstring(heatmap_svg(small()))
    width, height = float(root.get("width")), float(root.get("height"))
    for rect in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.get(k)) for k in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height


def test_colours_grow_darker_and_text_stays_readable() -> None:
    def light(hex_colour: str) -> float:
        parts = [int(hex_colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    shades = [light(colour(i / 100)) for i in range(101)]
    assert shades == sorted(shades, reverse=True)
    for zeros in range(0, 1001, 10):
        svg = heatmap_svg(report(entry(0, "q", zeros, "unstructured")))
        fill, ink = re.search(r'fill="(#\w{6})" stroke.*?fill="(#\w{3})">', svg, re.S).groups()
        pair = sorted([light(fill), 1.0 if ink == "#fff" else light("#111111")])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.0, zeros


@pytest.mark.parametrize(
    ("share", "want"), [(-1, "#f7fbff"), (0, "#f7fbff"), (1, "#08306b"), (2, "#08306b")]
)
def test_colour_ends(share, want) -> None:
    assert colour(share) == want


class Tags(HTMLParser):
    """Collects tags and their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_needs_nothing_else(tmp_path) -> None:
    write_inspect_html(small(), tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    tags = Tags(page).seen
    names = {tag for tag, _ in tags}
    assert not names & {"script", "link", "img", "iframe", "object"}
    assert "svg" in names
    assert not any(k in a for _, a in tags for k in ("src", "href", "onclick", "onload"))
    assert "url(" not in page and "@import" not in page
    assert "@media print" in page
    for text in ("Sparsity of tiny", "47.00%", "5 with 5,000 weights, 2,650 kept", "old.inv_freq"):
        assert text in page


def test_names_from_the_model_are_escaped() -> None:
    evil = "<script>alert(1)</script>\x1b[31m"
    data = report(entry(0, evil, 1, "dense"), name=evil)
    data = data.model_copy(update={"dropped": {evil: evil}, "mask_origin": evil})
    assert "script" not in {tag for tag, _ in Tags(inspect_html(data)).seen}
    assert "\x1b" not in inspect_html(data)
    assert "\x1b" not in table(data)
    ET.fromstring(heatmap_svg(data))
    assert "[red]x" in table(report(entry(0, "[red]x", 1, "dense")))


def test_a_page_that_cannot_be_written(tmp_path) -> None:
    with pytest.raises(InputRefused) as caught:
        write_inspect_html(small(), tmp_path / "no" / "x.html")
    assert caught.value.code == "output-failed"
