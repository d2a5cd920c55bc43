"""What users of other exporters ran into, one test a failure, named after it.

Each failure was reported against a tool that merges, converts or exports; none may happen here.
Elsewhere in the suite most are tested in depth; here each is met head on, through the command
line where the user would meet it there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from peft import LoraConfig

from backends.onnxruntime.target import OnnxRuntimeTarget
from backends.reference.session import open_reference
from exporter.adapters.losa import write_losa
from exporter.check.model import check_model
from exporter.errors import InputRefused, VerificationFailed
from exporter.merge.fuse import fuse
from exporter.merge.measure import measure
from exporter.pipeline import export
from exporter.request import AdapterRequest, ExportRequest
from exporter.sparsity.count import mask_pattern
from exporter.sparsity.mask import Mask
from exporter.sparsity.permute import as_order, broken_groups, inverse, permute_mask_columns
from exporter.store.checkpoint import Checkpoint
from exporter.store.dtypes import DType
from exporter.store.writer import write_safetensors
from tests.adapters.forge import (
    PREFIX,
    factors,
    mend_json,
    read,
    simple_lora,
    spec_of,
    targeted,
    tensors_of,
    write_lora,
)
from tests.faults.asking import Ask, change, grow
from tests.faults.test_adapters_cli import losa
from tests.faults.test_adapters_cli import spec_of as spec_at
from tests.peft.matrix import assert_forward_alike, build
from tests.sparsity.slow import prune_nm
from tests.tiny import save_tiny
from tests.verify.fakes import memory_model

Q0 = "model.layers.0.self_attn.q_proj"
B0 = f"{PREFIX}{Q0}.lora_B.weight"
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


def sparse_losa(folder: Path, model: Path, scale: float = 1.0) -> Path:
    """A bundle on q and v, trained under the model's own zeros."""
    checkpoint = Checkpoint.open(model)
    checked = check_model(checkpoint)
    modules = targeted(checked.spec, "q", "v")
    linears = {x.module: x for x in checked.spec.linears()}
    write_losa(
        folder,
        base_name="tiny",
        base_sha256=checkpoint.identity(),
        factors={m: (a * scale, b) for m, (a, b) in factors(checked.spec, modules).items()},
        masks={m: checked.masks.mask(linears[m]) for m in modules},
        alpha=8.0,
        r_ref=4,
    )
    return folder


