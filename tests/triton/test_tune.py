"""What is chosen, with the clock and the device's abilities put in place of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.runtime.errors import OutOfResources

from backends.packed import gpu_tune
from backends.packed.gpu import GpuLinear
from backends.packed.gpu_tune import ROWS, Memory, Tuner
from backends.packed.triton import half, ops
from backends.packed.triton.plan import ANY, Path
from backends.packed.values import ValueType
from tests.triton.cases import Case, check, make, rows

BF16 = torch.bfloat16
CPU = torch.device("cpu")


class Clock:
    """A timer that knows which path it times, and answers from a table of microseconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: dict[Path, float]) -> None:
        self.times, self.calls = times, 0
        self.rows: list[int] = []
        self.last: tuple[Path, int] = (Path.DENSE, 0)
        run = ops.run

        def watched(path: Path, args: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.last = path, x.shape[0]
            # The decompressed weight stands in: these tests are about choices.
            return run(Path.DENSE, (), x, *rest)

        monkeypatch.setattr(ops, "run", watched)

    def __call__(self, call: Callable[[], torch.Tensor]) -> float:
        self.calls += 1
        call()
        path, m = self.last
        self.rows.append(m)
        if path is Path.TRITON:  # slower with every row, so that it wins at decode alone
            return self.times[path] * m
        return self.times[path]


def later_is_faster() -> Callable[[Callable[[], torch.Tensor]], float]:
    """A timer by which dense, which is tried first, loses to whatever is not refused."""
    times = count(1000, -1)
    return lambda call: float(next(times))


def build(case: Case, tuner: Tuner, memory: Memory = "fast") -> GpuLinear:
    return GpuLinear.build(
        case.spec, case.parts, dtype=BF16, device=CPU, tuner=tuner, memory=memory
    )


@pytest.fixture
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuSPARSELt's compression, which keeps the weight as it is."""
    monkeypatch.setattr(half, "compress", lambda weight: weight.clone())  # pyright: ignore


def paths(linear: GpuLinear) -> list[Path]:
    return [step.path for step in linear.plan.steps]


def test_the_kernel_at_decode_and_dense_above(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {Path.DENSE: 100, Path.TRITON: 10})
    linear = build(make("ragged", ValueType.BF16, (37, 130)), Tuner(clock, True, False, 8))
    assert paths(linear) == [Path.TRITON, Path.TRITON, *[Path.DENSE] * 4]
    assert [step.rows for step in linear.plan.steps] == list(ROWS)
    assert set(clock.rows) == {1, 8, 16, 32, 64, 512}


def test_dense_alone_frees_the_packed_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {Path.DENSE: 1, Path.TRITON: 10})
    linear = build(make("ragged", ValueType.BF16, (37, 130)), Tuner(clock, True, False, 8))
    assert set(paths(linear)) == {Path.DENSE}
    assert linear.nbytes == 37 * 130 * 2


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("path", [Path.HALF, Path.DENSE])
def test_one_way_for_all_rows_keeps_one_form(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    clock = Clock(monkeypatch, {Path.DENSE: 5, Path.TRITON: 10, Path.HALF: 7} | {path: 1})
    tuner = Tuner(clock, True, True, 8, lambda packed, x: 0)
    linear = build(make("nm", ValueType.BF16, (32, 64), nm=(2, 4)), tuner)
    assert set(paths(linear)) == {path}
    assert [tensor.numel() for tensor in linear.tensors[:7]].count(0) == 6


def test_low_memory_keeps_no_dense_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {Path.TRITON: 10, Path.SLABS: 50})
    case = make("ragged", ValueType.BF16, (37, 130))
    linear = build(case, Tuner(clock, True, False, 8), "low")
    assert paths(linear) == [*[Path.TRITON] * 5, Path.SLABS]
    assert linear.nbytes == sum(tensor.nbytes for tensor in case.parts.values())


def test_low_memory_needs_the_kernels() -> None:
    with pytest.raises(ValueError, match="memory=low"):
        build(make("ragged", ValueType.BF16, (20, 70)), Tuner(None, False, False, 8), "low")


@pytest.mark.usefixtures("_library")
def test_half_where_it_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {Path.DENSE: 100, Path.TRITON: 10, Path.HALF: 70})
    tuner = Tuner(clock, True, True, 8, search=lambda packed, x: x.shape[0])
    linear = build(make("nm", ValueType.BF16, (32, 64), nm=(2, 4)), tuner)
    assert paths(linear) == [Path.TRITON, *[Path.HALF] * 5]
    assert [step.args for step in linear.plan.steps[1:]] == [(8,), (16,), (32,), (64,), (512,)]


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize(("n", "m", "shape"), [(3, 4, (32, 64)), (2, 4, (20, 64))])
def test_half_is_not_tried_where_it_cannot_be(
    monkeypatch: pytest.MonkeyPatch, n: int, m: int, shape: tuple[int, int]
) -> None:
    clock = Clock(monkeypatch, {Path.DENSE: 100, Path.TRITON: 200, Path.HALF: 1})
    tuner = Tuner(clock, True, True, 8, search=lambda packed, x: 0)
    linear = build(make("nm", ValueType.BF16, shape, nm=(n, m)), tuner)
    assert Path.HALF not in paths(linear)


