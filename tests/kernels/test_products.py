"""Products of every kind, type and instruction set against float64 and the portable unit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backends.packed.kernels.library import Isa, Library
from backends.packed.kernels.linear import CpuLinear, run_many
from backends.packed.values import ValueType
from tests.packed.make import BF16, Source, source

KINDS = [("ragged", 0, 0), ("nm", 2, 4), ("nm", 2, 8), ("nm", 5, 16), ("dense", 0, 0)]
SHAPES = [(1, 1), (16, 64), (17, 65), (40, 200), (33, 1100)]
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 16, 17, 64, 128]


def off(y: np.ndarray, want: np.ndarray) -> float:
    """||y - want|| / ||want||; 0 where both are 0."""
    size = float(np.linalg.norm(want))
    return float(np.linalg.norm(np.asarray(y, np.float64) - want)) / (size or 1.0)


def activations(m: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, columns)).astype(np.float32)


def rounded(x: np.ndarray, values: ValueType) -> np.ndarray:
    """x as the kernels multiply it, in float64."""
    return (x.astype(BF16) if values is ValueType.BF16 else x).astype(np.float64)


def quantised(x: np.ndarray, most: int) -> np.ndarray:
    """x by the rule for quantised activations: nearest code of `most`, one scale a row."""
    scale = np.abs(x).max(axis=1, keepdims=True).astype(np.float64) / most
    return np.rint(x / scale) * scale


def compare(made: Source, lib: Library, rows: list[int]) -> None:
    spec, parts, weight = made.spec, made.pack(), made.weight()
    integer = spec.values in (ValueType.INT8, ValueType.INT4)
    for isa in lib.isas():
        for precision in ("int8", "int16") if integer else ("int8", "fp32"):
            linear = CpuLinear.build(spec, parts, isa, precision=precision, lib=lib)
            assert np.array_equal(linear.unpack(), weight.astype(np.float32)), isa
            for m in rows:
                x = activations(m, spec.shape[1], m)
                most = 127 if precision == "int8" else 32512
                wide = x.astype(np.float64) if precision == "fp32" else rounded(x, spec.values)
                given = quantised(x, most) if integer else wide
                # 8-bit codes may round the other way where float32 meets a tie.
                assert off(linear(x), given @ weight.T) < (3e-4 if integer else 5e-7), (isa, m)


@pytest.mark.parametrize("values", list(ValueType))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}{kind[1]}:{kind[2]}")
def test_every_path(values: ValueType, kind: tuple, emulated: Library) -> None:
    for shape in SHAPES:
        for group in (0, 64, 128) if values.quantised else (0,):
            made = source(kind[0], values, shape, n=kind[1], m=kind[2], group=group)
            compare(made, emulated, [1, 3, 7] if shape != (40, 200) else ROWS)


@pytest.mark.parametrize("values", list(ValueType))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}{kind[1]}:{kind[2]}")
def test_native_paths(values: ValueType, kind: tuple, kernels: Library) -> None:
    compare(source(kind[0], values, (50, 300), n=kind[1], m=kind[2]), kernels, ROWS)


@pytest.mark.parametrize("density", [0.0, 0.002, 1.0])
@pytest.mark.parametrize("values", list(ValueType))
def test_empty_and_full(values: ValueType, density: float, each_build: Library) -> None:
    compare(source("ragged", values, (37, 190), density=density), each_build, [1, 5, 70])


def test_integer_paths_agree_bit_for_bit(each_build: Library) -> None:
    for precision in ("int8", "int16"):
        made = source("ragged", "int8", (48, 1700), density=0.9, group=128)
        x, parts = activations(6, 1700), made.pack()
        found = [
            CpuLinear.build(made.spec, parts, isa, precision=precision, lib=each_build)(x)
            for isa in each_build.isas()
        ]
        assert len(found) >= 2
        assert all(np.array_equal(found[0], each) for each in found[1:])


def test_largest_codes_do_not_overflow(each_build: Library) -> None:
    made = source("dense", "int8", (16, 4096))
    codes = np.full((16, 4096), 127, np.int8)
    made = Source(made.spec, codes, made.kept, np.ones((16, 1), BF16))
    x = np.full((2, 4096), 1.0, np.float32)
    for isa in each_build.isas():
        for precision in ("int8", "int16"):
            parts = made.pack()
            linear = CpuLinear.build(made.spec, parts, isa, precision=precision, lib=each_build)
            assert np.allclose(linear(x), 127.0 * 4096, rtol=1e-6), isa


def test_accuracy_of_quantised_activations(kernels: Library) -> None:
    """Against unquantised x, as the acceptance bounds are stated."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1024, 2048)).astype(np.float32)
    scales = (np.abs(weight).max(axis=1, keepdims=True) / 127 * 1.004).astype(BF16)
    codes = np.rint(weight / scales.astype(np.float32)).clip(-127, 127).astype(np.int8)
    plain = source("ragged", "int8", (1024, 2048))
    made = Source(plain.spec, codes, plain.kept, scales)
    x, want = activations(4, 2048), np.where(plain.kept, weight, 0).astype(np.float64)
    for precision, bound in (("int8", 1.5e-2), ("int16", 8e-3)):
        linear = CpuLinear.build(made.spec, made.pack(), precision=precision)
        assert off(linear(x), x.astype(np.float64) @ want.T) < bound


