"""Text and windows: what is read, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.errors import InputRefused
from harness.text import draw, load_text, windows


def bytes_tokenizer(text, **_):
    return {"input_ids": list(text.encode())}


def test_the_builtin_text_is_large_english_and_stable():
    text = load_text("builtin")
    assert len(text) > 300_000
    assert "function definition" in text
    assert text == load_text("builtin")


def test_windows_are_the_text_in_order_without_the_rest(tmp_path):
    (tmp_path / "t.txt").write_text("abcdefghij")
    rows = windows(bytes_tokenizer, str(tmp_path / "t.txt"), 4)
    assert rows.dtype == np.int64
    assert [bytes(row.tolist()).decode() for row in rows] == ["abcd", "efgh"]


def test_draws_are_different_rows_and_follow_the_seed():
    rows = np.arange(40).reshape(20, 2)
    drawn = draw(rows, 7, seed=3)
    assert len({tuple(row) for row in drawn.tolist()}) == 7
    np.testing.assert_array_equal(drawn, draw(rows, 7, seed=3))
    assert not np.array_equal(drawn, draw(rows, 7, seed=4))
    assert len(draw(rows, 99, seed=0)) == 20


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputRefused, match="input-missing"):
        load_text(str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("content", "found"), [(b"", "empty"), (b" \n\t", "empty"), (b"caf\xe9 au lait", "byte 3")]
)
def test_an_unusable_file_is_refused(tmp_path, content, found):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(InputRefused, match=rf"data-invalid[\s\S]*{found}"):
        load_text(str(tmp_path / "t.txt"))


def test_a_text_beyond_the_bound_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.text.MAX_BYTES", 10)
    (tmp_path / "t.txt").write_text("eleven chars")
    with pytest.raises(InputRefused, match="limit-exceeded"):
        load_text(str(tmp_path / "t.txt"))


def test_a_text_shorter_than_a_window_is_refused(tmp_path):
    (tmp_path / "t.txt").write_text("abc")
    with pytest.raises(InputRefused, match=r"data-invalid[\s\S]*3 tokens[\s\S]*128"):
        windows(bytes_tokenizer, str(tmp_path / "t.txt"), 128)
