"""`--target hf` from end to end: what is published is what plain transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.cli import run
from exporter.errors import InputRefused, UsageError
from exporter.pipeline import Outcome, export
from exporter.request import AdapterRequest, ExportRequest
from tests.cli.test_export import files
from tests.tiny import save_tiny

F32 = torch.float32
SHORT = {"max_position_embeddings": 40}  # so are the prompts of the verification


def exported(model: Path, out: Path, *adapters: Path, **options: Any) -> Outcome:
    policy = options.pop("policy", None)
    request = ExportRequest(
        model=model,
        target="hf",
        output=out,
        adapters=tuple(AdapterRequest(path, 1.0) for path in adapters),
        policy=policy,
        target_options={k: str(v) for k, v in options.items()},
    )
    return export(request)


def loaded(folder: Path) -> dict[str, Any]:
    """Parameters as transformers loads them, with nothing missing and nothing over."""
    net, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=F32)
    assert not any(found[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return {n: p.detach().numpy() for n, p in net.named_parameters(remove_duplicate=False)}


def structure(outcome: Outcome) -> dict[str, Any]:
    assert outcome.report is not None
    return outcome.report.verification["structure"]


def slow_lora(folder: Path, module: str) -> Any:
    """float64 `[out, in]` of PEFT's delta."""
    tensors = load_file(folder / "adapter_model.safetensors")
    a, b = (
        tensors[f"base_model.model.{module}.lora_{side}.weight"].astype(np.float64) for side in "AB"
    )
    return 6 / 4 * b @ a


def test_gpt2_with_a_lora_is_merged_under_its_mask(gpt2: Path, gpt2_lora: Path, tmp_path: Path):
    outcome = exported(gpt2, tmp_path / "out", gpt2_lora, policy="mask")
    base, got = loaded(gpt2), loaded(tmp_path / "out")
    assert base.keys() == got.keys()
    merged = 0
    for name, weight in base.items():
        if ".c_" not in name or name.endswith(".bias"):
            assert np.array_equal(got[name], weight), name
            continue
        delta = slow_lora(gpt2_lora, name.removesuffix(".weight")).T  # stored [in, out]
        want = np.where(weight != 0, weight + delta, 0.0)
        ulp = 2.0 ** (np.floor(np.log2(np.abs(np.where(want == 0, 1, want)))) - 7)
        assert (np.abs(got[name] - want) <= 0.5001 * ulp).all(), name  # float32, then bfloat16
        assert not got[name].view(np.uint32)[weight == 0].any()
        merged += 1
    assert merged == 8
    found = structure(outcome)
    assert 0.4 < found["rounding_ulp"] <= 0.5 and found["linears"] == 8
    assert found["zeros"] == sum(int((w == 0).sum()) for n, w in base.items() if ".c_" in n)


def test_gpt2_computes_what_peft_computes(tmp_path: Path, gpt2: Path, gpt2_lora: Path):
    """In float32 and with nothing dropped, against PEFT's unmerged forward in float64."""
    from peft import PeftModel

    exported(gpt2, tmp_path / "out", gpt2_lora, policy="densify", dtype="float32")
    tokens = torch.arange(3, 27).reshape(2, 12)
    base = AutoModelForCausalLM.from_pretrained(gpt2, dtype=F32)
    peft = PeftModel.from_pretrained(base, str(gpt2_lora)).double().eval()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out").double().eval()
    with torch.no_grad():
        want, got = peft(tokens).logits, ours(tokens).logits
    assert float((got - want).abs().max() / want.abs().max()) <= 1e-6


def test_full_fine_tune_of_gpt2_is_what_was_trained(gpt2: Path, tmp_path: Path):
    """Its linears lie [in, out] on both sides, and half of them are square or nearly so."""
    tuned = tmp_path / "tuned"
    shutil.copytree(gpt2, tuned)
    tensors = load_file(gpt2 / "model.safetensors")
    rng = np.random.default_rng(0)
    for values in tensors.values():
        values += (values != 0) * rng.normal(size=values.shape).astype(values.dtype)
    save_file(tensors, tuned / "model.safetensors", {"format": "pt"})
    exported(gpt2, tmp_path / "out", tuned)
    want, got = loaded(tuned), loaded(tmp_path / "out")
    assert all(np.array_equal(want[name], got[name]) for name in want)


@pytest.mark.parametrize("kind", ["llama2", "qwen2", "qwen3"])
def test_a_folder_without_adapters_is_the_same_model(kind: str, tmp_path: Path):
    model = save_tiny(kind, tmp_path / "m", sparsity=0.5, dtype="bfloat16", **SHORT)
    outcome = exported(model, tmp_path / "out")
    want, got = loaded(model), loaded(tmp_path / "out")
    assert want.keys() == got.keys() and all(np.array_equal(want[n], got[n]) for n in want)
    assert structure(outcome)["rounding_ulp"] == 0.0
    assert any("no speed-up here" in d.message for d in outcome.diagnostics)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("hi").input_ids


