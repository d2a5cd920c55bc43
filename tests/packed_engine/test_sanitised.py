"""The decode step under AddressSanitizer and UndefinedBehaviorSanitizer: batches, chunks, ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.packed.kernels.compile import Build, compiler
from tests.kernels.conftest import BUILDS, built
from tests.packed_engine.test_decoder import artefact

_SCRIPT = """
import sys
from pathlib import Path
from backends.packed.kernels.library import Library
load = Library.__init__
Library.__init__ = lambda self, path: load(self, Path(sys.argv[1]))
from exporter.registry import load_target, parse_target
session = load_target(*parse_target(sys.argv[3])).open(Path(sys.argv[2]), threads=2)
rows = session.prefill(list(range(90)))
for token in (3, 5):
    rows = session.decode(token)
one = session.generate([1, 2, 3], 6).tokens
many = session.generate_batch([[1, 2, 3], [4] * 70, [9]], 6)
assert many[0].tokens == one, (many, one)
assert rows.shape == (272,)
full = session.generate([7] * (session.max_tokens - 4), 4)
assert len(full.tokens) == 4
session.close()
assert "sanitised.so" in Path("/proc/self/maps").read_text()
print("done")
"""


def _runtime(name: str) -> str:
    """A sanitiser's library, which has to be there before python's own allocator."""
    made = subprocess.run(
        [str(compiler()), f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return made.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qwen3", {}),
        ("smollm2", {"values": "int8", "head": "int8"}),
        ("llama3", {"values": "int4"}),
    ],
)
def test_a_decode_step_touches_only_its_own(kind: str, options: dict[str, Any], tmp_path: Path):
    made = built(BUILDS / "sanitised.so", Build(sanitize=True))
    _, out = artefact(tmp_path, kind, **options)
    preload = " ".join(map(_runtime, ("libasan.so", "libubsan.so")))
    text = ",".join(["packed", "execute=sparse", *(f"{k}={v}" for k, v in options.items())])
    env = {**os.environ, "LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
    argv = [sys.executable, "-c", _SCRIPT, str(made), str(out), text]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "done\n"