@pytest.fixture(scope="module")
def published(single: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A sparse model with a LoSA in, exported for ONNX Runtime: folder and report."""
    place = tmp_path_factory.mktemp("published")
    adapter = sparse_losa(place / "losa", single)
    request = ExportRequest(
        single, "onnxruntime", place / "out", adapters=(AdapterRequest(adapter),)
    )
    report = export(request).report
    assert report is not None
    return place / "out", report


# --- merging ---------------------------------------------------------------------------------


def test_merged_folder_equals_base(single: Path, ask: Ask, published: tuple[Path, Any]) -> None:
    """A merge that finds no module, or changes none, must not end in success."""
    books = published[1].accounting
    assert books.linears_changed == books.linears_adapted == 4
    assert books.unchanged == ()
    model = ask.copy(single)
    spec = spec_at(model)
    elsewhere = tensors_of(factors(spec, targeted(spec, "q", "v")))
    elsewhere = {n.replace("model.layers", "transformer.h"): t for n, t in elsewhere.items()}
    write_lora(ask.inputs / "elsewhere", elsewhere)
    zero = {n: t * 0 for n, t in tensors_of(factors(spec, targeted(spec, "q", "v"))).items()}
    write_lora(ask.inputs / "zero", zero)
    for name, code in (("elsewhere", "adapter-module"), ("zero", "adapter-empty")):
        error = ask.refused(model, "--adapter", str(ask.inputs / name), "--on-merge", "densify")
        assert error["code"] == code


@pytest.mark.parametrize(
    "rename",
    [
        lambda n: n.removeprefix(PREFIX),
        lambda n: PREFIX + n,
        lambda n: n.replace("model.layers", "model.language_model.layers"),
        lambda n: f"module.{n}",
        lambda n: n.replace("model.layers", "_orig_mod.model.layers"),
        lambda n: n.replace("lora_A", "lora_a"),
        lambda n: n.replace("layers.1.", "layers.7."),
    ],
)
def test_adapter_keys_silently_missed(rename: Any, tmp_path: Path) -> None:
    """Every tensor of the file is used exactly once, or the file is refused by its name."""
    spec = spec_of()
    sound = tensors_of(factors(spec, targeted(spec, "q", "v")))
    assert read(write_lora(tmp_path / "sound", sound), spec).tensors_used == len(sound) == 8
    with pytest.raises(InputRefused) as caught:
        read(write_lora(tmp_path / "a", {rename(n): t for n, t in sound.items()}), spec)
    assert caught.value.code.startswith("adapter-")
    assert caught.value.tensor


def test_merge_in_bf16_loses_the_delta(tmp_path: Path) -> None:
    """The sum is made in float32 and rounded once; what rounding swallows is counted."""
    checked = check_model(Checkpoint.open(save_tiny("llama2", tmp_path / "m", dtype="bfloat16")))
    spec = checked.spec
    pairs = factors(spec, [Q0])
    small = {m: (a * np.float32(1e-4), b) for m, (a, b) in pairs.items()}
    folder = write_lora(tmp_path / "lora", tensors_of(small), target_modules=["q_proj"])
    mend_json(folder / "adapter_config.json", target_modules=[Q0])
    fused = fuse(checked, [(read(folder, spec), 1.0)])
    weight = checked.checkpoint.rows(f"{Q0}.weight", 0, 64)
    a, b = small[Q0]
    delta = 2.0 * (b.astype(np.float64) @ a.astype(np.float64))
    merged = fused.tensors[f"{Q0}.weight"].rows(0, 64)
    assert np.abs(merged - (weight + delta)).max() <= 1e-6 * np.abs(weight).max()
    # As many tools do it: the delta rounded to bfloat16 before it is added there.
    bf16 = DType.BF16.numpy
    rounded = (weight.astype(bf16) + delta.astype(np.float32).astype(bf16)).astype(np.float32)
    assert np.abs(rounded - (weight + delta)).max() > 1e-4 * np.abs(weight).max()
    books = measure(fused, {f"{Q0}.weight": DType.BF16})[Q0]
    same = merged.astype(bf16) == weight.astype(bf16)
    assert books["vanished"] == np.count_nonzero(same & (delta.astype(np.float32) != 0)) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"layers\.1\..*q_proj": 40}},
        {"r": 16, "lora_alpha": 4},
    ],
)
def test_scale_wrong_rslora_patterns_alpha(options: dict[str, Any], tmp_path: Path) -> None:
    """Against PEFT's own unmerged forward, in float64."""
    fields: dict[str, Any] = {"r": 8, "lora_alpha": 24, "target_modules": ["q_proj", "v_proj"]}
    assert_forward_alike(build("llama2", tmp_path, LoraConfig(**{**fields, **options})))


def test_dora_taken_for_lora(tmp_path: Path) -> None:
    """The magnitude is used, or its loss is an error; the factors alone are another model."""
    config = LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "v_proj"])
    case = build("llama2", tmp_path, config)
    assert_forward_alike(case)
    change(
        case.adapter / "adapter_model.safetensors",
        lambda t: [t.pop(n) for n in list(t) if "magnitude" in n],
    )
    with pytest.raises(InputRefused) as caught:
        case.load()
    assert caught.value.code == "adapter-tensor-missing"


