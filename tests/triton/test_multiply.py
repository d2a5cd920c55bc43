"""The product kernel in Triton's interpreter against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backends.packed.triton import launch
from backends.packed.triton.launch import Config
from backends.packed.values import ValueType
from tests.triton.cases import Case, check, make, rows

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
EVERY_NM = [(n, m) for m in (4, 8, 16) for n in range(1, m)]


def product(
    case: Case, m: int, dtype: torch.dtype = BF16, config: Config | None = None, biased: bool = True
) -> torch.Tensor:
    """Multiply and compare; returns y."""
    x = rows(case, m, dtype)
    bias = torch.linspace(-3, 3, case.spec.shape[0]).to(dtype) if biased else None
    y = launch.multiply(case.sparse, x, bias, config or Config())
    check(case, x, bias, y)
    return y


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("values", ValueType, ids=lambda v: v.value)
def test_operands_lose_nothing(values: ValueType, dtype: torch.dtype) -> None:
    """The interpreter multiplies float32 alone, so the type a GPU would take is asked for."""
    stored = {"bf16": BF16, "fp16": FP16, "fp32": FP32}.get(values.value, dtype)
    assert launch.operand_type(values, dtype) == (dtype if stored == dtype else FP32)


def test_the_interpreter_runs_the_kernels() -> None:
    """Else every test here would need a GPU: tests/conftest.py sets TRITON_INTERPRET."""
    assert launch.INTERPRETED


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("kind", ["ragged", "nm", "dense"])
@pytest.mark.parametrize("values", ValueType, ids=lambda v: v.value)
def test_every_value_type_of_every_kind(values: ValueType, kind: str, dtype: torch.dtype) -> None:
    product(make(kind, values, (37, 150), nm=(2, 4)), 3, dtype)


@pytest.mark.parametrize("values", ValueType, ids=lambda v: v.value)
def test_activations_of_half_precision(values: ValueType) -> None:
    product(make("ragged", values, (20, 70)), 2, FP16)


@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("kind", ["ragged", "nm", "dense"])
@pytest.mark.parametrize("values", [v for v in ValueType if v.quantised], ids=lambda v: v.value)
def test_scales_of_groups(values: ValueType, kind: str, group: int) -> None:
    product(make(kind, values, (20, 200), nm=(2, 4), group=group), 2)


@pytest.mark.parametrize(("n", "m"), EVERY_NM)
def test_every_n_of_m(n: int, m: int) -> None:
    values = list(ValueType)[(n + m) % len(ValueType)]
    product(make("nm", values, (18, 68), nm=(n, m)), 2)


@pytest.mark.parametrize("m", [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64])
def test_every_number_of_rows(m: int) -> None:
    product(make("ragged", ValueType.BF16, (19, 90)), m)


def test_more_rows_than_it_is_made_for() -> None:
    product(make("ragged", ValueType.INT4, (19, 90)), 130)


def test_no_rows_at_all() -> None:
    y = launch.multiply(
        make("ragged", ValueType.BF16, (19, 90)).sparse, torch.empty(0, 90), None, Config()
    )
    assert y.shape == (0, 19)


SHAPES = [(1, 1), (1, 65), (15, 63), (16, 64), (17, 65), (33, 128), (48, 191), (5, 300), (100, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_edges(shape: tuple[int, int]) -> None:
    seed = sum(shape)
    values = list(ValueType)[seed % len(ValueType)]
    product(make("ragged", values, shape, seed=seed), 4)
    product(make("nm", values, shape, nm=(2, 4), seed=seed), 4)
    product(make("dense", ValueType.INT4, shape), 4)  # odd rows end in half a byte


@pytest.mark.parametrize("seed", range(8))
def test_random_linears(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 80)), int(rng.integers(1, 260))
    kind = ("ragged", "nm", "dense")[rng.integers(3)]
    values = list(ValueType)[rng.integers(6)]
    nm = EVERY_NM[rng.integers(len(EVERY_NM))]
    group = int(rng.choice([0, 64, 128]))
    case = make(kind, values, shape, float(rng.random()), nm, group, seed)
    config = Config(int(rng.choice([1, 2, 4])), int(rng.integers(1, 6)))
    product(case, int(rng.integers(1, 65)), BF16, config, bool(rng.integers(2)))


@pytest.mark.parametrize("values", [ValueType.BF16, ValueType.INT4], ids=lambda v: v.value)
def test_empty_tiles_and_rows(values: ValueType) -> None:
    kept = np.random.default_rng(1).random((50, 200)) < 0.5
    kept[16:32] = False  # a row block without a value
    kept[:, 64:128] = False  # a column of tiles without one
    kept[3] = kept[49] = False
    y = product(make("ragged", values, (50, 200), kept), 2, biased=False)
    assert not y[:, 16:32].any() and not y[:, 3].any()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_and_everything_kept(share: float) -> None:
    product(make("ragged", ValueType.BF16, (20, 70), share), 2)
    product(make("ragged", ValueType.INT4, (20, 70), share), 2)


@pytest.mark.parametrize("splits", [1, 2, 3, 4, 9])
def test_splits_of_the_input(splits: int) -> None:
    case = make("ragged", ValueType.INT8, (20, 250), group=128)
    product(case, 3, config=Config(1, splits))


def test_split_sums_repeat_bit_for_bit() -> None:
    case = make("ragged", ValueType.BF16, (20, 250))
    x = rows(case, 3, FP32)
    first, second = (launch.multiply(case.sparse, x, None, Config(2, 4)) for _ in range(2))
    assert torch.equal(first, second)


def test_rows_with_a_pitch() -> None:
    case = make("ragged", ValueType.BF16, (20, 70))
    x = torch.cat([rows(case, 3, BF16), torch.full((3, 9), float("nan"), dtype=BF16)], dim=1)[
        :, :70
    ]
    check(case, x, None, launch.multiply(case.sparse, x, None, Config()))


def test_values_past_the_end_are_never_read() -> None:
    """Slots of what is not kept may lie past the values: a NaN there must not come through."""
    case = make("ragged", ValueType.FP32, (20, 70))
    padded = torch.cat([case.parts["values"], torch.full((4096,), float("nan"))])
    parts = {**case.parts, "values": padded}
    x = rows(case, 2, FP32)
    other = Case(case.spec, parts, case.weight)
    check(case, x, None, launch.multiply(other.sparse, x, None, Config()))
