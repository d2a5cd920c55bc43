"""Whole runs on a tiny model: every method's folder exports, and computes what training did."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from exporter.cli import main as export_main
from exporter.errors import InputRefused, UsageError, VerificationFailed
from harness.hf import load_float32, load_tokenizer
from harness.methods import execute
from harness.methods.options import Training
from harness.methods.recipe import Recipe
from harness.methods.registry import METHODS, TrainMethod
from harness.methods.run import train_folder
from harness.prune.sparsity import NM, Unstructured
from harness.text import windows
from tests.tiny import save_tiny

SHORT = Training(steps=6, batch=2, length=16, lr=5e-3, save_every=2)
HALF = Unstructured(0.5)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return save_tiny("llama2", tmp_path_factory.mktemp("tune") / "m")


def train(model, out, method, *settings, sparsity=HALF, training=SHORT, report=None, **more):
    flags = {key: more.pop(key) for key in ("resume", "force") if key in more}
    recipe = Recipe(TrainMethod(method), training, settings=settings, sparsity=sparsity, **more)
    return train_folder(model, out, recipe, report=report or (lambda *_: None), **flags)


@pytest.fixture
def trained_logits(monkeypatch, dense):
    """Logits of the model that training ended with, before anything is written."""
    ids = torch.from_numpy(windows(load_tokenizer(dense), "builtin", 16)[:2])
    seen = []
    write = execute._write

    def spy(adaptation, *rest, **named):
        with torch.no_grad():
            seen.append(adaptation.model(input_ids=ids).logits)
        write(adaptation, *rest, **named)

    monkeypatch.setattr(execute, "_write", spy)
    return ids, seen


METHOD_SETTINGS = {
    "losa": ("iterations=2", "rank=4"),
    "swgi": ("iterations=2", "rank=4", "norm=maxnorm"),
    "s2ft": ("o=0.3", "down=0.1", "up=0.1", "v=0.3", "strategy=S"),
    "adalora": ("init_rank=4", "rank=2"),
    "oracle": ("positions=random", "rank=2"),
    "lisa": ("blocks=1", "interval=2"),
}


@pytest.mark.parametrize("method", [m.value for m in METHODS])
def test_a_trained_folder_exports_to_what_training_computed(
    tmp_path, dense, trained_logits, method, capsys
):
    train(dense, tmp_path / "a", method, *METHOD_SETTINGS.get(method, ()))
    ids, seen = trained_logits
    record = json.loads((tmp_path / "a" / "train.json").read_text())
    assert record["data"]["sha256"] and record["seed"] == 0 and record["trainable"] > 0
    policy = [] if METHODS[TrainMethod(method)].exact else ["--on-merge", "densify"]
    out = tmp_path / "x"
    with pytest.raises(SystemExit) as left:
        export_main([str(tmp_path / "a"), "--target", "hf", *policy, "-o", str(out)])
    assert left.value.code == 0, capsys.readouterr()
    with torch.no_grad():
        logits = load_float32(out)(input_ids=ids).logits
    torch.testing.assert_close(logits, seen[0], rtol=2e-3, atol=2e-3)
    if METHODS[TrainMethod(method)].exact:
        weight = load_float32(out).state_dict()["model.layers.0.mlp.down_proj.weight"]
        assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_losa_anew_in_every_iteration(tmp_path, dense):
    done = train(dense, tmp_path / "a", "losa", "iterations=3", "rank=4", "most=8")
    shares = [entry["sparsity"] for entry in done["history"]]
    assert shares == pytest.approx([0.5 - 0.5 * (1 - t / 3) ** 3 for t in (1, 2, 3)])
    means = [np.mean(list(entry["sizes"].values())) for entry in done["history"]]
    assert means == [3.0, 4.0, 5.0]
    assert len(done["losses"]) == 6 and len(done["history"][0]["errors"]) == 2
    assert all(e > 0 for e in done["history"][-1]["errors"])


@pytest.mark.parametrize("pruner", ["sparsegpt", "magnitude"])
def test_losa_on_other_pruners_and_groups(tmp_path, dense, pruner):
    done = train(
        dense, tmp_path / "a", "losa", "iterations=2", "rank=2", pruner=pruner, sparsity=NM(2, 4)
    )
    assert [entry["reached"] for entry in done["history"]] == [0.5, 0.5]


def train_and_die(model, out, method, settings, at):
    def die(step, _):
        if step == at:
            os.kill(os.getpid(), signal.SIGKILL)

    train(model, out, method, *settings, report=die)


@pytest.mark.parametrize("method", ["losa", "adalora", "lisa", "sora"])
def test_a_killed_run_ends_with_the_bytes_of_an_unbroken_one(tmp_path, dense, method):
    settings = METHOD_SETTINGS.get(method, ())
    train(dense, tmp_path / "whole", method, *settings)
    at = int(np.random.default_rng().integers(3, SHORT.steps + 1))
    # Not forked from here: torch's products would wait for threads that a child does not have.
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload([__name__])
    arguments = (dense, tmp_path / "killed", method, settings, at)
    child = fresh.Process(target=train_and_die, args=arguments)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL, at
    assert not (tmp_path / "killed").exists()
    with pytest.raises(UsageError, match="unfinished"):
        train(dense, tmp_path / "killed", method, *settings)
    with pytest.raises(UsageError, match="another configuration"):
        train(dense, tmp_path / "killed", method, *settings, pruner="magnitude", resume=True)
    train(dense, tmp_path / "killed", method, *settings, resume=True)
    for file in sorted((tmp_path / "whole").rglob("*")):
        if file.is_file() and file.name != "cost.json":
            other = tmp_path / "killed" / file.relative_to(tmp_path / "whole")
            assert other.read_bytes() == file.read_bytes(), (at, file.name)
    assert not (tmp_path / "killed.work").exists()


def test_numbers_that_explode_keep_the_last_checkpoint(tmp_path, dense):
    seen = []

    def poison(step, loss):
        seen.append(loss)

    big = Training(steps=8, batch=2, length=16, lr=1e25, save_every=1, warmup=1.0)
    with pytest.raises(VerificationFailed, match=r"training-failed[\s\S]*step \d"):
        train(dense, tmp_path / "a", "sparse-lora", training=big, report=poison)
    assert not (tmp_path / "a").exists()
    assert seen
    state = load_file(tmp_path / "a.work" / "step" / "state.safetensors")
    assert all(torch.isfinite(t).all() for n, t in state.items() if n.startswith("p."))


def test_a_mask_that_a_step_broke_is_named(tmp_path, dense, monkeypatch):
    from harness.methods.full import FullTuning

    monkeypatch.setattr(FullTuning, "after_backward", lambda self: None)
    with pytest.raises(VerificationFailed, match=r"proj.weight: a step broke the mask"):
        train(dense, tmp_path / "a", "full")


def test_memory_that_ends_is_a_typed_error(tmp_path, dense, monkeypatch):
    from harness.methods.loop import Loop

    def full(self, batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 99 bytes")

    monkeypatch.setattr(Loop, "_gradients", full)
    with pytest.raises(VerificationFailed, match=r"step 1: out of memory"):
        train(dense, tmp_path / "a", "lora")


def test_windows_longer_than_the_model_are_refused(tmp_path, dense):
    long = Training(steps=1, length=10_000)
    with pytest.raises(InputRefused, match="10000 tokens"):
        train(dense, tmp_path / "a", "lora", training=long)


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tmp_path, dense):
    from dataclasses import replace

    whole = train(dense, tmp_path / "a", "sparse-lora")["losses"]
    parts = train(dense, tmp_path / "b", "sparse-lora", training=replace(SHORT, accumulate=2))
    assert parts["losses"] == pytest.approx(whole, rel=1e-4)
    with pytest.raises(UsageError, match="3 parts"):
        train(dense, tmp_path / "c", "sparse-lora", training=replace(SHORT, accumulate=3))
    half = train(
        dense, tmp_path / "d", "losa", "iterations=1", training=replace(SHORT, precision="bf16")
    )
    assert np.isfinite(half["losses"]).all()


def test_json_lines_and_their_faults(tmp_path, dense):
    lines = tmp_path / "d.jsonl"
    lines.write_text("".join(json.dumps({"body": f"text {i} " * 9}) + "\n" for i in range(9)))
    train(dense, tmp_path / "a", "lora", data=str(lines), field="body", sparsity=None)
    with pytest.raises(InputRefused, match="no text 'text'"):
        train(dense, tmp_path / "b", "lora", data=str(lines))
    lines.write_text('{"text": "x"}\n{oops\n')
    with pytest.raises(InputRefused, match="line 2"):
        train(dense, tmp_path / "b", "lora", data=str(lines))
    lines.write_text('{"text": "  "}\n')
    with pytest.raises(InputRefused, match="empty"):
        train(dense, tmp_path / "b", "lora", data=str(lines))
