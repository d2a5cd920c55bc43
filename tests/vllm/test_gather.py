"""Parts in any order, each shard handed on once; nothing twice, nothing missing, nothing else."""

from __future__ import annotations

import subprocess
import sys
import weakref
from itertools import permutations
from typing import Any

import pytest
import torch

from backends.vllm.plugin.gather import Gather, Tensors
from backends.vllm.plugin.piece import Piece, column_piece, kv_piece, row_piece
from backends.vllm.plugin.shards import LegacyShard, PackedShard, PlainShard
from exporter.errors import InputRefused
from tests.vllm.packing import How, nm, pack_weight

WHOLE = column_piece(40, 100, 0, 1)


def weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(40, 100, generator=torch.Generator().manual_seed(seed)).bfloat16()


class Taken(list[tuple[int, torch.Tensor]]):
    """What a gather handed on, decompressed."""

    def __init__(self, *shards: Any) -> None:
        super().__init__()
        self.gather = Gather(shards, self.take)

    def take(self, index: int, parts: Tensors, piece: Piece) -> None:
        dense = self.gather.shards[index].dense(parts, piece, torch.bfloat16)
        self.append((index, dense))


@pytest.mark.parametrize("order", list(permutations(["mask", "values", "offsets", "starts"])))
def test_parts_come_in_any_order(order: tuple[str, ...]) -> None:
    spec, parts, dense = pack_weight(weight(), How())
    taken = Taken(PackedShard("P", spec))
    for part in order:
        assert not taken
        taken.gather.add(0, part, parts[part], WHOLE)
    ((_, found),) = taken
    assert torch.equal(found, dense)
    taken.gather.close()


def test_shards_mix_kinds_and_come_interleaved() -> None:
    ragged, parts, first = pack_weight(weight(1), How(values="int8"))
    some, nm_parts, second = pack_weight(weight(2), nm(2, 4))
    taken = Taken(PackedShard("q", ragged), PackedShard("k", some), PlainShard("v"))
    taken.gather.add(1, "mask", nm_parts["mask"], WHOLE)
    taken.gather.add(0, "starts", parts["starts"], WHOLE)
    taken.gather.add(2, "weight", weight(3), WHOLE)
    taken.gather.add(1, "values", nm_parts["values"], WHOLE)
    for part in ("values", "mask", "scales", "offsets"):
        taken.gather.add(0, part, parts[part], WHOLE)
    assert [index for index, _ in taken] == [2, 1, 0]
    found = dict(taken)
    assert torch.equal(found[0], first.bfloat16())
    assert torch.equal(found[1], second)
    assert torch.equal(found[2], weight(3))
    taken.gather.close()


def test_a_loaders_buffer_may_be_used_again() -> None:
    spec, parts, dense = pack_weight(weight(), nm(2, 8))
    taken = Taken(PackedShard("P", spec))
    buffer = parts["mask"].clone()
    taken.gather.add(0, "mask", buffer, WHOLE)
    buffer.zero_()
    taken.gather.add(0, "values", parts["values"], WHOLE)
    assert torch.equal(taken[0][1], dense)


def test_what_is_missing_is_named() -> None:
    spec, parts, _ = pack_weight(weight(), How())
    taken = Taken(PackedShard("a.q", spec), PlainShard("a.k"))
    for part in ("mask", "offsets", "values"):
        taken.gather.add(0, part, parts[part], WHOLE)
    with pytest.raises(InputRefused) as refusal:
        taken.gather.close()
    assert (refusal.value.code, refusal.value.tensor) == ("tensor-missing", "a.q.starts")


def test_a_shard_of_which_nothing_came() -> None:
    taken = Taken(PlainShard("a.q"), PlainShard("a.k"))
    taken.gather.add(0, "weight", weight(), WHOLE)
    with pytest.raises(InputRefused) as refusal:
        taken.gather.close()
    assert (refusal.value.code, refusal.value.tensor) == ("tensor-missing", "a.k.weight")


