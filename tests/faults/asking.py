"""One command line under test: what it says, its exit code, and that it leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from exporter.cli import run
from tests.check.folder import Array, write_safetensors

Edit = Callable[[Path], object]


@dataclass(frozen=True)
class Ask:
    """Inputs lie in `inputs`, outputs would lie in `place`, which holds nothing else."""

    root: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def inputs(self) -> Path:
        return self.root / "inputs"

    @property
    def out(self) -> Path:
        return self.root / "place" / "out"

    def copy(self, source: Path, edit: Edit | None = None) -> Path:
        """A copy of the folder `source`, changed by `edit`."""
        folder = self.inputs / source.name
        shutil.copytree(source, folder)
        if edit is not None:
            edit(folder)
        return folder

    def run(self, model: Path, *more: str, target: str = "onnxruntime") -> tuple[int, Any, str]:
        """Exit code, parsed standard output, standard error; the inputs must not change."""
        self.out.parent.mkdir(exist_ok=True)
        before = _state(self.inputs)
        self.capsys.readouterr()
        code = run([str(model), "--target", target, "-o", str(self.out), "--json", *more])
        said = self.capsys.readouterr()
        assert _state(self.inputs) == before, "an input was written to"
        return code, json.loads(said.out), said.err

    def refused(self, model: Path, *more: str, exit_code: int = 3, **run: str) -> dict[str, Any]:
        """The error of an export that must be refused, for machines and for people."""
        code, answer, said = self.run(model, *more, **run)
        assert set(answer) == {"error"}, answer
        error = answer["error"]
        assert (code, error["exit_code"]) == (exit_code, exit_code), error
        assert error["found"] and error["hint"]
        for part in (f"[{error['code']}]", error["hint"], error["file"], error["tensor"]):
            assert part is None or part in said
        assert "Traceback" not in said
        assert list(self.out.parent.iterdir()) == [], "something was left beside the output"
        return error

    def lowered(self, model: Path, *more: str, **run: str) -> None:
        """An export up to lowering, which must pass and publish nothing."""
        code, answer, said = self.run(model, "--lower-only", *more, **run)
        assert code == 0, said
        assert answer["report"] is None
        assert list(self.out.parent.iterdir()) == []

    def published(self, model: Path, *more: str, **run: str) -> dict[str, Any]:
        """The report of an export that must pass its verification."""
        code, answer, said = self.run(model, *more, **run)
        assert code == 0, said
        assert answer["report"]["verification"]["verdict"]["passed"] is True
        assert list(self.out.parent.iterdir()) == [self.out]
        return answer["report"]


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


def change(file: Path, edit: Callable[[dict[str, Array]], object]) -> None:
    """Edit the tensors of a safetensors file."""
    tensors = load_file(file)
    edit(tensors)
    write_safetensors(file, tensors)


def mend(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file; `...` takes one out."""
    value = json.loads(file.read_text())
    for key, new in fields.items():
        value.pop(key, None)
        if new is not ...:
            value[key] = new
    file.write_text(json.dumps(value))


def mend_header(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the header of a safetensors file; the data stay as they are."""
    raw = file.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])


def grow(file: Path, nbytes: int) -> None:
    """Make a file longer by a hole, or shorter by a negative number."""
    import os

    os.truncate(file, max(0, file.stat().st_size + nbytes))


def stored(file: Path, name: str) -> Array:
    """One tensor of a safetensors file."""
    return np.array(load_file(file)[name])