def test_torch_bfloat16_bias_and_batch(kernels: Library) -> None:
    bias = activations(1, 33, 3)[0]
    made, other = source("ragged", "bf16", (33, 130)), source("dense", "fp32", (70, 130))
    one = CpuLinear.build(made.spec, made.pack(), bias=bias)
    two = CpuLinear.build(other.spec, other.pack())
    x = activations(6, 130).reshape(2, 3, 130)
    first, second = run_many([one, two], x)
    assert first.shape == (2, 3, 33) and second.shape == (2, 3, 70)
    assert off(first, rounded(x, ValueType.BF16) @ made.weight().T + bias) < 5e-7
    assert np.array_equal(second, two(x))
    half = one(torch.from_numpy(x).bfloat16())
    assert half.dtype == torch.bfloat16 and half.shape == (2, 3, 33)
    assert torch.equal(half, torch.from_numpy(first).bfloat16())
    strided = torch.from_numpy(np.concatenate([x, x], axis=-1))[0, :, :130]
    # Three rows of x may go another way than six.
    assert off(one(strided).numpy(), first[0]) < 5e-7


def test_every_isa_here_is_tested(kernels: Library, emulated: Library) -> None:
    assert kernels.isas()[0] is Isa.PORTABLE
    assert set(kernels.isas()) <= set(emulated.isas())


GROUPS = [(v, g) for v in ValueType for g in ((0, 64, 192, 640) if v.quantised else (0,))]


@pytest.mark.parametrize(("values", "group"), GROUPS)
def test_strips(values: ValueType, group: int, each_build: Library) -> None:
    """Sparse enough for strips and lists: widths and groups that end within one."""
    for shape in ((33, 1100), (20, 257)):
        made = source("ragged", values, shape, density=0.2, group=group)
        compare(made, each_build, [1, 2, 3, 4, 5, 8, 9, 16, 40, 64, 70, 200])


@pytest.mark.parametrize(("n", "m"), [(2, 4), (2, 8), (1, 8), (3, 16)])
@pytest.mark.parametrize("values", ["bf16", "int8", "int4"])
def test_strips_of_nm(values: str, n: int, m: int, each_build: Library) -> None:
    compare(source("nm", values, (50, 700), n=n, m=m), each_build, [1, 4, 7, 16, 64])


def test_nm_by_tile_count_only(kernels: Library) -> None:
    """A mask with N:M's count in each tile but not in each group is read by its bits."""
    made = source("nm", "bf16", (16, 64), n=2, m=8)
    parts = made.pack()
    mask = parts["mask"].copy()
    mask.reshape(-1)[:2] = 0x0F, 0x00
    found = np.unpackbits(mask.reshape(-1)).sum()
    for i in range(2, 128):  # give or take bits until the tile has its 256 again
        if found == 256:
            break
        now = int(mask.reshape(-1)[i]).bit_count()
        mask.reshape(-1)[i] = (1 << (now + np.sign(256 - found))) - 1
        found = np.unpackbits(mask.reshape(-1)).sum()
    parts["mask"] = mask
    x = activations(2, 64)
    want, *others = (
        CpuLinear.build(made.spec, parts, isa, lib=kernels)(x) for isa in kernels.isas()
    )
    assert others and all(off(each, want) < 5e-7 for each in others)
