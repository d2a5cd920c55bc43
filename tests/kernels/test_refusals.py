"""What the library refuses: lengths that lie, instruction sets that are not here, wrong x."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.packed.kernels import fallback, linear
from backends.packed.kernels.compile import Build
from backends.packed.kernels.library import ISA_VARIABLE, Isa, Library
from backends.packed.kernels.linear import CpuLinear, run_many
from exporter.errors import EngineUnfit, InputRefused
from tests.kernels.conftest import BUILDS, built
from tests.packed.make import source


@pytest.mark.parametrize("part", ["mask", "values", "starts", "scales"])
@pytest.mark.parametrize("values", ["bf16", "int8", "int4"])
def test_short_or_missing_parts(part: str, values: str, kernels: Library) -> None:
    made = source("ragged", values, (40, 200))
    parts = made.pack()
    if part not in parts:
        assert part == "scales"
        return
    for changed in (parts | {part: parts[part][:-1]}, {k: parts[k] for k in parts if k != part}):
        with pytest.raises(InputRefused):
            CpuLinear.build(made.spec, changed)


def test_a_bit_too_many(kernels: Library) -> None:
    for kind, n, m in (("ragged", 0, 0), ("nm", 2, 4)):
        made = source(kind, "bf16", (40, 200), n=n, m=m)
        parts = made.pack()
        parts["mask"] = parts["mask"].copy()
        parts["mask"][1, 2, 5] ^= 16
        with pytest.raises(InputRefused):
            CpuLinear.build(made.spec, parts)


def test_another_shape(kernels: Library) -> None:
    made = source("dense", "fp32", (40, 200))
    with pytest.raises(InputRefused):
        CpuLinear.build(replace(made.spec, shape=(40, 201), nnz=40 * 201), made.pack())


@pytest.mark.parametrize(("values", "byte"), [("int8", 0x80), ("int4", 0x18), ("fp8", 0xFF)])
def test_codes_that_are_none(values: str, byte: int, kernels: Library) -> None:
    made = source("nm", values, (16, 64), n=2, m=4)
    parts = made.pack()
    parts["values"] = parts["values"].copy()
    parts["values"].reshape(-1).view(np.uint8)[7] = byte
    with pytest.raises(InputRefused):
        CpuLinear.build(made.spec, parts)


def test_forced_instruction_set(kernels: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    made = source("ragged", "bf16", (16, 64))
    for isa in kernels.isas():
        monkeypatch.setenv(ISA_VARIABLE, isa.label)
        assert CpuLinear.build(made.spec, made.pack()).isa is isa
    for isa in set(Isa) - set(kernels.isas()):
        with pytest.raises(EngineUnfit):
            CpuLinear.build(made.spec, made.pack(), isa)
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    with pytest.raises(EngineUnfit, match="sse9"):
        CpuLinear.build(made.spec, made.pack())


def test_wrong_x_and_mixed_calls(kernels: Library) -> None:
    one, two = source("ragged", "bf16", (16, 64)), source("ragged", "bf16", (16, 128))
    built_one, built_two = (CpuLinear.build(each.spec, each.pack()) for each in (one, two))
    with pytest.raises(ValueError, match="64"):
        built_one(np.zeros((2, 65), np.float32))
    with pytest.raises(ValueError, match="width"):
        run_many([built_one, built_two], np.zeros((1, 64), np.float32))
    assert built_one(np.zeros((0, 64), np.float32)).shape == (0, 16)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Library:
        return Library(tmp_path / "none.so")

    monkeypatch.setattr(linear, "library", missing)
    made = source("ragged", "bf16", (33, 100))
    fallback._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="dense float32"):
        plain = fallback.build_linear(made.spec, made.pack())
    assert isinstance(plain, fallback.DenseLinear)
    x = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    assert np.allclose(plain(x), x @ made.weight().T, rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fallback.build_linear(made.spec, made.pack())


@pytest.mark.parametrize(("setting", "most"), [("1", 1), ("64", None), ("", None)])
def test_threads_of_a_process(setting: str, most: int | None, kernels: Library) -> None:
    code = "from backends.packed.kernels.library import library; print(library().threads)"
    env = os.environ | {"OMP_NUM_THREADS": setting}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == (most or len(os.sched_getaffinity(0)))


def test_threads_agree(kernels: Library) -> None:
    made = source("ragged", "bf16", (600, 500))
    x, before = np.random.default_rng(0).standard_normal((5, 500)).astype(np.float32), 0
    packed = CpuLinear.build(made.spec, made.pack())
    before = kernels.threads
    try:
        kernels.threads = 1
        alone = packed(x)
        kernels.threads = 2
        assert all(np.array_equal(packed(x), alone) for _ in range(200))
    finally:
        kernels.threads = before


@pytest.mark.slow
def test_fuzz_under_sanitisers() -> None:
    """SPARSE_EXPORT_FUZZ_SECONDS=300 for the long run."""
    driver = Path(__file__).with_name("fuzz.cpp")
    program = built(BUILDS / "fuzz", Build(sanitize=True, emulate=True, driver=driver))
    seconds = os.environ.get("SPARSE_EXPORT_FUZZ_SECONDS", "10")
    done = subprocess.run([program, seconds, "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "taken" in done.stdout
