"""SoRA: gates fold into B, ranks of gate zero drop out, the scale stays that of the first rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.adapters.base import Delta
from exporter.adapters.sora import write_sora
from exporter.errors import InputRefused
from tests.adapters.forge import factors, mend_json, read, spec_of, targeted

RANK, ALPHA = 6, 9.0
GATES = {"q": [0.5, 0.0, -1.5, 0.0, 2.0, 0.25], "v": [0.0] * 5 + [1.0]}


def made() -> dict[str, tuple[Any, Any, Any]]:
    spec = spec_of()
    triples: dict[str, tuple[Any, Any, Any]] = {}
    for role, gate in GATES.items():
        for module, (a, b) in factors(spec, targeted(spec, role), rank=RANK).items():
            triples[module] = a, b, np.array(gate, np.float32)
    return triples


def rows(found: Any) -> Any:
    delta: Delta = found
    return delta.rows(0, delta.shape[0])


def test_equals_the_slow_one(tmp_path: Path):
    triples = made()
    write_sora(tmp_path / "a", triples, alpha=ALPHA, r=RANK)
    adapter = read(tmp_path / "a")
    assert adapter.facts["ranks"] == [1, 4]
    for module, (a, b, gate) in triples.items():
        a, b, gate = (t.astype(np.float64) for t in (a, b, gate))
        want = ALPHA / RANK * b @ np.diag(gate) @ a
        found: Any = adapter.deltas[module]
        assert np.abs(rows(found) - want).max() <= 1e-6 * np.abs(want).max()
        branch = found.low_rank()
        assert branch.a.shape[0] == np.count_nonzero(gate)
        np.testing.assert_allclose(branch.scale * branch.b @ branch.a, want, atol=1e-4)


def test_dropped_ranks_and_flat_gates_change_nothing(tmp_path: Path):
    """The public code keeps the gate as [1, r]; ranks of gate zero may be left out."""
    triples = made()
    write_sora(tmp_path / "all", triples, alpha=ALPHA, r=RANK)
    kept = {m: (a[g != 0], b[:, g != 0], g[None, g != 0]) for m, (a, b, g) in triples.items()}
    write_sora(tmp_path / "kept", kept, alpha=ALPHA, r=RANK)
    one, other = read(tmp_path / "all"), read(tmp_path / "kept")
    for module in triples:
        np.testing.assert_array_equal(rows(one.deltas[module]), rows(other.deltas[module]))


def test_a_module_whose_gates_are_all_zero(tmp_path: Path):
    triples = made()
    first = next(iter(triples))
    a, b, gate = triples[first]
    triples[first] = a, b, gate * 0
    write_sora(tmp_path / "a", triples, alpha=ALPHA, r=RANK)
    adapter = read(tmp_path / "a")
    assert adapter.deltas.keys() == triples.keys() - {first}
    assert adapter.tensors_used == 3 * len(triples)


@pytest.mark.parametrize(
    "fault, code",
    [
        ("no gate", "adapter-tensor-missing"),
        ("short gate", "adapter-shape"),
        ("above r", "adapter-shape"),
        ("turned A", "adapter-shape"),
        ("nan gate", "value-not-finite"),
        ("all zero", "adapter-empty"),
        ("option", "adapter-option"),
        ("rank", "adapter-invalid"),
    ],
)
def test_faults(tmp_path: Path, fault: str, code: str):
    triples: dict[str, Any] = dict(made())
    first = next(iter(triples))
    a, b, gate = triples[first]
    if fault == "short gate":
        triples[first] = a, b, gate[1:]
    if fault == "turned A":
        triples[first] = a.T, b, gate
    if fault == "nan gate":
        triples[first] = a, b, gate * np.float32("nan")
    if fault == "all zero":
        triples = {m: (a, b, g * 0) for m, (a, b, g) in triples.items()}
    write_sora(tmp_path / "a", triples, alpha=ALPHA, r=3 if fault == "above r" else RANK)
    config = tmp_path / "a" / "adapter_config.json"
    if fault == "no gate":
        from safetensors.numpy import load_file, save_file

        path = tmp_path / "a" / "adapter_model.safetensors"
        tensors = load_file(path)
        save_file({n: t for n, t in tensors.items() if first + ".lora_gate" not in n}, path)
    if fault == "option":
        mend_json(config, use_dora=True)
    if fault == "rank":
        mend_json(config, r=0)
    with pytest.raises(InputRefused) as caught:
        read(tmp_path / "a")
    assert caught.value.code == code
