"""Two processes, gloo on the CPU: data parallel and FSDP train what one process does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.tiny import save_tiny

LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    "--main_process_port", "0", "--use_fsdp", "--fsdp_version", "2",
    "-m", "harness",
]  # fmt: skip
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def words(model, out, method, *more):
    return [
        "train", str(model), "--method", method, "--sparsity", "0.5", "--steps", "4",
        "--batch", "4", "--length", "16", "--save-every", "2", *more, "-o", str(out),
    ]  # fmt: skip


def alone(*args):
    return subprocess.run(
        [sys.executable, "-m", "harness", *args], env=ENV, capture_output=True, check=False
    )


def side_by_side(*args):
    """Two processes with what `accelerate launch --cpu --num_processes 2` sets; their codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "harness", *args],
            env={**ENV, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    return [worker.wait(timeout=300) for worker in workers]


def launched(*args):
    """`accelerate launch --use_fsdp`: it takes no --cpu beside it, and finds no GPU."""
    return subprocess.run([*LAUNCH, *args], env=ENV, capture_output=True, check=False)


def same(one: Path, two: Path, kind: str, fsdp: bool = False) -> None:
    cost = json.loads((two / "cost.json").read_text())
    assert (cost["processes"], cost["fsdp"]) == (2, fsdp)
    left, right = (json.loads((folder / "train.json").read_text()) for folder in (one, two))
    assert right["losses"] == pytest.approx(left["losses"], rel=1e-4)
    left, right = (load_file(folder / kind) for folder in (one, two))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        if tensor.dtype.kind != "f":
            np.testing.assert_array_equal(right[name], tensor)
            continue
        # Adam divides by the gradient's size: where that is near zero, its rounding shows.
        assert np.linalg.norm(right[name] - tensor) <= 1e-3 * np.linalg.norm(tensor), name


def test_two_processes_are_one_with_twice_the_accumulation(tmp_path):
    """The gradient of the whole batch either way: windows 0, 1 and 2, 3 of each step's four."""
    model = save_tiny("llama2", tmp_path / "m")
    one = alone(*words(model, tmp_path / "one", "sparse-lora", "--accumulate", "2"))
    assert one.returncode == 0, one.stderr.decode()
    assert side_by_side(*words(model, tmp_path / "two", "sparse-lora")) == [0, 0]
    same(tmp_path / "one", tmp_path / "two", "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["losa", "lora"])
def test_fsdp_trains_what_one_process_does(tmp_path, method):
    model = save_tiny("llama2", tmp_path / "m")
    more = ["--set", "iterations=2"] if method == "losa" else []
    one = alone(*words(model, tmp_path / "one", method, *more))
    two = launched(*words(model, tmp_path / "two", method, *more))
    assert (one.returncode, two.returncode) == (0, 0), two.stderr.decode()
    kinds = sorted(path.name for path in (tmp_path / "one").glob("*.safetensors"))
    assert kinds
    for kind in kinds:
        same(tmp_path / "one", tmp_path / "two", kind, fsdp=True)


@pytest.mark.slow
def test_fsdp_is_refused_where_the_base_itself_is_trained(tmp_path):
    model = save_tiny("llama2", tmp_path / "m")
    done = launched(*words(model, tmp_path / "out", "full"))
    assert done.returncode != 0
    assert b"FSDP with --method full" in done.stderr
    assert not (tmp_path / "out").exists()
