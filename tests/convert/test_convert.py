"""`sparse-export convert`: exact forms, what peft makes of them, refusals, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from exporter.adapters.base import BaseIdentity
from exporter.adapters.load import load_adapter
from exporter.adapters.losa import write_losa
from exporter.adapters.pooling import write_pooling
from exporter.adapters.s2ft import write_s2ft
from exporter.adapters.spp import write_spp
from exporter.cli import run
from exporter.convert.run import Converted, ConvertRequest, convert
from exporter.errors import InputRefused, SparseExportError, UsageError, VerificationFailed
from exporter.model import CheckedModel
from tests.adapters.forge import targeted, write_lora
from tests.adapters.own import base_of, load, opened, rows_of
from tests.tiny import save_tiny

Module = dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> CheckedModel:
    return opened(save_tiny("llama2", tmp_path_factory.mktemp("convert") / "base", sparsity=0.5))


def shapes(base: CheckedModel) -> Module:
    return {li.module: (li.out_features, li.in_features) for li in base.spec.linears()}


def s2ft(base: CheckedModel, folder: Path, scaling: float = 1.0) -> Path:
    rng = np.random.default_rng(0)
    chosen: dict[str, Any] = {}
    for at, (module, (out, width)) in enumerate(shapes(base).items()):
        k, kind = 1 + at % 5, "cols" if module.endswith(("o_proj", "down_proj")) else "rows"
        index = sorted(rng.choice(width if kind == "cols" else out, k, replace=False).tolist())
        values = rng.standard_normal((out, k) if kind == "cols" else (k, width)).astype("f4")
        chosen[module] = (kind, index, values)
    facts = {"base": "base", "base_sha256": base.checkpoint.identity(), "scaling": scaling}
    write_s2ft(folder, chosen, facts=facts)
    return folder


def pooling(base: CheckedModel, folder: Path, **config: Any) -> Path:
    rng = np.random.default_rng(1)
    tensors = {m: {"pool_G": rng.standard_normal((5, 7)).astype("f4")} for m in shapes(base)}
    fields = {"pool": "mean", "grouping": "balanced", "scale": 0.3, "train_mask": "none"}
    masks = config.pop("masks", None)
    write_pooling(folder, fields | config, tensors, masks)
    return folder


def made(base: CheckedModel, adapter: Path, to: str, out: Path, **kwargs: Any) -> Converted:
    return convert(ConvertRequest(adapter, base.checkpoint.root, to, out, **kwargs))


def refused(
    base: CheckedModel, adapter: Path, to: str, out: Path, kind: type[SparseExportError]
) -> SparseExportError:
    """The refusal; nothing is left behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(kind) as caught:
        made(base, adapter, to, out)
    assert sorted(p for p in out.parent.iterdir() if not p.name.endswith(".lock")) == before
    return caught.value


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")  # base_sha256, ours
@pytest.mark.parametrize("scaling", [1.0, 0.3])
def test_s2ft_as_lora(base: CheckedModel, tmp_path: Path, scaling: float):
    """Not a bit of any delta differs; and peft computes the same from the folder."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source = s2ft(base, tmp_path / "s2ft", scaling)
    done = made(base, source, "lora", tmp_path / "lora")
    assert done == Converted("s2ft", "lora", 14, 0.0)
    first, second = (load(tmp_path / n, base, base_of(base)) for n in ("s2ft", "lora"))
    assert second.family == "lora" and second.facts["base_digest"] == base.checkpoint.identity()
    for module, delta in first.deltas.items():
        assert (rows_of(delta, None) == rows_of(second.deltas[module], None)).all()
    plain: Any = AutoModelForCausalLM.from_pretrained(base.checkpoint.root)
    peft: Any = PeftModel.from_pretrained(plain, str(tmp_path / "lora")).double()
    for module, delta in first.deltas.items():
        layer = peft.get_base_model().get_submodule(module)
        want = layer.get_delta_weight("default").detach().numpy()
        assert np.abs(rows_of(delta, None) - want).max() <= 1e-6 * np.abs(want).max()
    with torch.no_grad():
        x = torch.arange(3, 15).reshape(1, 12)
        adapted = peft(x).logits
        merged = peft.merge_and_unload()(x).logits
    assert (adapted - merged).abs().max() <= 1e-9 * merged.abs().max()


@pytest.mark.parametrize("sizes", ["wide", "tall"])
def test_pooling_as_lora(base: CheckedModel, tmp_path: Path, sizes: str):
    source = pooling(base, tmp_path / "pool", norm="maxnorm", tau=1.0)
    if sizes == "tall":
        tensors = {m: {"pool_G": np.ones((7, 5), "f4")} for m in shapes(base)}
        fields = {"pool": "sum", "grouping": "strided", "scale": 2.0, "train_mask": "none"}
        source = tmp_path / "tall"
        write_pooling(source, fields, tensors)
    done = made(base, source, "lora", tmp_path / "lora")
    assert done == Converted("pooling", "lora", 14, 0.0)
    a = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {t.shape[0] for n, t in a.items() if "lora_A" in n} == {5}


@pytest.mark.parametrize("masked", [False, True])
def test_pooling_as_table(base: CheckedModel, tmp_path: Path, masked: bool):
    options: dict[str, Any] = {"norm": "spectral", "tau": 0.5}
    if masked:
        masks = {li.module: base.masks.mask(li) for li in base.spec.linears()}
        options |= {"train_mask": "ste", "masks": masks}
    source = pooling(base, tmp_path / "pool", **options)
    done = made(base, source, "table", tmp_path / "table")
    assert done == Converted("pooling", "table", 14, 0.0)
    config = json.loads((tmp_path / "table" / "pool_config.json").read_text())
    assert (config["norm"], config["scale"]) == ("none", 1.0)
    names = load_file(tmp_path / "table" / "adapter_model.safetensors")
    assert {n.rpartition(".")[2] for n in names} == {"pool_C"}
    adapter = load(tmp_path / "table", base, base_of(base))
    assert adapter.masked is masked and (adapter.masks is not None) is masked


def test_a_lora_with_patterns_becomes_a_plain_one(base: CheckedModel, tmp_path: Path):
    """rsLoRA's scale, written out as alpha."""
    modules = targeted(base.spec, "q", "v")
    rng = np.random.default_rng(0)
    tensors = {
        f"base_model.model.{m}.lora_{s}.weight": rng.standard_normal(z).astype("f4")
        for m in modules
        for s, z in (("A", (4, 64)), ("B", (64, 4)))
    }
    source = write_lora(tmp_path / "rs", tensors, use_rslora=True)
    assert made(base, source, "lora", tmp_path / "lora").largest_error <= 1e-6
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert "use_rslora" not in config and config["alpha_pattern"][modules[0]] == 16.0


