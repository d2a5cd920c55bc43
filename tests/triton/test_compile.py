"""The kernels compile to machine code for real GPUs, though none is here to run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = 48 * 1024  # bytes every GPU gives a block without being asked
Report = dict[str, dict[str, int]]


@pytest.fixture(scope="module", params=[80, 90])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    script = Path(__file__).with_name("compile_offline.py")
    command = [sys.executable, "-m", f"tests.triton.{script.stem}", str(request.param)]
    done = subprocess.run(
        command, env=env, cwd=script.parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_variant_compiles_to_what_it_should(report: Report) -> None:
    assert len(report) == 17 and all(found["cubin"] for found in report.values())
    for name, found in report.items():
        kernel, values, kind = (*name.split(), "", "")[:3]
        # Popcounts by arithmetic must have become the instruction.
        assert (found["popc"] > 0) == (kind in ("ragged", "nm")), name
        # Tensor cores, but for float32, which is multiplied exactly instead.
        assert (found["mma"] > 0) == (kernel == "multiply" and values != "fp32"), name
        assert found["atom"] == 0, f"{name} is not repeatable"
        assert found["spilled"] == 0, f"{name} spills registers"
        assert found["shared"] <= SHARED, name