@pytest.mark.usefixtures("_library")
def test_a_search_that_fails_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(packed: torch.Tensor, x: torch.Tensor) -> int:
        raise RuntimeError("no algorithm for this shape")

    clock = Clock(monkeypatch, {Path.DENSE: 5, Path.TRITON: 10, Path.HALF: 1})
    tuner = Tuner(clock, True, True, 8, search)
    linear = build(make("nm", ValueType.BF16, (32, 64), nm=(2, 4)), tuner)
    assert set(paths(linear)) == {Path.DENSE}
    assert "no algorithm for this shape" in str(linear.plan)


def test_a_compression_that_fails_is_logged_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[torch.Tensor] = []

    def compress(weight: torch.Tensor) -> torch.Tensor:
        calls.append(weight)
        raise RuntimeError("cuSPARSELt is not supported on this device")

    monkeypatch.setattr(half, "compress", compress)
    tuner = Tuner(Clock(monkeypatch, {Path.DENSE: 5, Path.TRITON: 10}), True, True, 8)
    for seed in (1, 2):
        case = make("nm", ValueType.BF16, (32, 64), nm=(2, 4), seed=seed)
        assert set(paths(build(case, tuner))) == {Path.DENSE}
    assert len(calls) == 1 and "not supported on this device" in caplog.text


@pytest.mark.parametrize(
    ("capability", "installed", "able"),
    [((9, 0), True, True), ((8, 0), True, True), ((7, 5), True, False), ((9, 0), False, False)],
)
def test_what_a_device_can_do(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], installed: bool, able: bool
) -> None:
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(gpu_tune, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(half, "available", lambda: True)
    monkeypatch.setattr("triton.testing.do_bench", lambda call, **options: 0.25)
    tuner = Tuner.of_device(torch.device("cuda"))
    assert (tuner.triton, tuner.sparse24, tuner.processors) == (able, able, 132)
    assert (tuner.timer is not None) == able
    if tuner.timer:
        assert tuner.timer(lambda: torch.empty(0)) == 250.0  # milliseconds to microseconds


def test_a_wrong_or_failing_candidate_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = ops.run

    def broken(path: Path, args: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if path is Path.TRITON and args[0] == 1:
            raise OutOfResources(300_000, 232_448, "shared memory")
        y = run(Path.DENSE, (), x, *rest)
        return y * 1.5 if path is Path.TRITON else y

    monkeypatch.setattr(ops, "run", broken)
    tuner = Tuner(later_is_faster(), True, False, 8)
    plan = build(make("ragged", ValueType.BF16, (37, 130)), tuner).plan
    assert {step.path for step in plan.steps} == {Path.DENSE}
    assert "wrong by" in str(plan) and "out of resource: shared memory" in str(plan)


def test_not_a_number_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ops.run

    def broken(path: Path, args: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        y = run(Path.DENSE, (), x, *rest)
        return y * float("nan") if path is Path.TRITON else y

    monkeypatch.setattr(ops, "run", broken)
    tuner = Tuner(later_is_faster(), True, False, 8)
    linear = build(make("ragged", ValueType.BF16, (37, 130)), tuner)
    assert set(paths(linear)) == {Path.DENSE}


def test_equal_linears_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {Path.DENSE: 100, Path.TRITON: 10})
    tuner = Tuner(clock, True, False, 8)
    first = build(make("ragged", ValueType.BF16, (37, 130), seed=1), tuner)
    calls = clock.calls
    assert build(make("ragged", ValueType.BF16, (37, 130), seed=2), tuner).plan is first.plan
    assert clock.calls == calls > 0
    build(make("ragged", ValueType.BF16, (37, 130), 0.9), tuner)  # another density
    assert clock.calls == 2 * calls
    build(make("ragged", ValueType.INT8, (37, 130)), tuner)  # another type
    assert clock.calls == 3 * calls


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_without_a_clock_nothing_is_measured(memory: Memory) -> None:
    case = make("ragged", ValueType.BF16, (37, 130))
    linear = build(case, Tuner(None, True, False, 8), memory)
    want = [Path.DENSE] if memory == "fast" else [Path.TRITON, Path.SLABS]
    assert paths(linear) == want
    x = rows(case, 2, BF16)
    check(case, x, None, linear(x))
    assert "not measured" in str(linear)


def test_the_input_is_split_to_fill_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[int, ...]] = set()
    run = ops.run

    def watched(path: Path, args: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if path is Path.TRITON:
            seen.add(tuple(args))
        return run(Path.DENSE, (), x, *rest)

    monkeypatch.setattr(ops, "run", watched)
    build(make("ragged", ValueType.BF16, (64, 512)), Tuner(lambda call: 1.0, True, False, 8))
    # 4 row blocks and 8 column tiles: 2 * 8 programs wanted.
    assert {(b, s) for b, s, *_ in seen} == {(1, 4), (1, 1), (2, 8), (2, 1), (4, 8), (4, 1)}


def test_the_decision_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {Path.DENSE: 100, Path.TRITON: 10})
    linear = build(make("ragged", ValueType.BF16, (37, 130)), Tuner(clock, True, False, 8))
    first = str(linear).splitlines()[1]
    assert first.startswith("M <= 1: triton[") and "dense 100.0 us" in first
    assert "bytes on the device" in str(linear)
    assert linear.plan.steps[-1].rows == ANY