def test_modules_to_save_ignored(tmp_path: Path) -> None:
    """Whole modules saved with the adapter take the base's place, and the report names them."""
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    case = build("llama2", tmp_path, config)
    fused = case.fused()
    assert_forward_alike(case, fused)
    assert fused.record["replaced"] == {HEAD: "modules_to_save"}


def test_adalora_and_multi_adapter_merge(tmp_path: Path) -> None:
    """AdaLoRA with its pruned ranks; two adapters, each with its weight, in one merge."""
    from peft import AdaLoraConfig

    config = AdaLoraConfig(init_r=4, total_step=10, target_modules=["q_proj", "v_proj"])
    case = build("llama2", tmp_path, config)
    assert_forward_alike(case)
    adapter, base = case.load(), case.checked.checkpoint
    fused = fuse(case.checked, [(adapter, 0.75), (adapter, -0.25)])
    half = fuse(case.checked, [(adapter, 0.5)])
    for module in adapter.deltas:
        weight = base.rows(f"{module}.weight", 0, 64)
        both, one = (f.tensors[f"{module}.weight"].rows(0, 64) for f in (fused, half))
        assert np.abs(both - one).max() <= 1e-6 * np.abs(one).max()
        assert np.abs(one - weight).max() > 1e-3


def test_sparsity_gone_after_merge(single: Path, ask: Ask, published: tuple[Path, Any]) -> None:
    """A dense delta on a sparse base stops the command; a masked one keeps every zero on disk."""
    report = published[1]
    assert report.artefact.sparsity_after == report.model.sparsity > 0.49
    assert report.verification["structure"]["zeros"] > 0
    model = ask.copy(single)
    error = ask.refused(
        model,
        "--adapter",
        str(simple_lora(ask.inputs / "lora", spec_at(model))),
        exit_code=2,
    )
    assert error["code"] == "merge-policy-needed"


def test_losa_adapter_loaded_as_plain_lora(single: Path, ask: Ask) -> None:
    """Without its rank table and mask a LoSA reads as a dense LoRA: refused."""
    model = ask.copy(single)
    bundle = losa(ask, model)
    (bundle / "losa_config.json").unlink()
    error = ask.refused(model, "--adapter", str(bundle), "--on-merge", "densify")
    assert (error["code"], "rank table" in error["found"]) == ("adapter-invalid", True)
    (bundle / "mask.safetensors").unlink()
    mend_json(bundle / "adapter_config.json", losa=True)
    assert ask.refused(model, "--adapter", str(bundle))["code"] == "adapter-invalid"


def test_s2ft_permutation_breaks_2_4() -> None:
    """S2FT's order of channels leaves a fifth or more of the 2:4 groups broken; undone, none."""
    rng = np.random.default_rng(0)
    mask = Mask.from_bool(prune_nm(rng, 64, 256, 2, 4))
    trained = np.sort(rng.choice(256, 64, replace=False))
    order = as_order([*trained, *np.setdiff1d(np.arange(256), trained)], 256)
    moved = permute_mask_columns(mask, order)
    over = moved.rows().reshape(64, 64, 4).sum(axis=-1) > 2
    assert over.mean() > 0.15
    assert broken_groups(order, 4) > 0
    assert mask_pattern("down", moved).pattern.label == "unstructured"
    back = permute_mask_columns(moved, inverse(order))
    assert mask_pattern("down", back).pattern.label == "2:4"
    assert back == mask


# --- ties and vocabulary ---------------------------------------------------------------------


def test_tied_embedding_lost_doubled_or_wrong(tmp_path: Path, ask: Ask) -> None:
    """Tied: stored once, as embedding and head. A head that differs though it is tied: refused."""
    tied = save_tiny("llama2", ask.inputs / "tied", tied=True)
    model = memory_model(tied)
    (tmp_path / "out").mkdir()
    OnnxRuntimeTarget().lower(model, tmp_path / "out", lambda *_: None)
    assert HEAD not in model.tensors
    size = 4 * sum(int(np.prod(t.shape)) for t in model.tensors.values())
    assert (tmp_path / "out" / "model.data").stat().st_size <= 1.02 * size
    found = {t.name for t in OnnxRuntimeTarget().read_back(tmp_path / "out")}
    assert found == set(model.tensors)
    change(tied / "model.safetensors", lambda t: t.update({HEAD: np.flip(t[EMBED], axis=0).copy()}))
    assert ask.refused(tied)["code"] == "tie-conflict"


