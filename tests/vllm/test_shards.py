"""A rank's block of a shard is that block of the weight, and broken shards are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from backends.packed.torch_unpack import dense_torch
from backends.vllm.plugin.gather import Shard
from backends.vllm.plugin.piece import Piece
from backends.vllm.plugin.shards import LegacyShard, PackedShard, PlainShard
from exporter.errors import InputRefused
from tests.vllm.packing import How, nm, pack_weight

OUT, IN = 80, 384
HOWS = [
    How(),
    How(values="fp32"),
    How(values="int8"),
    How(values="int4", group=128),
    How(values="fp8"),
    How(values="fp16", density=0.0),
    nm(2, 4),
    nm(2, 8, "int8"),
    nm(1, 4, "int4", 128),
    nm(3, 16, "fp16"),
    How("dense"),
    How("dense", "int8"),
]
# Rows and columns of a rank: at tile edges, off them, one row, everything.
BLOCKS = [
    (0, 80, 0, 384),
    (16, 48, 0, 384),
    (0, 80, 128, 256),
    (24, 48, 0, 384),
    (40, 41, 0, 384),
    (0, 80, 160, 320),
    (0, 80, 363, 384),
]


def weight() -> torch.Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(5)).bfloat16()


def piece(block: tuple[int, int, int, int]) -> Piece:
    return Piece(*block, (OUT, IN))


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_blocks_of_every_kind(how: How) -> None:
    spec, parts, whole = pack_weight(weight(), how)
    shard = PackedShard("P", spec)
    for part, tensor in parts.items():
        shard.check_part(part, tensor)
    assert not shard.missing(parts)
    for block in BLOCKS:
        r0, r1, c0, c1 = block
        found = shard.dense(parts, piece(block), whole.dtype)
        assert torch.equal(found, whole[r0:r1, c0:c1]), block


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_blocks_come_right_into_the_rows_of_a_layer(how: How) -> None:
    spec, parts, whole = pack_weight(weight(), how)
    for block in BLOCKS:
        r0, r1, c0, c1 = block
        layer = torch.full((r1 - r0 + 3, c1 - c0), 7.0, dtype=whole.dtype)
        PackedShard("P", spec).fill(parts, piece(block), layer[1:-2])
        assert torch.equal(layer[1:-2], whole[r0:r1, c0:c1]), block
        assert bool((layer[0] == 7).all() and (layer[-2:] == 7).all()), block


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_blocks_that_stay_packed(how: How) -> None:
    spec, parts, whole = pack_weight(weight(), how)
    blocks = BLOCKS[:5] if how.group else BLOCKS  # a group cannot be cut through
    for block in blocks:
        r0, r1, c0, c1 = block
        small, kept = PackedShard("P", spec).keep(parts, piece(block), torch.bfloat16)
        assert small.shape == (r1 - r0, c1 - c0)
        found = dense_torch(small, kept, whole.dtype)
        assert torch.equal(found, whole[r0:r1, c0:c1]), block


def test_ranks_add_up_to_the_whole() -> None:
    spec, parts, whole = pack_weight(weight(), How(values="int8"))
    shard = PackedShard("P", spec)
    rows = [shard.dense(parts, piece((r, r + 20, 0, IN)), whole.dtype) for r in range(0, OUT, 20)]
    assert torch.equal(torch.cat(rows), whole)
    columns = [
        shard.dense(parts, piece((0, OUT, c, c + 96)), whole.dtype) for c in (0, 96, 192, 288)
    ]
    assert torch.equal(torch.cat(columns, dim=1), whole)


def test_what_is_kept_does_not_hold_the_file() -> None:
    spec, parts, _ = pack_weight(weight(), nm(2, 4))
    _, kept = PackedShard("P", spec).keep(parts, piece(BLOCKS[0]), torch.bfloat16)
    for part, tensor in kept.items():
        assert tensor.data_ptr() != parts[part].data_ptr()


def test_a_rank_reads_only_its_values() -> None:
    """Values outside the rank's tiles may be anything: they are not looked at."""
    spec, parts, whole = pack_weight(weight(), How())
    starts = parts["starts"]
    spoilt = parts["values"].clone()
    spoilt[: int(starts[1])] = float("nan")  # row block 0
    spoilt[int(starts[3]) :] = float("nan")  # row blocks 3 and 4
    found = PackedShard("P", spec).dense(
        {**parts, "values": spoilt}, piece((16, 48, 0, IN)), torch.bfloat16
    )
    assert torch.equal(found, whole[16:48])


