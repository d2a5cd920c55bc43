"""The operator PackedLinear in onnxruntime against float64; what it does not take."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from backends.onnxruntime.session import ORT_ERRORS
from backends.packed.kernels.library import ISA_VARIABLE, Library
from backends.packed.values import ValueType
from tests.kernels.test_products import activations, off
from tests.onnxruntime.operator_graph import graph, multiply, session
from tests.packed.make import BF16, Source, source

SHAPES = [(1, 1), (16, 64), (17, 65), (40, 200), (33, 1100)]
ROWS = [1, 2, 5, 16, 130]


def wanted(made: Source, x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ made.weight().T


def right(made: Source, rows: list[int]) -> None:
    """With every instruction set of this machine, which the caller has named."""
    run = session(graph(made))
    for m in rows:
        x = activations(m, made.spec.shape[1], m)
        assert off(run.run(None, {"x": x})[0], wanted(made, x)) < 5e-7, (made.spec, m)


@pytest.mark.parametrize("values", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.9])
def test_products(
    values: str, density: float, kernels: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    for isa in kernels.isas():
        monkeypatch.setenv(ISA_VARIABLE, isa.label)
        for shape in SHAPES[1:]:
            made = source("ragged", values, shape, density=density)
            right(made, ROWS if shape == (40, 200) else [1, 7])


@pytest.mark.parametrize("values", ["fp32", "bf16"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (2, 8), (5, 16)])
def test_n_of_m(
    values: str, n: int, m: int, kernels: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    for isa in kernels.isas():
        monkeypatch.setenv(ISA_VARIABLE, isa.label)
        for shape in SHAPES:
            right(source("nm", values, shape, n=n, m=m), [1, 7])


@pytest.mark.parametrize("values", ["fp32", "bf16"])
def test_empty_rows_are_zero(
    values: str, kernels: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = source("ragged", values, (40, 200))
    kept = plain.kept.copy()
    kept[:17] = False  # a whole row block and one row more
    kept[:, 64:128] = False
    spec = type(plain.spec)("ragged", plain.spec.values, (40, 200), int(kept.sum()))
    made = Source(spec, plain.codes, kept, None)
    for isa in kernels.isas():
        monkeypatch.setenv(ISA_VARIABLE, isa.label)
        right(made, ROWS)
        assert not multiply(graph(made), activations(3, 200))[:, :17].any()


def test_any_number_of_axes(kernels: Library) -> None:
    made = source("ragged", "fp32", (33, 130))
    run = session(graph(made))
    for shape in [(130,), (2, 3, 130), (1, 1, 2, 130), (0, 130), (2, 0, 130)]:
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        y = run.run(None, {"x": x})[0]
        assert y.shape == (*shape[:-1], 33) and off(y, wanted(made, x)) < 5e-7


def test_threads_change_no_bit_and_runs_may_overlap(kernels: Library) -> None:
    before = kernels.threads
    made = source("ragged", "bf16", (500, 700))
    x = [activations(m, 700, m) for m in (1, 3, 40)]
    one, four = session(graph(made), 1), session(graph(made), 4)
    want = [one.run(None, {"x": each})[0] for each in x]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            found = list(pool.map(lambda each: four.run(None, {"x": each})[0], x))
            assert all(np.array_equal(a, b) for a, b in zip(found, want, strict=True))
    assert kernels.threads == before


RAGGED: dict[str, dict[str, Any]] = {
    "kind dense": {"attributes": {"kind": "dense"}},
    "kind unknown": {"attributes": {"kind": "a kind of a very long name"}},
    "no kind": {"attributes": {"kind": None}},
    "kind is a number": {"attributes": {"kind": 1}},
    "int8": {"attributes": {"values": "int8"}},
    "another type": {"attributes": {"values": "bf16"}},
    "no shape": {"attributes": {"shape": None}},
    "short shape": {"attributes": {"shape": [40]}},
    "long shape": {"attributes": {"shape": [40, 200, 1]}},
    "other shape": {"attributes": {"shape": [40, 300]}},
    "negative shape": {"attributes": {"shape": [-40, 200]}},
    "huge shape": {"attributes": {"shape": [1 << 62, 1 << 62]}},
    "fewer values": {"parts": {"values": np.zeros(5, np.float32)}},
    "values of float16": {"parts": {"values": np.zeros(2400, np.float16)}},
    "short mask": {"parts": {"mask": np.zeros((3, 4, 127), np.uint8)}},
    "empty mask": {"parts": {"mask": np.zeros((3, 4, 128), np.uint8)}},
    "starts that fall": {"parts": {"starts": np.array([0, 900, 100, 2400], np.int64)}},
    "values fed": {"fed": "values"},
    "mask fed": {"fed": "mask"},
    "starts fed": {"fed": "starts"},
}


@pytest.mark.parametrize("case", RAGGED)
def test_a_bad_node_is_refused(case: str, kernels: Library) -> None:
    made = source("ragged", "fp32", (40, 200))
    with pytest.raises(ORT_ERRORS):
        session(graph(made, **RAGGED[case]))


@pytest.mark.parametrize(
    "attributes", [{"n": 3}, {"m": 8}, {"n": -2}, {"m": 1 << 40}, {"n": None}, {"kind": "ragged"}]
)
def test_bad_n_of_m_is_refused(attributes: Mapping[str, Any], kernels: Library) -> None:
    made = source("nm", "bf16", (40, 200), n=2, m=4)
    with pytest.raises(ORT_ERRORS):
        session(graph(made, attributes=attributes))


def test_x_of_another_width_is_refused(kernels: Library) -> None:
    run = session(graph(source("ragged", "fp32", (40, 200))))
    for shape in [(3, 199), (), (200, 1)]:
        with pytest.raises(ORT_ERRORS, match="last axis"):
            run.run(None, {"x": np.zeros(shape, np.float32)})


def test_an_instruction_set_that_is_not_here_is_refused(
    kernels: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "neon")
    with pytest.raises(ORT_ERRORS, match="instruction set"):
        session(graph(source("ragged", "fp32", (40, 200))))


def test_values_are_those_of_their_type(kernels: Library) -> None:
    """float32 values are not rounded on the way, bfloat16 ones are as they were stored."""
    for values, one in ((ValueType.FP32, np.float32(1 + 2**-23)), (ValueType.BF16, BF16.type(1.5))):
        made = source("ragged", values, (16, 64))
        codes = np.full((16, 64), one, values.codes)
        made = Source(made.spec, codes, made.kept, None)
        y = multiply(graph(made), np.eye(64, dtype=np.float32))
        assert np.array_equal(y, made.weight().T.astype(np.float32))
