"""`verify OUT` without the source: bytes, tensors, zeros and numbers of a published folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.reference.session import open_reference
from exporter.errors import EngineUnfit, SparseExportError, VerificationFailed
from exporter.store.jsonio import write_json
from exporter.store.manifest import Manifest, TargetEntry, describe_outputs, write_manifest
from exporter.verify.result import VerificationMissed
from exporter.verify.run import verify_folder, verify_staged
from exporter.verify.selftest_file import read_selftest, write_selftest
from tests.tiny import save_tiny
from tests.verify.fakes import Arrays, FakeTarget, load_arrays, memory_model, write_folder

UP = "model.layers.0.mlp.up_proj.weight"
SELFTEST = ".sparse-export/selftest.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an export publishes it."""
    source = tmp_path_factory.mktemp("source")
    save_tiny("llama2", source, sparsity=0.6, tied=True, max_position_embeddings=24)
    model, target = memory_model(source), FakeTarget()
    folder = tmp_path_factory.mktemp("published")
    target.lower(model, folder)
    shutil.copy(source / "config.json", folder)
    report = verify_staged(target, model, folder, reference_opener=open_reference)
    write_json(
        folder / ".sparse-export" / "report.json",
        {"verification": report.model_dump(mode="json")},
    )
    seal(folder)
    return folder


def seal(folder: Path, target: FakeTarget | None = None) -> None:
    """A manifest of what lies in `folder` now, as one who changed it might write."""
    (folder / ".sparse-export" / "manifest.json").unlink(missing_ok=True)
    tensors = {t.name: t.sha256() for t in (target or FakeTarget()).read_back(folder)}
    manifest = Manifest(
        schema=1,
        tool="0",
        libraries={},
        target=TargetEntry(name="fake"),
        policy=None,
        inputs=(),
        outputs=describe_outputs(folder, tensors),
    )
    write_manifest(folder, manifest)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def test_sound_folder(folder: Path) -> None:
    report = verify_folder(folder, FakeTarget())
    assert report.verdict.passed and report.numbers is not None and report.structure is not None
    assert report.numbers.truth == "stored self-test" and report.structure.zero_values > 0
    assert report.not_checked == ("values against the source model: it is not at hand",)
    assert [p.equal for p in report.numbers.prompts] == [12] * 8


@pytest.mark.parametrize(
    "name", ["weights.bin", "graph.json", "config.json", SELFTEST, ".sparse-export/report.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_any_changed_file_is_named(name: str, damage: str, folder: Path) -> None:
    path = folder / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes({"flip": raw, "cut": raw[:-1], "remove": b""}[damage])
    if damage == "remove":
        path.unlink()
    with pytest.raises(VerificationFailed) as caught:
        verify_folder(folder, FakeTarget())
    assert (caught.value.code, caught.value.exit_code) == ("verify-hash", 1)
    assert caught.value.file == name


def test_stray_file_is_named(folder: Path) -> None:
    (folder / "model.bin").write_text("x")
    with pytest.raises(VerificationFailed) as caught:
        verify_folder(folder, FakeTarget())
    assert caught.value.code == "verify-hash" and caught.value.file == "model.bin"


def rewrite(folder: Path, change: Callable[[Arrays], None]) -> None:
    arrays = load_arrays(folder)
    change(arrays)
    write_folder(folder, arrays, json.loads((folder / "graph.json").read_text())["config"])


def relist(folder: Path) -> None:
    """A manifest whose files fit what is there, with the tensors of the first one."""
    path = folder / ".sparse-export" / "manifest.json"
    tensors = json.loads(path.read_text())["outputs"]["tensors"]
    seal(folder)
    manifest = json.loads(path.read_text())
    manifest["outputs"]["tensors"] = tensors
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a[UP].__setitem__((0, 0), 9.0), f"{UP} is not the tensor"),
        (lambda a: a.pop(UP), f"{UP} is missing"),
        (lambda a: a.update(odd=a[UP]), "odd is not the tensor"),
        (lambda a: a.update({f"{UP}#2": a[UP]}), f"{UP} is stored twice"),
    ],
)
def test_tensors_against_the_manifest(change: Any, words: str, folder: Path) -> None:
    rewrite(folder, change)
    relist(folder)
    with pytest.raises(VerificationMissed) as caught:
        verify_folder(folder, FakeTarget())
    assert caught.value.code == "verify-structure"
    assert any(words in f for f in caught.value.report.verdict.failures)


def test_lost_zeros_against_the_report(folder: Path) -> None:
    rewrite(folder, lambda a: a.update({UP: np.where(a[UP] == 0, np.float32(1e-9), a[UP])}))
    seal(folder)
    with pytest.raises(VerificationMissed, match="zeros in the linears"):
        verify_folder(folder, FakeTarget())


def test_numbers_that_changed(folder: Path) -> None:
    """A resealed folder whose weights are others: only running it can tell."""
    rewrite(folder, lambda a: a.update({UP: a[UP] * np.float32(1.5)}))
    seal(folder)
    with pytest.raises(VerificationMissed) as caught:
        verify_folder(folder, FakeTarget())
    assert caught.value.code == "verify-numbers" and caught.value.exit_code == 1
    assert "Compare the engine's version" in caught.value.hint


def test_selftest_of_other_greedy_tokens(folder: Path) -> None:
    test = read_selftest(folder / SELFTEST)
    (folder / SELFTEST).unlink()
    test.greedy[0, 0] = (test.greedy[0, 0] + 1) % 272
    write_selftest(folder / SELFTEST, test)
    seal(folder)
    with pytest.raises(VerificationMissed) as caught:
        verify_folder(folder, FakeTarget())
    assert caught.value.code == "verify-numbers"


def test_engine_with_shorter_sequences(folder: Path) -> None:
    with pytest.raises(VerificationFailed, match="longer sequences"):
        verify_folder(folder, FakeTarget(max_tokens=16))


def test_no_engine(folder: Path) -> None:
    with pytest.raises(EngineUnfit):
        verify_folder(folder, FakeTarget(available=False))


@pytest.mark.parametrize("content", ["{}", '{"verification": []}', "[1]"])
def test_report_of_another_form(content: str, folder: Path) -> None:
    (folder / ".sparse-export" / "report.json").write_text(content)
    seal(folder)
    with pytest.raises(VerificationFailed) as caught:
        verify_folder(folder, FakeTarget())
    assert caught.value.code == "manifest-invalid"


def test_no_manifest(folder: Path) -> None:
    (folder / ".sparse-export" / "manifest.json").unlink()
    with pytest.raises(SparseExportError) as caught:
        verify_folder(folder, FakeTarget())
    assert caught.value.code == "manifest-invalid"
