"""The demo rehearsed on a tiny model and ONNX Runtime: real commands, real page."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from scripts import demo
from scripts.demo_report import Refusal
from tests.tiny import save_tiny


def test_a_long_refusal_is_shown_by_its_ends():
    lines = [str(i) for i in range(100)]
    short = Refusal.of("\n".join(lines) + "\n\n").short(head=3, tail=2)
    assert short[:3] == ["0", "1", "2"]
    assert "95 more lines" in short[3]
    assert short[4:] == ["98", "99"]
    assert Refusal.of("a\nb").short() == ["a", "b"]


def test_a_command_that_fails_ends_the_demo_with_its_code(capsys):
    with pytest.raises(SystemExit) as left:
        demo.Demo(Console()).run("stage", "sparse-export", "/nowhere", "--target", "onnxruntime")
    assert left.value.code == 3
    assert "exit code 3, expected 0" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_way_on_a_tiny_model(tmp_path, monkeypatch):
    tiny = save_tiny("smollm2", tmp_path / "m", dtype="bfloat16")
    monkeypatch.chdir(demo.ROOT)
    monkeypatch.setattr(demo, "OUT", tmp_path / "demo")
    monkeypatch.setattr(demo, "make_model", lambda _: tiny)
    monkeypatch.setattr(demo, "usable_engines", lambda _: (["onnxruntime"], "DeepSparse <cannot>"))
    shown = io.StringIO()
    assert demo.main(Console(file=shown, width=200)) == 0
    out = tmp_path / "demo"
    assert not (out / "refused").exists()
    assert "merge-policy-needed" in (out / "refusal.txt").read_text()
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 2  # heat map and speed plot
    assert "DeepSparse &lt;cannot&gt;" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!\#)|@import|<script""", page)
    for text in ("onnxruntime-sparse", "onnxruntime-dense", "256 of 256"):
        assert text in page
        assert text in shown.getvalue()