def test_vocabulary_resized_or_tokens_added(single: Path, ask: Ask) -> None:
    """config = embedding = head >= tokenizer: anything else is refused."""

    def longer(tensors: dict[str, Any]) -> None:
        tensors[EMBED] = np.concatenate([tensors[EMBED], tensors[EMBED][:3]])

    model = ask.copy(single, lambda f: change(f / "model.safetensors", longer))
    assert ask.refused(model)["code"] == "vocab-mismatch"
    tokens = ask.root / "tokens"
    other = Ask(tokens, ask.capsys)

    def more_tokens(folder: Path) -> None:
        file = folder / "tokenizer.json"
        value = json.loads(file.read_text())
        value["added_tokens"].append({"id": 272, "content": "<new>", **ADDED})
        file.write_text(json.dumps(value))

    assert other.refused(other.copy(single, more_tokens))["code"] == "vocab-mismatch"


ADDED = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda f: shard(f, 1).unlink(), "shard-missing"),
        (lambda f: grow(shard(f, 1), -1), "file-truncated"),
        (lambda f: grow(shard(f, 1), 4096), "header-range"),
        (lambda f: (f / "model-00009-of-00009.safetensors").write_bytes(b""), "shard-stale"),
    ],
)
def test_shards_stale_missing_or_short(edit: Any, code: str, sharded: Path, ask: Ask) -> None:
    """All shards are held against their headers and the index before any work."""
    assert ask.refused(ask.copy(sharded, edit))["code"] == code


def shard(folder: Path, number: int) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[number]