def test_random_weights_come_from_no_checkpoint() -> None:
    Taken(PlainShard("a.q")).gather.close(dummy=True)


def test_what_is_closed_holds_no_weight_and_takes_none() -> None:
    taken = Taken(PlainShard("P"))
    gather, alive = taken.gather, weakref.ref(taken)
    gather.add(0, "weight", weight(), WHOLE)
    del taken
    assert alive() is not None
    gather.close()
    assert alive() is None
    with pytest.raises(InputRefused, match="loaded before"):
        gather.add(0, "weight", weight(1), WHOLE)


def test_nothing_comes_twice() -> None:
    spec, parts, _ = pack_weight(weight(), nm(2, 4))
    taken = Taken(PackedShard("P", spec))
    taken.gather.add(0, "mask", parts["mask"], WHOLE)
    with pytest.raises(InputRefused, match="tensor-duplicate"):
        taken.gather.add(0, "mask", parts["mask"], WHOLE)
    taken.gather.add(0, "values", parts["values"], WHOLE)
    with pytest.raises(InputRefused, match="complete without it"):
        taken.gather.add(0, "values", parts["values"], WHOLE)


@pytest.mark.parametrize("part", ["offsets", "scales", "weight", "compressed"])
def test_a_part_of_another_kind_is_refused(part: str) -> None:
    spec, parts, _ = pack_weight(weight(), nm(2, 4))
    taken = Taken(PackedShard("P", spec))
    with pytest.raises(InputRefused, match="tensor-unexpected.*P"):
        taken.gather.add(0, part, parts["mask"], WHOLE)


def test_packed_parts_of_a_plain_module_are_refused() -> None:
    taken = Taken(PlainShard("P"))
    with pytest.raises(InputRefused, match="not packed, by config"):
        taken.gather.add(0, "values", weight(), WHOLE)


@pytest.mark.parametrize("form", ["2:4", "unstructured", "plain"])
def test_a_legacy_shard_shows_in_its_tensors_what_it_is(form: str) -> None:
    spec, _, dense = pack_weight(weight(), nm(2, 4) if form == "2:4" else How())
    kept = dense != 0
    bits = torch.nn.functional.pad(kept, (0, 4)).view(40, -1, 8).to(torch.uint8)
    bitmask = (bits << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    parts = {
        "shape": torch.tensor([40, 100]),
        "compressed": dense[kept].view(40, 50) if form == "2:4" else dense[kept],
        "bitmask": bitmask,
    }
    if form == "unstructured":
        parts["row_offsets"] = kept.sum(1).cumsum(0) - kept.sum(1)
    if form == "plain":
        parts = {"weight": dense}
    taken = Taken(LegacyShard("P", form != "2:4"))
    for part, tensor in parts.items():
        taken.gather.add(0, part, tensor, WHOLE)
    assert torch.equal(taken[0][1], dense)
    assert spec.shape == (40, 100)


def test_row_offsets_of_a_2_4_checkpoint_are_refused() -> None:
    taken = Taken(LegacyShard("P", False))
    with pytest.raises(InputRefused, match="tensor-unexpected"):
        taken.gather.add(0, "row_offsets", torch.zeros(40, dtype=torch.int64), WHOLE)


def test_pieces() -> None:
    # 8 query heads and 2 key-value heads of 16 rows on 4 ranks: ranks 2 and 3 share a head.
    assert column_piece(32, 100, 3, 4) == Piece(96, 128, 0, 100, (128, 100))
    assert kv_piece(16, 100, 3, 4, 2, 32) == Piece(16, 32, 0, 100, (32, 100), 32)
    assert row_piece(40, 25, 3, 4) == Piece(0, 40, 75, 100, (40, 100))
    assert WHOLE.whole and not column_piece(32, 100, 0, 4).whole


def test_the_plugin_imports_nothing_until_it_is_called() -> None:
    program = "import sys, backends.vllm.plugin; print({'torch', 'vllm', 'numpy'} & {*sys.modules})"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