def test_equal_inputs_give_equal_bytes_and_verify_proves_them(
    gpt2: Path, gpt2_lora: Path, tmp_path: Path
):
    for name in ("a", "b"):
        exported(gpt2, tmp_path / name, gpt2_lora, policy="mask", shard_mb=1)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert run(["verify", str(tmp_path / "a")]) == 0
    raw = bytearray((tmp_path / "a" / "model.safetensors").read_bytes())
    raw[-3] ^= 1
    (tmp_path / "a" / "model.safetensors").write_bytes(raw)
    assert run(["verify", str(tmp_path / "a")]) == 1


def test_old_gpt2_gets_its_prefix(gpt2: Path, tmp_path: Path):
    old = tmp_path / "old"
    shutil.copytree(gpt2, old)
    tensors = load_file(gpt2 / "model.safetensors")
    bare = {n.removeprefix("transformer."): v for n, v in tensors.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
    save_file(bare, old / "model.safetensors", {"format": "pt"})
    outcome = exported(old, tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(tensors)
    assert outcome.report is not None
    assert list(outcome.report.model.dropped) == ["transformer.h.0.attn.bias"]


def test_untied_by_an_adapter(tmp_path: Path):
    model = save_tiny("smollm2", tmp_path / "m", sparsity=0.5, dtype="bfloat16", **SHORT)
    full = tmp_path / "full"
    net = AutoModelForCausalLM.from_pretrained(model, dtype=F32)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head"],
        "base_model_name_or_path": "m",
    }
    full.mkdir()
    (full / "adapter_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    head = net.get_input_embeddings().weight.detach().numpy() * 2
    factors = {
        f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{side}.weight": rng.normal(
            size=size
        ).astype(np.float32)
        for i in (0, 1)
        for side, size in (("A", (2, 72)), ("B", (72, 2)))
    }
    save_file(
        {**factors, "base_model.model.lm_head.weight": head}, full / "adapter_model.safetensors"
    )
    exported(model, tmp_path / "out", full, policy="mask")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["tie_word_embeddings"] is False
    got = loaded(tmp_path / "out")
    assert np.array_equal(got["lm_head.weight"], head)
    assert np.array_equal(got["model.embed_tokens.weight"] * 2, head)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(v.dtype) for v in stored.values()} == {"bfloat16"}


def test_value_beyond_the_type_is_refused_by_name(tmp_path: Path):
    model = save_tiny("llama2", tmp_path / "m", **SHORT)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 70000.0
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputRefused) as caught:
        exported(model, tmp_path / "out", dtype="float16")
    assert caught.value.code == "value-overflow"
    assert caught.value.tensor == "model.layers.1.mlp.up_proj.weight"
    assert not (tmp_path / "out").exists()


def test_branch_kept_apart_is_refused(gpt2: Path, gpt2_lora: Path, tmp_path: Path):
    with pytest.raises(InputRefused) as caught:
        exported(gpt2, tmp_path / "out", gpt2_lora, policy="separate")
    assert caught.value.code == "target-refused" and "separate" in caught.value.found


def test_dtype_of_the_command_line(gpt2: Path, tmp_path: Path):
    out = tmp_path / "out"
    base = [str(gpt2), "--target", "hf", "-o", str(out)]
    assert run([*base, "--dtype", "float64"]) == 2
    assert run(["--target", "hf,dtype=float16", *base[:1], "--dtype", "float16", "--plan"]) == 2
    assert run([*base, "--dtype", "float16"]) == 0
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"
    assert {v.dtype for v in load_file(out / "model.safetensors").values()} == {np.dtype("f2")}


def test_shards_of_nothing_are_a_usage_error(gpt2: Path, tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        exported(gpt2, tmp_path / "out", shard_mb=0)
    assert caught.value.code == "target-option"


@pytest.mark.parametrize("target", ["onnxruntime", "deepsparse"])
@pytest.mark.parametrize("plan", [False, True])
def test_graph_targets_refuse_gpt2_by_name(
    target: str, plan: bool, gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    more = ["--plan"] if plan else []
    assert run([str(gpt2), "--target", target, "-o", str(out), *more]) == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "target-refused" in told and "gpt2" in told and "--target hf" in told
    assert not out.exists()


def test_inspect_reads_gpt2_as_out_by_in(gpt2: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["inspect", str(gpt2), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["family"] == "gpt2"
    first = report["linears"][0]
    assert (first["module"], first["out"], first["in"]) == ("transformer.h.0.attn.c_attn", 192, 64)
    assert [e["role"] for e in report["linears"][:4]] == ["qkv", "o", "up", "down"]


def test_plan_reads_no_weight(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run([str(gpt2), "--target", "hf", "-o", str(tmp_path / "o"), "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    exported(gpt2, tmp_path / "o")
    written = {n: len(b) for n, b in files(tmp_path / "o").items() if "/" not in n}
    assert plan["files"] == written
    shapes = {t["name"]: t["shape"] for t in plan["tensors"]}
    assert shapes["transformer.h.0.mlp.c_fc.weight"] == [160, 64]
