"""Two processes, gloo on the CPU: the gradient of the whole batch, one output."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.tiny import save_tiny

CODE = "import sys; from harness.cli import main; main(sys.argv[1:])"


def words(model, out):
    return [
        "train", str(model), "--method", "losa", "--set", "iterations=2", "--sparsity", "0.5",
        "--steps", "4", "--batch", "2", "--length", "16", "-o", str(out),
    ]  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path):
    model = save_tiny("llama2", tmp_path / "m")
    subprocess.run([sys.executable, "-c", CODE, *words(model, tmp_path / "one")], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # What `accelerate launch --cpu --num_processes 2` sets.
    shared = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, *words(model, tmp_path / "two")],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    one, two = (json.loads((tmp_path / n / "train.json").read_text()) for n in ("one", "two"))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["history"][-1]["sizes"] == one["history"][-1]["sizes"]