@pytest.mark.parametrize("shard", [PackedShard("m.q", pack_weight(weight(), How())[0])])
def test_a_layer_of_another_shape(shard: Shard) -> None:
    _, parts, _ = pack_weight(weight(), How())
    with pytest.raises(InputRefused, match="tensor-shape.*m.q"):
        shard.dense(parts, Piece(0, 80, 0, 320, (80, 320)), torch.bfloat16)
    with pytest.raises(InputRefused, match="tensor-shape.*m.p"):
        PlainShard("m.p").dense({"weight": weight()}, Piece(0, 96, 0, IN, (96, IN)), torch.bfloat16)


def _broken(how: How, fault: str) -> tuple[PackedShard, dict[str, torch.Tensor], str]:
    """A shard with one fault, and the tensor that the refusal must name."""
    spec, parts, _ = pack_weight(weight(), how)
    parts = {part: tensor.clone() for part, tensor in parts.items()}
    part = fault.split(":")[0]
    if fault == "values:truncated":
        parts[part] = parts[part][:-1]
    elif fault == "values:nan":
        parts[part].view(-1)[7] = float("nan")
    elif fault == "values:dtype":
        parts[part] = parts[part].half()
    elif fault in ("offsets:wrong", "starts:wrong"):
        parts[part].view(-1)[2] += 1
    elif fault == "starts:negative":
        parts[part][1] = -5
    elif fault == "mask:too many":
        byte = int((parts[part].view(-1) != 255).nonzero()[0])
        parts[part].view(-1)[byte] = 255
    elif fault == "mask:shape":
        parts[part] = parts[part][:, :-1]
    elif fault == "mask:nnz":
        spec = replace(spec, nnz=spec.nnz - 1)
    elif fault in ("scales:nan", "scales:0"):
        parts[part].view(-1)[3] = float("nan") if fault == "scales:nan" else 0.0
    else:
        raise ValueError(fault)
    return PackedShard("m.down_proj", spec), parts, part


FAULTS = [
    (How(), "values:truncated"),
    (How(), "values:nan"),
    (How(), "values:dtype"),
    (How(), "offsets:wrong"),
    (How(), "starts:wrong"),
    (How(), "starts:negative"),
    (How(), "mask:too many"),
    (How(), "mask:shape"),
    (How(values="int4", group=128), "values:truncated"),
    (How(values="int4", group=128), "mask:nnz"),
    (How(values="int8"), "scales:nan"),
    (How(values="int8"), "scales:0"),
    (nm(2, 4), "values:truncated"),
    (nm(2, 4), "mask:too many"),
    (nm(2, 4), "values:nan"),
    (nm(2, 4, "int8"), "scales:nan"),
    (How("dense"), "values:nan"),
]


@pytest.mark.parametrize("ways", ["whole", "rows", "columns"])
@pytest.mark.parametrize(("how", "fault"), FAULTS, ids=str)
def test_faults_are_refused_with_the_tensor(how: How, fault: str, ways: str) -> None:
    """Whatever share of the weight a rank has, as long as the fault lies in it."""
    shard, parts, part = _broken(how, fault)
    block = {"whole": (0, 80, 0, 384), "rows": (0, 40, 0, 384), "columns": (0, 80, 0, 192)}[ways]
    if fault == "values:truncated" and ways != "whole":
        block = (40, 80, 0, 384) if ways == "rows" else (0, 80, 192, 384)
    with pytest.raises(InputRefused) as refusal:
        for name, tensor in parts.items():
            shard.check_part(name, tensor)
        shard.dense(parts, piece(block), torch.bfloat16)
    assert refusal.value.code == "packed-invalid"
    # Mask, index and values tell of one another: which is at fault nobody can know.
    alike = {"mask", "offsets", "starts", "values"} if "nan" not in fault else set[str]()
    assert refusal.value.tensor in {f"m.down_proj.{name}" for name in alike | {part}}


def test_legacy_faults_are_refused() -> None:
    shard = LegacyShard("m.q", False)
    parts = {
        "shape": torch.tensor([16, 32]),
        "compressed": torch.ones(16, 16, dtype=torch.bfloat16),
        "bitmask": torch.full((16, 4), 0b00110111, dtype=torch.uint8),
    }
    with pytest.raises(InputRefused, match="bitmask-invalid.*m.q"):
        shard.dense(parts, Piece(0, 16, 0, 32, (16, 32)), torch.bfloat16)


def test_plain_weights_are_kept_in_the_engines_type() -> None:
    plain = weight().float()
    block = piece((16, 48, 0, IN))
    spec, parts = PlainShard("P").keep({"weight": plain}, block, torch.bfloat16)
    assert (spec.kind, spec.values.value, spec.shape) == ("dense", "bf16", (32, IN))
    assert torch.equal(dense_torch(spec, parts, torch.bfloat16), plain[16:48].bfloat16())
    assert np.shares_memory(plain.numpy(), parts["values"].view(torch.int16).numpy()) is False
