"""The HTML report: plot inside, nothing from outside, and equal bytes for equal results."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench.render.html import ab_html, ab_section, speed_plot_svg
from bench.render.plot import round_speedups
from tests.bench.fakes import Measure

# Everything by which a page can load something, or that names another host.
OUTSIDE = re.compile(r"""(?:src|href)\s*=\s*["'](?!\#)|@import|url\((?!["']?\#)|<script""")


def test_report_holds_the_plot_and_refers_to_nothing_outside(measured: Measure) -> None:
    page = ab_html([measured(rounds=6)])
    assert page.count("<svg") == 2
    assert not OUTSIDE.search(page)
    hosts = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert hosts <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # namespaces


def test_report_defines_its_terms_and_shows_the_figures(measured: Measure) -> None:
    page = ab_html([measured(rounds=6, min_speedup=1.5)])
    for text in ("TTFT: from the call", "TPOT: mean time", "2.000x", "passed", "peak RSS"):
        assert text in page


def test_plot_is_well_formed_and_grows_with_the_results(measured: Measure) -> None:
    first, second = measured(rounds=6), measured(rounds=6, title="second & last")
    one, two = speed_plot_svg([first]), speed_plot_svg([first, second])
    heights = [float(ElementTree.fromstring(s).attrib["height"].rstrip("pt")) for s in (one, two)]
    assert heights[1] == pytest.approx(2 * heights[0])
    assert one == speed_plot_svg([first])


def test_dots_are_the_ratios_of_the_rounds(measured: Measure) -> None:
    result = measured(rounds=6)
    for metric in ("decode", "prefill", "ttft"):
        assert round_speedups(result, metric) == pytest.approx([2.0] * 6)


def test_names_are_escaped(measured: Measure) -> None:
    section = ab_section(measured(rounds=6, title="<script>alert(1)</script>"))
    assert "<script" not in section and "&lt;script&gt;" in section


def test_no_path_reaches_the_report(measured: Measure, pair: tuple[Path, Path]) -> None:
    assert str(pair[0].parent) not in ab_html([measured(rounds=6)])