def test_half_output_taken_for_whole(single: Path, tmp_path: Path) -> None:
    """A killed export leaves no output folder, so there is nothing that a cache could take."""
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    command = [sys.executable, "-m", "exporter.cli", str(single), "-t", "onnxruntime"]
    process = subprocess.Popen(
        [*command, "-o", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not any(out.parent.iterdir()):
        time.sleep(0.005)  # until the staging folder is there
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert not (out / ".sparse-export" / "manifest.json").exists()


def test_onnx_weights_stored_twice(published: tuple[Path, Any], single: Path) -> None:
    """The artefact is hardly larger than the model's own float32 tensors."""
    folder, _ = published
    inputs = (single / "model.safetensors").stat().st_size
    assert (folder / "model.data").stat().st_size <= 1.02 * inputs
    assert (folder / "model.onnx").stat().st_size < 1 << 16  # the graph alone, no weight in it


def test_permission_0600(published: tuple[Path, Any]) -> None:
    """Other accounts can serve what was written: modes follow the umask."""
    mask = os.umask(0o022)
    os.umask(mask)
    folder, _ = published
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert files
    assert {p.stat().st_mode & 0o777 for p in files} == {0o666 & ~mask}


def test_non_contiguous_numpy(tmp_path: Path) -> None:
    """A transposed or strided view must not be stored by the bytes that lie under it."""
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    views = (matrix.T, matrix[:, ::2], np.broadcast_to(matrix[:1], (3, 4)))
    for number, view in enumerate(views):
        with pytest.raises(ValueError, match="contiguous"):
            write_safetensors(tmp_path / f"{number}.safetensors", {"w": view})


# --- verification ----------------------------------------------------------------------------


def test_model_over_2_gb_and_checker(tmp_path: Path) -> None:
    """Weights that lie past 2 GB of their file are checked, read back and run like any others."""
    target, model = OnnxRuntimeTarget(), memory_model(save_tiny("llama2", tmp_path / "m"))
    folders = [tmp_path / "near", tmp_path / "far"]
    for folder in folders:
        folder.mkdir()
        target.lower(model, folder, lambda *_: None)
    push_apart(folders[1], 1 << 31)
    onnx.checker.check_model(str(folders[1] / "model.onnx"), full_check=False)
    near, far = (
        {t.name: t.rows(0, t.shape[0]) for t in target.read_back(folder)} for folder in folders
    )
    assert near.keys() == far.keys()
    assert all(np.array_equal(near[name], far[name]) for name in near)
    logits = [target.open(folder).prefill([5, 6, 7]) for folder in folders]
    np.testing.assert_array_equal(*logits)


def push_apart(folder: Path, hole: int) -> None:
    """Put a hole before every weight of a lowered model; the file stays small on disk."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    for weight in graph.graph.initializer:
        for entry in weight.external_data:
            if entry.key == "offset":
                entry.value = str(int(entry.value) + hole)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    data = (folder / "model.data").read_bytes()
    with (folder / "model.data").open("r+b") as file:
        file.truncate(0)
        file.seek(hole)
        file.write(data)


def flip(file: Path, at: int = -1000, bit: int = 64) -> None:
    """One bit of a file."""
    raw = bytearray(file.read_bytes())
    raw[at] ^= bit
    file.write_bytes(raw)


def test_success_printed_though_numbers_differ(
    single: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right bytes under a wrong graph: exit code 1, and nothing is published."""
    lower = OnnxRuntimeTarget.lower

    def wrong(self: Any, model: Any, folder: Path, progress: Any) -> None:
        spec = replace(model.spec, norm_eps=0.5)
        lower(self, replace(model, checked=replace(model.checked, spec=spec)), folder, progress)

    monkeypatch.setattr(OnnxRuntimeTarget, "lower", wrong)
    error = ask.refused(ask.copy(single), exit_code=1)
    assert error["code"] == "verify-numbers"


def test_checked_before_the_last_transform(
    single: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit that changes after all was written is found: the check reads the final files."""
    lower = OnnxRuntimeTarget.lower

    def lower_then_change(self: Any, model: Any, folder: Path, progress: Any) -> None:
        lower(self, model, folder, progress)
        flip(folder / "model.data")

    monkeypatch.setattr(OnnxRuntimeTarget, "lower", lower_then_change)
    assert ask.refused(ask.copy(single), exit_code=1)["code"] == "verify-structure"


def test_reference_itself_wrong(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that drops one of its inputs, the cache for one, is an error and no verdict."""
    session = open_reference(memory_model(single))
    assert isinstance(session, object)
    inner = session._net.forward  # pyright: ignore[reportAttributeAccessIssue]

    def forgetful(**inputs: Any) -> Any:
        inputs["past_key_values"], inputs["use_cache"] = None, False
        return inner(**inputs)

    monkeypatch.setattr(session._net, "forward", forgetful)  # pyright: ignore
    with pytest.raises(VerificationFailed) as caught:
        session.prefill([5, 6, 7])
    assert caught.value.code == "reference-broken"


def test_runtime_rejects_artefact(
    published: tuple[Path, Any], single: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine loads what was written before it is published; its versions are recorded."""
    report = published[1]
    assert report.target.engine and report.target.versions
    assert report.verification["engine"]
    lower = OnnxRuntimeTarget.lower

    def lower_and_spoil(self: Any, model: Any, folder: Path, progress: Any) -> None:
        lower(self, model, folder, progress)
        flip(folder / "model.onnx", at=200, bit=255)

    monkeypatch.setattr(OnnxRuntimeTarget, "lower", lower_and_spoil)
    code, answer, _ = ask.run(ask.copy(single))
    assert code in (1, 4)
    assert set(answer) == {"error"}
    assert list(ask.out.parent.iterdir()) == []
