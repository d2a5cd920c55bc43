"""Triton kernels on the packed layout: y = x W^T, and decompression to a dense scratch.

The scheme is "load sparse, compute dense": masks and values travel from memory, a tile of
16 * BR rows x 64 columns is filled in registers, and the tensor cores multiply it whole.
Sources: Flash-LLM (Xia et al., VLDB 2023) for the scheme, SpInfer (EuroSys 2025) for bitmaps of
tiles; docs/formats/packed.md for the layout.

No atomics: split sums are added in a fixed order by `add_splits`, so a result depends on the
launch configuration alone. Only what Triton's interpreter can run is used, which excludes
libdevice and inline PTX. Casts to bfloat16 are the exception: the interpreter truncates them
and multiplies bfloat16 as integers, so under it launches ask for float32 (see launch.py).
"""

# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# Kernels are written in Triton's language, which Python's types do not describe.

from __future__ import annotations

import triton
import triton.language as tl

RAGGED, NM, DENSE = 0, 1, 2
FLOAT, INT8, INT4, FP8 = 0, 1, 2, 3
_DENSE = tl.constexpr(DENSE)
_RAGGED = tl.constexpr(RAGGED)
_INT4 = tl.constexpr(INT4)
_FP8 = tl.constexpr(FP8)


@triton.jit
def popcount(word):
    """Set bits of each uint32, as int32.

    By arithmetic, because libdevice's popc does not run in the interpreter. LLVM recognises this
    very form (AggressiveInstCombine, tryToRecognizePopCount) and emits one popc.b32.
    """
    pairs = word - ((word >> 1) & 0x55555555)
    nibbles = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    octets = (nibbles + (nibbles >> 4)) & 0x0F0F0F0F
    return ((octets * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def decode(raw, slot, CODE: tl.constexpr, COMPUTE: tl.constexpr):
    """Stored values or codes as COMPUTE, exactly: |code| <= 127 and e4m3 fit bfloat16 and float16.

    e4m3 by its bits, so that one kernel serves GPUs without that type: shifted into a float16
    the exponent is 8 too small (bias 15 for 7), which the product with 2^8 repairs, subnormals too.
    """
    if CODE == _INT4:
        nibble = (raw.to(tl.int32) >> ((slot & 1) * 4)) & 15
        value = ((nibble ^ 8) - 8).to(tl.float32)
    elif CODE == _FP8:
        bits = raw.to(tl.int32)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        value = half.to(tl.int16).to(tl.float16, bitcast=True) * 256.0
    else:
        value = raw
    return value.to(COMPUTE)


@triton.jit
def load_slots(values, base, slot, kept, CODE: tl.constexpr, COMPUTE: tl.constexpr):
    """Values at base (int64, even for int4) + slot (int32), zero where not kept."""
    if CODE == _INT4:
        raw = tl.load(values + (base >> 1) + (slot >> 1), mask=kept, other=0)
    else:
        raw = tl.load(values + base + slot, mask=kept, other=0)
    return tl.where(kept, decode(raw, slot, CODE, COMPUTE), 0.0)


@triton.jit
def sparse_tile(
    mask, values, offsets, start, blocks, tile, R, C,
    KIND: tl.constexpr, STEP: tl.constexpr, CODE: tl.constexpr, SLOTS: tl.constexpr,
    COMPUTE: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Tile `tile` of the row blocks `blocks` [BR], in natural order: [16 * BR, 64].

    One 32-bit mask word is one step of a warp: lane i has bit i, and finds its value at
    (tile's base) + (bits in the words before) + popcount(word & lanes below).
    """
    there = blocks < R
    place = blocks.to(tl.int64) * C + tile
    lane = tl.arange(0, 32)
    word = tl.load(mask + place[:, None] * 32 + lane[None, :], mask=there[:, None], other=0)
    word = word.to(tl.uint32, bitcast=True)
    count = popcount(word)
    before = tl.cumsum(count, axis=1) - count
    if KIND == _RAGGED:
        before += tl.load(offsets + place, mask=there, other=0)[:, None]
        base = start
    else:
        base = place * SLOTS
    one = tl.full((1, 1, 32), 1, tl.uint32)
    shift = lane.to(tl.uint32)[None, None, :]
    kept = ((word[:, :, None] >> shift) & 1) != 0
    slot = before[:, :, None] + popcount(word[:, :, None] & ((one << shift) - 1))
    tile3 = load_slots(values, base[:, None, None], slot, kept, CODE, COMPUTE)
    steps = tl.reshape(tile3, (BR, 64 // STEP, 16, STEP))
    return tl.reshape(tl.permute(steps, (0, 2, 1, 3)), (BR * 16, 64))


@triton.jit
def dense_tile(
    values, row, tile, out_features, in_features, CODE: tl.constexpr, COMPUTE: tl.constexpr
):
    """Columns 64 * tile ... of the rows `row` of a dense shard, zero outside the matrix."""
    column = tile * 64 + tl.arange(0, 64)
    inside = (row[:, None] < out_features) & (column[None, :] < in_features)
    pitch = in_features
    if CODE == _INT4:
        pitch = (in_features + 1) // 2 * 2
    base = row.to(tl.int64)[:, None] * pitch
    slot = tl.broadcast_to(column[None, :], inside.shape)
    return load_slots(values, base, slot, inside, CODE, COMPUTE)


@triton.jit
def any_tile(
    mask, values, offsets, start, first, tile, out_features, in_features,
    KIND: tl.constexpr, STEP: tl.constexpr, CODE: tl.constexpr, SLOTS: tl.constexpr,
    COMPUTE: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """[16 * BR, 64] weights from row block `first` and column tile `tile`, whatever the kind."""
    if KIND == _DENSE:
        row = first * 16 + tl.arange(0, BR * 16)
        weights = dense_tile(values, row, tile, out_features, in_features, CODE, COMPUTE)
    else:
        blocks = first + tl.arange(0, BR)
        R, C = (out_features + 15) // 16, (in_features + 63) // 64
        weights = sparse_tile(
            mask, values, offsets, start, blocks, tile, R, C, KIND, STEP, CODE, SLOTS, COMPUTE, BR
        )
    return weights


@triton.jit
def block_starts(starts, first, out_features, KIND: tl.constexpr, BR: tl.constexpr):
    """First slots of the row blocks (int64 [BR]); zeros where the kind computes them."""
    blocks = first + tl.arange(0, BR)
    start = blocks.to(tl.int64) * 0
    if KIND == _RAGGED:
        start = tl.load(starts + blocks, mask=blocks < (out_features + 15) // 16, other=0)
    return start


@triton.jit
def multiply(
    x, mask, values, offsets, starts, scales, bias, y,
    M, out_features, in_features, x_pitch, groups, tiles_per_group, tiles_per_split,
    KIND: tl.constexpr, STEP: tl.constexpr, CODE: tl.constexpr, SLOTS: tl.constexpr,
    SCALED: tl.constexpr, GROUPED: tl.constexpr, BIASED: tl.constexpr, SPLITS: tl.constexpr,
    COMPUTE: tl.constexpr, BR: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """y[m, n] = sum_k x[m, k] W[n, k] (+ bias[n]); with SPLITS > 1 y is [SPLITS, M, out] float32.

    Program (i, s, j): row blocks from i * BR, column tiles from s * tiles_per_split, rows of x
    from j * BM. The sum is float32; scales multiply after it (row) or each tile's part (group).
    """
    first = tl.program_id(0) * BR
    split = tl.program_id(1)
    m = tl.program_id(2) * BM + tl.arange(0, BM)
    row = first * 16 + tl.arange(0, BR * 16)
    start = block_starts(starts, first, out_features, KIND, BR)
    column = tl.arange(0, 64)
    total = tl.zeros((BR * 16, BM), tl.float32)
    begin = split * tiles_per_split
    end = tl.minimum(begin + tiles_per_split, (in_features + 63) // 64)
    for tile in range(begin, end):
        weights = any_tile(
            mask, values, offsets, start, first, tile, out_features, in_features,
            KIND, STEP, CODE, SLOTS, COMPUTE, BR,
        )  # fmt: skip
        k = tile * 64 + column
        inside = (k[:, None] < in_features) & (m[None, :] < M)
        right = tl.load(x + m[None, :].to(tl.int64) * x_pitch + k[:, None], mask=inside, other=0)
        part = tl.dot(weights, right.to(COMPUTE), input_precision="ieee")
        if GROUPED:
            at = row.to(tl.int64) * groups + tile // tiles_per_group
            scale = tl.load(scales + at, mask=row < out_features, other=0).to(tl.float32)
            total += part * scale[:, None]
        else:
            total += part
    if SCALED and not GROUPED:
        scale = tl.load(scales + row, mask=row < out_features, other=0).to(tl.float32)
        total *= scale[:, None]
    if BIASED and SPLITS == 1:
        total += tl.load(bias + row, mask=row < out_features, other=0).to(tl.float32)[:, None]
    line = (split * M + m).to(tl.int64)
    at = y + line[None, :] * out_features + row[:, None]
    inside = (row[:, None] < out_features) & (m[None, :] < M)
    tl.store(at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def add_splits(
    parts, bias, y, elements, out_features,
    SPLITS: tl.constexpr, BIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = parts[0] + parts[1] + ... (+ bias), in that order: what makes split sums repeatable."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(SPLITS):
        total += tl.load(parts + split * elements + at, mask=inside, other=0)
    if BIASED:
        total += tl.load(bias + at % out_features, mask=inside, other=0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def expand(
    mask, values, offsets, starts, scales, y, first_block, rows,
    out_features, in_features, groups, tiles_per_group,
    KIND: tl.constexpr, STEP: tl.constexpr, CODE: tl.constexpr, SLOTS: tl.constexpr,
    SCALED: tl.constexpr, COMPUTE: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """`rows` rows from 16 * first_block of W, times scales in float32, into y [rows, in]."""
    here = tl.program_id(0) * BR
    first = first_block + here
    tile = tl.program_id(1)
    start = block_starts(starts, first, out_features, KIND, BR)
    weights = any_tile(
        mask, values, offsets, start, first, tile, out_features, in_features,
        KIND, STEP, CODE, SLOTS, COMPUTE, BR,
    )  # fmt: skip
    row = here * 16 + tl.arange(0, BR * 16)
    column = tile * 64 + tl.arange(0, 64)
    inside = (row[:, None] < rows) & (column[None, :] < in_features)
    if SCALED:
        at = (first_block * 16 + row).to(tl.int64) * groups + tile // tiles_per_group
        scale = tl.load(scales + at, mask=row < rows, other=0).to(tl.float32)
        weights = weights.to(tl.float32) * scale[:, None]
    at = y + row.to(tl.int64)[:, None] * in_features + column[None, :]
    tl.store(at, weights.to(y.dtype.element_ty), mask=inside)