def losa(base: CheckedModel, folder: Path) -> Path:
    linear = base.spec.linears()[0]
    rng = np.random.default_rng(0)
    pair = (
        rng.standard_normal((2, linear.in_features)).astype("f4"),
        rng.standard_normal((linear.out_features, 2)).astype("f4"),
    )
    write_losa(
        folder,
        base_name="base",
        base_sha256=base.checkpoint.identity(),
        factors={linear.module: pair},
        masks={linear.module: base.masks.mask(linear)},
        alpha=2,
        r_ref=2,
    )
    return folder


def spp(base: CheckedModel, folder: Path) -> Path:
    q = targeted(base.spec, "q")[0]
    write_spp(folder, factors={q: (np.ones((16, 64), "f4"), np.ones((64, 1), "f4"))})
    return folder


@pytest.mark.parametrize("make", [losa, spp])
def test_a_masked_delta_is_no_lora(base: CheckedModel, tmp_path: Path, make: Any):
    error = refused(base, make(base, tmp_path / "a"), "lora", tmp_path / "out", InputRefused)
    assert error.code == "conversion-impossible" and "mask" in error.found
    assert "--adapter" in error.hint


def test_a_masked_pooling_adapter_is_no_lora(base: CheckedModel, tmp_path: Path):
    source = pooling(base, tmp_path / "pool", train_mask="exact")
    error = refused(base, source, "lora", tmp_path / "out", InputRefused)
    assert error.code == "conversion-impossible"


