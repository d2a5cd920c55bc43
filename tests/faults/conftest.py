"""Sound tiny models, made once, and the command line that is asked about broken copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.asking import Ask
from tests.tiny import save_tiny


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied float32 Llama in one file, half of its linears' weights zero."""
    return save_tiny("llama2", tmp_path_factory.mktemp("faults") / "single", sparsity=0.5)


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in four shards."""
    folder = tmp_path_factory.mktemp("faults") / "sharded"
    return save_tiny("llama2", folder, sparsity=0.5, shard="150KB")


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs `sparse-export` in this process and looks at all that it leaves."""
    return Ask(tmp_path, capsys)
