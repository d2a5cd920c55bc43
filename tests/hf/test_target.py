"""Files, types, shards and faults of `--target hf`, below the pipeline."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from backends.hf.target import HfTarget
from backends.reference.session import open_reference
from exporter.check.model import check_model
from exporter.contract import Target
from exporter.errors import EngineUnfit, VerificationFailed
from exporter.merge.fuse import fuse
from exporter.model import FusedModel
from exporter.store.checkpoint import Checkpoint
from exporter.store.writer import write_safetensors
from exporter.verify.result import VerificationMissed, VerifyReport
from exporter.verify.run import verify_staged
from tests.tiny import save_tiny

BF16 = np.dtype(ml_dtypes.bfloat16)
INDEX = "model.safetensors.index.json"


def fused(folder: Path) -> FusedModel:
    return fuse(check_model(Checkpoint.open(folder)), [])


def lower(model: FusedModel, out: Path, **options: Any) -> Path:
    target: Target = HfTarget(**options)
    out.mkdir()
    target.lower(model, out, lambda *_: None)
    plan = target.plan(model)
    sizes = {p.relative_to(out).as_posix(): p.stat().st_size for p in out.rglob("*.*")}
    assert {f.name: f.nbytes for f in plan.files} == sizes
    return out


def verify(model: FusedModel, out: Path, **options: Any) -> VerifyReport:
    return verify_staged(HfTarget(**options), model, out, reference_opener=open_reference)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("gpt2", tmp_path_factory.mktemp("tiny") / "m", sparsity=0.5, n_positions=40)


def rewrite(out: Path, change: Any) -> None:
    """`change(tensors)` on the one file of a folder."""
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    (out / "model.safetensors").unlink()
    write_safetensors(out / "model.safetensors", tensors, {"format": "pt"})


def test_each_tensor_keeps_its_type(tiny: Path, tmp_path: Path):
    """float64 becomes float32, the type of all computing; config.json names the most of them."""
    source = tmp_path / "m"
    shutil.copytree(tiny, source)
    tensors = load_file(source / "model.safetensors")
    kinds: dict[str, Any] = {"wte": np.float16, "ln_f": np.float64, "c_": BF16}
    for name in tensors:
        kind = next((k for part, k in kinds.items() if part in name), np.float32)
        tensors[name] = tensors[name].astype(kind)
    write_safetensors(source / "model.safetensors.new", tensors, {"format": "pt"})
    (source / "model.safetensors.new").rename(source / "model.safetensors")
    model = fused(source)
    out = lower(model, tmp_path / "out")
    got = load_file(out / "model.safetensors")
    for name, values in tensors.items():
        want = np.dtype(np.float32) if values.dtype == np.float64 else values.dtype
        assert got[name].dtype == want and np.array_equal(got[name], values.astype(want)), name
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert verify(model, out).verdict.passed


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", None])
def test_config_names_the_written_type(key: str | None, tiny: Path, tmp_path: Path):
    source = tmp_path / "m"
    shutil.copytree(tiny, source)
    config = json.loads((source / "config.json").read_text())
    config.pop("dtype")
    config["_name_or_path"] = "/home/someone/model"
    (source / "config.json").write_text(json.dumps({**config, **({key: "float32"} if key else {})}))
    out = lower(fused(source), tmp_path / "out", dtype="bfloat16")
    written = json.loads((out / "config.json").read_text())
    named = {k: v for k, v in written.items() if k in ("dtype", "torch_dtype")}
    assert named == {key or "dtype": "bfloat16"} and "_name_or_path" not in written


def test_shards_and_index(tmp_path: Path):
    source = save_tiny(
        "llama2", tmp_path / "m", vocab_size=4000, sparsity=0.5, max_position_embeddings=40
    )
    model = fused(source)
    out = lower(model, tmp_path / "out", shard_mb=1)
    index = json.loads((out / INDEX).read_text())
    names = sorted(p.name for p in out.glob("*.safetensors"))
    assert names == [f"model-{i:05d}-of-{len(names):05d}.safetensors" for i in (1, 2, 3)]
    held = {n: load_file(out / n) for n in names}
    assert {t: n for n, part in held.items() for t in part} == index["weight_map"]
    values = [v for part in held.values() for v in part.values()]
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in values)
    assert index["metadata"]["total_parameters"] == sum(v.size for v in values)
    for part in held.values():
        assert len(part) == 1 or sum(v.nbytes for v in part.values()) <= 10**6
    assert verify(model, out, shard_mb=1).verdict.passed
    index["weight_map"]["model.norm.weight"] = names[0]
    (out / INDEX).write_text(json.dumps(index))
    with pytest.raises(VerificationFailed) as caught:
        verify(model, out, shard_mb=1)
    assert caught.value.code == "verify-structure" and caught.value.file == names[0]


def test_templates_travel_as_bytes(tiny: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    source = tmp_path / "m"
    shutil.copytree(tiny, source)
    (source / "chat_template.jinja").write_bytes(b"plain {{ messages }}\r\n")
    folder = source / "additional_chat_templates"
    folder.mkdir()
    (folder / "rag.jinja").write_bytes("r\u00e4g {{ messages }}\n".encode())
    (folder / "notes.txt").write_text("no template")
    model = fused(source)
    out = lower(model, tmp_path / "out")
    for name in ("chat_template.jinja", "additional_chat_templates/rag.jinja"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert not (out / "additional_chat_templates/notes.txt").exists()
    assert verify(model, out).verdict.passed
    assert set(AutoTokenizer.from_pretrained(out).chat_template) == {"default", "rag"}


def one_bit(tensors: Any) -> None:
    tensors["transformer.h.1.attn.c_proj.weight"].view(np.uint32)[5, 6] ^= 1 << 20


def as_torch_linear(tensors: Any) -> None:
    """Square, so that no shape tells it: the classic mistake with a Conv1D."""
    name = "transformer.h.1.attn.c_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def swapped(tensors: Any) -> None:
    one, two = (f"transformer.h.{i}.mlp.c_fc.weight" for i in (0, 1))
    tensors[one], tensors[two] = tensors[two], tensors[one]


def lost(tensors: Any) -> None:
    del tensors["transformer.h.0.ln_2.bias"]


def added(tensors: Any) -> None:
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()


def filled(tensors: Any) -> None:
    weight = tensors["transformer.h.0.mlp.c_fc.weight"]
    weight[tuple(np.argwhere(weight == 0)[0])] = 1e-9


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (one_bit, "h.1.attn.c_proj.weight is not the fused tensor: one bit of one value"),
        (as_torch_linear, "h.1.attn.c_proj.weight is not the fused tensor: it is transposed"),
        (swapped, "it holds the values of transformer.h.1.mlp.c_fc.weight"),
        (lost, "transformer.h.0.ln_2.bias is missing"),
        (added, "lm_head.weight is stored though it is tied"),
        (filled, "1 values outside the mask are not zero"),
    ],
)
def test_wrong_bytes_are_named(change: Any, told: str, tiny: Path, tmp_path: Path):
    model = fused(tiny)
    out = lower(model, tmp_path / "out")
    rewrite(out, change)
    with pytest.raises(VerificationMissed) as caught:
        verify(model, out)
    structure = caught.value.report.structure
    assert caught.value.code == "verify-structure" and structure is not None
    assert any(told in failure for failure in structure.failures), structure.failures


def test_right_bytes_under_a_wrong_config_are_found_by_their_numbers(tiny: Path, tmp_path: Path):
    model = fused(tiny)
    out = lower(model, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    config["activation_function"] = "relu"
    (out / "config.json").write_text(json.dumps(config))
    target = HfTarget()
    with pytest.raises(VerificationMissed) as caught:
        verify_staged(target, model, out, reference_opener=open_reference, bisect=True)
    assert caught.value.code == "verify-numbers"
    found = caught.value.report.bisect
    assert found is not None and found.first == "layer.0"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_broken_folder_is_a_typed_error(
    name: str, content: bytes | None, tiny: Path, tmp_path: Path
):
    out = lower(fused(tiny), tmp_path / "out")
    (out / name).unlink()
    if content is not None:
        (out / name).write_bytes(content)
    with pytest.raises(EngineUnfit) as unfit:
        HfTarget().open(out)
    assert unfit.value.code == "engine-refused"
    with pytest.raises(VerificationFailed) as failed:
        list(HfTarget().read_back(out))
    assert failed.value.code == "verify-structure"


@pytest.mark.parametrize("file", ["../out/model.safetensors", "/etc/passwd", 3, "weights.bin"])
def test_index_of_a_stranger_leads_nowhere(file: Any, tiny: Path, tmp_path: Path):
    out = lower(fused(tiny), tmp_path / "out")
    (out / INDEX).write_text(json.dumps({"weight_map": {"transformer.wte.weight": file}}))
    with pytest.raises(VerificationFailed) as caught:
        list(HfTarget().read_back(out))
    assert caught.value.file == INDEX


def test_link_is_not_followed(tiny: Path, tmp_path: Path):
    out = lower(fused(tiny), tmp_path / "out")
    (out / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (out / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(VerificationFailed, match="no plain file"):
        list(HfTarget().read_back(out))


@pytest.mark.parametrize(("change", "told"), [(lost, "missing keys"), (None, "unexpected keys")])
def test_transformers_fills_no_gap(change: Any, told: str, tiny: Path, tmp_path: Path):
    def stray(tensors: Any) -> None:
        tensors["transformer.h.0.extra.weight"] = np.ones(3, np.float32)

    out = lower(fused(tiny), tmp_path / "out")
    rewrite(out, change or stray)
    with pytest.raises(EngineUnfit) as caught:
        HfTarget().open(out)
    assert told in caught.value.found


def test_session(tiny: Path, tmp_path: Path):
    session = HfTarget().open(lower(fused(tiny), tmp_path / "out"), threads=1)
    first = session.prefill([5, 6, 7])
    assert first.shape == (3, 272) and first.dtype == np.float32
    assert session.decode(9).shape == (272,)
    assert np.allclose(session.prefill([5, 6, 7], logits="last"), first[-1:], atol=1e-4)
    assert len(session.generate([5, 6], 3).tokens) == 3
    facts = session.facts()
    assert (facts.engine, facts.threads, session.max_tokens) == ("transformers", 1, 40)
    for call in (
        lambda: session.prefill([]),
        lambda: session.prefill([272]),
        lambda: session.prefill([3] * 41),
        lambda: session.generate([], 2),
    ):
        with pytest.raises(EngineUnfit):
            call()
    session.close()
    session.close()
    with pytest.raises(EngineUnfit, match="closed"):
        session.prefill([1])


def test_missing_engine_is_a_typed_error(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backends.hf.target._NEEDED", ("torch", "no_such_engine"))
    out = lower(fused(tiny), tmp_path / "out")
    assert "no_such_engine" in HfTarget().runtime().reason
    with pytest.raises(EngineUnfit) as caught:
        HfTarget().open(out)
    assert caught.value.code == "engine-missing"


@pytest.mark.parametrize("module", ["target", "lower", "read_back"])
def test_imports_stay_light(module: str):
    banned = {"torch", "transformers", "onnx"}
    code = f"import sys, backends.hf.{module}; print({banned} & {{*sys.modules}})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_fresh_file_from_the_safetensors_library_reads_back(tmp_path: Path, tiny: Path):
    """The reader does not lean on the order in which our writer lays out tensors."""
    model = fused(tiny)
    out = lower(model, tmp_path / "out")
    tensors = load_file(out / "model.safetensors")
    save_file(dict(reversed(tensors.items())), out / "model.safetensors", {"format": "pt"})
    for stored in HfTarget().read_back(out):
        want = model.tensors[stored.name]
        assert stored.shape == want.shape
        assert np.array_equal(stored.rows(0, stored.shape[0]), want.rows(0, want.shape[0]))