def test_only_pooling_has_a_table(base: CheckedModel, tmp_path: Path):
    source = s2ft(base, tmp_path / "a")
    error = refused(base, source, "table", tmp_path / "out", InputRefused)
    assert error.code == "conversion-impossible" and "--to lora" in error.hint


def test_a_whole_fine_tune_is_no_lora(base: CheckedModel, tmp_path: Path):
    other = save_tiny("llama2", tmp_path / "other", sparsity=0.5, seed=4)
    error = refused(base, other, "lora", tmp_path / "out", InputRefused)
    assert error.code == "conversion-impossible"


def test_biases_do_not_fit_a_lora(tmp_path: Path):
    base = opened(save_tiny("qwen2", tmp_path / "base"))
    q = targeted(base.spec, "q")[0]
    chosen: Any = {q: ("rows", [1], np.ones((1, 64), "f4"))}
    write_s2ft(tmp_path / "a", chosen, biases={q: np.ones(64, "f4")})
    error = refused(base, tmp_path / "a", "lora", tmp_path / "out", InputRefused)
    assert error.code == "conversion-impossible" and error.tensor == f"{q}.bias"


def test_where_it_may_not_write(base: CheckedModel, tmp_path: Path):
    source = s2ft(base, tmp_path / "a")
    for out, code in (
        (source, "output-inside-input"),
        (source / "deep", "output-inside-input"),
        (base.checkpoint.root / "lora", "output-inside-input"),
    ):
        with pytest.raises(UsageError) as caught:
            made(base, source, "lora", out)
        assert caught.value.code == code
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("x")
    with pytest.raises(UsageError) as caught:
        made(base, source, "lora", tmp_path / "there")
    assert caught.value.code == "output-exists"
    with pytest.raises(UsageError):  # not ours to replace
        made(base, source, "lora", tmp_path / "there", force=True)
    (tmp_path / "there" / "adapter_config.json").write_text("{}")
    made(base, source, "lora", tmp_path / "there", force=True)
    assert not (tmp_path / "there" / "mine").exists()
    source = pooling(base, tmp_path / "pool")
    for force in (False, True):
        made(base, source, "table", tmp_path / "table", force=force)


def test_an_unknown_format(base: CheckedModel, tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        made(base, s2ft(base, tmp_path / "a"), "gguf", tmp_path / "out")
    assert caught.value.expected == "one of lora, table"


def test_a_wrong_copy_is_never_published(
    base: CheckedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What was written is read back and compared before the folder appears."""
    from exporter.convert import lora

    def wrong(adapter: Any, ranks: Any, spec: Any) -> Any:
        doubled = {m: (r, 2 * scale) for m, (r, scale) in ranks.items()}
        return plain(adapter, doubled, spec)

    plain = lora._config  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(lora, "_config", wrong)
    source = s2ft(base, tmp_path / "a")
    error = refused(base, source, "lora", tmp_path / "out", VerificationFailed)
    assert error.code == "verify-numbers"


def test_equal_inputs_give_equal_bytes(base: CheckedModel, tmp_path: Path):
    source = s2ft(base, tmp_path / "a")
    for name in ("x", "y"):
        made(base, source, "lora", tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "x" / file).read_bytes() == (tmp_path / "y" / file).read_bytes()


def test_command(base: CheckedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, model = str(s2ft(base, tmp_path / "a")), str(base.checkpoint.root)
    out = str(tmp_path / "lora")
    command = ["convert", source, "--model", model, "--to", "lora", "-o", out]
    assert run(command) == 0
    assert "14 modules of s2ft as lora, the same delta exactly" in capsys.readouterr().out
    assert run(command) == 2  # it is there
    capsys.readouterr()
    assert run([*command, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["largest_error"] == 0.0
    assert load_adapter(Path(out), base.spec, BaseIdentity(None, base.checkpoint.identity))
