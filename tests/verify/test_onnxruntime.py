"""The whole verification on a real engine: ONNX Runtime on tiny models of every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends.onnxruntime.target import OnnxRuntimeTarget
from backends.reference.session import open_reference
from exporter.model import LowRank
from exporter.verify.result import VerificationMissed, VerifyReport
from exporter.verify.run import verify_staged
from tests.tiny import KINDS, save_tiny
from tests.verify.fakes import MemoryModel, memory_model


def lower(model: MemoryModel, folder: Path) -> None:
    folder.mkdir()
    OnnxRuntimeTarget().lower(model, folder, lambda *_: None)


def verify(model: MemoryModel, folder: Path, bisect: bool = False) -> VerifyReport:
    return verify_staged(
        OnnxRuntimeTarget(), model, folder, reference_opener=open_reference, bisect=bisect
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_passes(kind: str, tmp_path: Path) -> None:
    model = memory_model(save_tiny(kind, tmp_path / "m", sparsity=0.7))
    lower(model, tmp_path / "out")
    report = verify(model, tmp_path / "out")
    assert report.verdict.passed and report.numbers is not None and report.structure is not None
    assert max(report.numbers.prefill.max_rel, report.numbers.decode.max_rel) <= 1e-4
    assert [p.equal for p in report.numbers.prompts] == [32] * 8
    assert report.structure.linears == 14 and report.structure.zeros > 0
    assert report.selftest is not None and report.selftest.prompts == "text"


def test_equal_exports_give_equal_reports_and_selftests(tmp_path: Path) -> None:
    model, seen = memory_model(save_tiny("smollm2", tmp_path / "m", sparsity=0.7)), []
    for name in ("one", "two"):
        lower(model, tmp_path / name)
        report = verify(model, tmp_path / name).model_dump_json()
        selftest = tmp_path / name / ".sparse-export" / "selftest.safetensors"
        seen.append((report, selftest.read_bytes()))
    assert seen[0] == seen[1]


def test_branch_stays_in_the_graph(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    branch = LowRank(
        draw.normal(size=(4, 64)).astype(np.float32),
        draw.normal(size=(160, 4)).astype(np.float32),
        0.125,
    )
    folder = save_tiny("llama2", tmp_path / "m", sparsity=0.7)
    model = memory_model(folder, {"model.layers.0.mlp.gate_proj": branch})
    lower(model, tmp_path / "out")
    assert verify(model, tmp_path / "out").verdict.passed


def test_one_flipped_bit_is_named(tmp_path: Path) -> None:
    model = memory_model(save_tiny("smollm2", tmp_path / "m", sparsity=0.7))
    lower(model, tmp_path / "out")
    raw = bytearray((tmp_path / "out" / "model.data").read_bytes())
    at = len(raw) - 4 * 72 + 2  # in the last tensor, the final norm
    raw[at] ^= 4
    (tmp_path / "out" / "model.data").write_bytes(raw)
    with pytest.raises(VerificationMissed) as caught:
        verify(model, tmp_path / "out")
    assert caught.value.code == "verify-structure"
    assert "model.norm.weight" in caught.value.found and "one bit" in caught.value.found


def test_wrong_graph_is_found_by_its_layer(tmp_path: Path) -> None:
    """Right bytes, wrong arithmetic: a graph of another norm epsilon."""
    model = memory_model(save_tiny("llama3", tmp_path / "m", sparsity=0.7))
    other = memory_model(save_tiny("llama3", tmp_path / "n", sparsity=0.7, rms_norm_eps=0.5))
    lower(other, tmp_path / "out")
    with pytest.raises(VerificationMissed) as caught:
        verify(model, tmp_path / "out", bisect=True)
    assert caught.value.code == "verify-numbers"
    found = caught.value.report.bisect
    assert found is not None and found.first == "layer.0"
