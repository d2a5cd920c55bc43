"""docs/formats/packed.md: each numbered sentence has a test; its tables and code are true."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from backends.packed.check import check
from backends.packed.slow import read
from backends.packed.spec import PackedLinear, PackedModel, ValueType
from exporter.sparsity.mask import Mask
from tests.packed.make import source

PAGE = (Path(__file__).parents[2] / "docs" / "formats" / "packed.md").read_text()

# Rule -> module and tests that fail when it is broken.
RULES = {
    1: "page: test_the_example_of_config_json; spec: test_a_model_is_read_and_written_alike",
    2: "spec: test_another_version_is_refused_as_such",
    3: "spec: test_a_model_is_read_and_written_alike",
    4: "spec: test_any_entry_is_read_and_written_alike",
    5: "spec: test_an_entry_that_is_not_right_is_refused test_an_entry_that_lacks_a_key_is_refused"
    " test_a_model_that_is_not_right_is_refused",
    6: "spec: test_an_entry_that_is_not_right_is_refused",
    7: "check: test_bits_that_do_not_make_up_nnz test_nnz_that_is_not_that_of_the_bits",
    8: "spec: test_keys_of_another_kind_and_impossible_counts_are_refused",
    9: "check: test_more_values_than_nnz_tells;"
    "spec: test_keys_of_another_kind_and_impossible_counts_are_refused",
    10: "page: test_the_table_of_tensors; check: test_a_part_that_does_not_belong"
    " test_a_part_that_is_missing_short_long_or_of_another_type",
    11: "readers: test_any_linear_survives; page: test_the_table_of_value_types",
    12: "check: test_values_that_no_writer_makes test_the_code_minus_8",
    13: "pack: test_codes_of_a_nibble",
    14: "check: test_a_padding_nibble_that_is_not_0",
    15: "order: test_the_formula_holds_for_every_element",
    16: "order: test_one_word_of_the_mask_is_one_step_of_a_warp",
    17: "order: test_one_step_is_one_register_of_16_rows",
    18: "pack: test_one_block_is_packed_alone; readers: test_any_linear_survives",
    19: "readers: test_any_linear_survives; page: test_a_kept_zero_has_its_bit",
    20: "check: test_a_bit_outside_the_matrix",
    21: "pack: test_the_index_follows_from_the_mask_alone;"
    "check: test_starts_that_do_not_follow_from_the_mask",
    22: "pack: test_the_index_follows_from_the_mask_alone;"
    "check: test_offsets_that_do_not_follow_from_the_mask",
    23: "pack: test_int4_tiles_begin_at_a_byte; check: test_a_padding_nibble_that_is_not_0",
    24: "check: test_a_group_with_another_count test_a_bit_that_moved_to_the_next_group;"
    "pack: test_padding_of_nm_is_filled_like_the_rest",
    25: "pack: test_fillers_take_the_lowest_free_places_of_their_group_and_hold_0",
    26: "check: test_a_value_outside_the_matrix test_a_code_outside_the_matrix",
    27: "readers: test_any_linear_survives; check: test_the_largest_and_the_least_scale",
    28: "readers: test_any_linear_survives; spec: test_an_entry_that_is_not_right_is_refused",
    29: "check: test_scales_that_are_no_scales test_the_largest_and_the_least_scale",
    30: "page: test_zeros_are_quantised_with_scale_1",
    31: "check: test_a_flipped_bit_is_refused_or_changes_nothing_but_a_value",
    32: "cut: test_slices_at_tile_edges_add_up_to_the_whole"
    " test_a_cut_through_a_mapped_file_touches_only_its_slice",
    33: "cut: test_scales_of_a_column_cut",
    34: "cut: test_slices_elsewhere_are_valid_and_right"
    " test_nm_stays_nm_where_groups_stay_whole_and_becomes_ragged_elsewhere",
    35: "cut: test_slices_elsewhere_are_valid_and_right test_scales_of_a_column_cut",
    36: "cut: test_slices_at_tile_edges_add_up_to_the_whole",
}


def test_every_numbered_sentence_has_a_test() -> None:
    numbers = [int(n) for n in re.findall(r"(?m)^(\d+)\. ", PAGE)]
    assert numbers == list(range(1, len(numbers) + 1)) == list(RULES)
    for tests in RULES.values():
        for entry in tests.split(";"):
            module, names = entry.split(":")
            found = importlib.import_module(f"tests.packed.test_{module.strip()}")
            assert names.split() and all(callable(getattr(found, name)) for name in names.split())


def test_the_example_of_config_json() -> None:
    text = re.search(r"```json\n(.*?)```", PAGE, re.S)
    assert text is not None
    raw = json.loads(text[1])
    assert PackedModel.parse(raw).to_json() == raw


def table(heading: str) -> list[list[str]]:
    """Cells of the rows below the table's head that begins with `heading`."""
    lines = PAGE[PAGE.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_value_types() -> None:
    rows = table("| `values` |")
    assert [row[0].strip("`") for row in rows] == [v.value for v in ValueType]
    for name, dtype, _, step, quantised in rows:
        values = ValueType(name.strip("`"))
        assert values.dtype.value == dtype.strip("`")
        assert values.step == int(step) and values.quantised == (quantised == "yes")


@pytest.mark.parametrize("kind", ["ragged", "nm", "dense"])
@pytest.mark.parametrize("values", list(ValueType))
def test_the_table_of_tensors(kind, values) -> None:
    """Each row's shape, evaluated for a linear of odd extents."""
    n, m = (3, 8) if kind == "nm" else (0, 0)
    nnz = 37 * 151 if kind == "dense" else 100
    spec = PackedLinear(kind, values, (37, 151), nnz, n, m)
    want = {}
    for tensor, kinds, dtype, shapes in table("| tensor |"):
        if kind not in kinds and not (kinds.startswith("any") and values.quantised):
            continue
        shape, _, int4 = shapes.partition("; int4: ")
        if int4 and values is ValueType.INT4:
            shape = int4 if int4.startswith("[") else shape.replace("1024", "512")
        part = tensor.strip("`").removeprefix("P.")
        extents = tuple(NUMBERS[extent] for extent in shape.strip("[]").split(", "))
        named = values.dtype.value if dtype == "by value type" else dtype.strip("`")
        want[part] = (named, extents)
    assert {p: (d.value, s) for p, (d, s) in spec.tensors(100).items()} == want


NUMBERS = {
    "R": 3,
    "R + 1": 4,
    "C": 3,
    "128": 128,
    "slots": 100,
    "slots / 2": 50,
    "1024 N / M": 384,
    "512 N / M": 192,
    "out": 37,
    "in": 151,
    "ceil(in / 2)": 76,
    "G": 1,
}


def test_a_kept_zero_has_its_bit() -> None:
    made = source("ragged", "bf16", (16, 64))
    made.codes[:] = 0
    parts = made.pack()
    check(made.spec, parts, "P", None)
    found = read(made.spec.to_json(), {part: array.tobytes() for part, array in parts.items()})
    assert np.array_equal(np.array(found.marked), made.kept) and made.kept.any()


def test_zeros_are_quantised_with_scale_1() -> None:
    from exporter.quantise.scales import scales_of

    weight = np.zeros((2, 256), np.float32)
    weight[0, 200] = 3
    for kind in ("int8", "int4", "fp8"):
        assert scales_of(weight, kind, 0)[1, 0] == 1  # type: ignore[arg-type]
        assert scales_of(weight, kind, 128)[0, 0] == 1  # type: ignore[arg-type]


def test_the_table_of_sizes() -> None:
    """The figures of the page against bytes of whole tiles, `in` = 1024."""
    shape, s = (1024, 1024), 1 / 1024
    for row in table("| | bf16 |"):
        for cell, values in zip(row[1:], ("bf16", "int8", "int4"), strict=True):
            group = 128 if values == "int4" else 0
            claimed = float(cell.split(" + ")[0]) + (s if "+ s" in cell else 0)
            found = measured(row[0].split(",")[0], ValueType(values), shape, group)
            assert found == pytest.approx(claimed, abs=6e-4)


def measured(label: str, values: ValueType, shape: tuple[int, int], group: int) -> float:
    nnz = shape[0] * shape[1]
    if label == "70 % ragged":
        nnz = round(0.3 * nnz)
        spec = PackedLinear("ragged", values, shape, nnz, group=group)
    elif label == "dense":
        spec = PackedLinear("dense", values, shape, nnz, group=group)
    else:
        n, m = (int(part) for part in label.split(":"))
        spec = PackedLinear("nm", values, shape, 0, n, m, group)
    # Half the tiles of int4 are odd: half a slot each.
    padded = nnz + spec.row_blocks * spec.column_tiles // 2 if values is ValueType.INT4 else nnz
    parts = spec.tensors(padded // 2 * 2 if values is ValueType.INT4 else padded)
    total = sum(dtype.nbytes * int(np.prod(extents)) for dtype, extents in parts.values())
    return total / (2 * shape[0] * shape[1])


def test_the_code_of_the_page_runs() -> None:
    text = re.findall(r"```python\n(.*?)```", PAGE, re.S)[-1]
    made = source("ragged", "bf16", (576, 576))
    written: list[int] = []

    class Writer:
        def write(self, name: str, block: np.ndarray) -> None:
            assert name == "P.values"
            written.append(len(block))

    names = {
        "mask": Mask.from_bool(made.kept),
        "values": made.codes,
        "rows": lambda r0, r1: made.codes[r0:r1],
        "writer": Writer(),
    }
    exec(text, names)  # noqa: S102 - our own page
    assert sum(written) == made.spec.nnz
    assert names["where"].starts[-1] == made.spec.nnz
    assert names["weight"].tobytes() == made.weight().astype(np.float32).tobytes()
