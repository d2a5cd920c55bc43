"""`open_in_process`: an in-tree session of a target, behind the pipe, equal to the direct one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends.onnxruntime.target import OnnxRuntimeTarget
from backends.process.client import ProcessSession, open_in_process
from exporter.errors import EngineUnfit, UsageError
from tests.fused import fused_from
from tests.tiny import make_tiny


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact")
    OnnxRuntimeTarget().lower(fused_from(make_tiny("llama3")), folder, lambda *_: None)
    return folder


def test_the_same_results_as_in_this_process(artefact: Path) -> None:
    direct = OnnxRuntimeTarget().open(artefact, threads=1)
    inside = open_in_process("onnxruntime", artefact, threads=1)
    try:
        assert isinstance(inside, ProcessSession)
        assert inside.max_tokens == direct.max_tokens
        tokens = [5, 80, 7, 200]
        np.testing.assert_array_equal(inside.prefill(tokens), direct.prefill(tokens))
        np.testing.assert_array_equal(inside.decode(9), direct.decode(9))
        assert inside.generate(tokens, 8).tokens == direct.generate(tokens, 8).tokens
        facts = inside.facts()
        assert facts.engine == direct.facts().engine and facts.threads == 1
        assert 0 < facts.peak_rss_bytes < 500e6
    finally:
        direct.close()
        inside.close()


def test_errors_keep_their_codes(tmp_path: Path) -> None:
    with pytest.raises(EngineUnfit) as caught:
        open_in_process("onnxruntime", tmp_path, threads=1)
    assert caught.value.code == "engine-refused"
    with pytest.raises(UsageError):
        open_in_process("no-such-target", tmp_path)


def test_a_target_with_a_process_of_its_own_gets_no_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(
        "backends.deepsparse.target.DeepSparseTarget.open",
        lambda self, folder, threads: opened.append(folder),
    )
    open_in_process("deepsparse,cache=external", tmp_path)
    assert opened == [tmp_path]
