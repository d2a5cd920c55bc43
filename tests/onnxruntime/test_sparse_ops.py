"""Option sparse_ops of the target: from the command line to a folder, its checks and its needs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from backends.decoder_graph.options import DOMAIN
from backends.onnxruntime import operators
from backends.onnxruntime.target import OnnxRuntimeTarget
from backends.packed.kernels.library import ISA_VARIABLE, Library
from exporter.cli import run
from exporter.errors import EngineUnfit, UsageError, VerificationFailed
from exporter.registry import load_target
from exporter.store.manifest import read_manifest
from tests.fused import fused_from
from tests.tiny import make_tiny
from tests.vllm_target.models import by_role, everything, fused, lower, nm, save_pruned, structure
from tests.vllm_target.models import unstructured as at

SPARSE = OnnxRuntimeTarget(sparse_ops="on")


def hollow(name: str, size: np.ndarray) -> np.ndarray:
    """70 % zeros, and none of the first 20 rows kept."""
    kept = at(0.7)(name, size)
    kept[:20] = False
    return kept


# An N:M and a dense linear; row blocks without a weight; sizes that are no multiple of a tile.
MIXED = by_role(gate_proj=nm(3, 8), o_proj=everything, up_proj=hollow, rest=at(0.7))


@pytest.fixture(scope="module", autouse=True)
def built(kernels: Library) -> None:
    del kernels


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pruned("qwen2", tmp_path_factory.mktemp("sparse") / "m", MIXED)


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    return lower(SPARSE, fused(model, SPARSE), tmp_path / "sparse")


def logits(target: OnnxRuntimeTarget, folder: Path, threads: int = 1) -> list[np.ndarray]:
    """Of a prompt, a longer one, and three tokens after it."""
    session = target.open(folder, threads=threads)
    found = [session.prefill([5, 6, 7]), session.prefill(list(range(3, 36)))]
    found += [session.decode(token) for token in (8, 9, 10)]
    session.close()
    return found


def off(found: list[np.ndarray], want: list[np.ndarray]) -> float:
    return max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, want, strict=True)
    )


@pytest.mark.parametrize("values", ["fp32", "bf16"])
def test_an_export_is_verified_and_says_what_it_needs(values: str, model: Path, tmp_path: Path):
    out = tmp_path / "out"
    asked = f"onnxruntime,sparse_ops=on,values={values}"
    assert run([str(model), "--target", asked, "-o", str(out)]) == 0
    entry = read_manifest(out).target
    assert entry.options == {"sparse_ops": "on", "values": values}
    assert entry.needs == {"operators sparse_export": "1, in libsparse_export_kernels.so"}
    report = json.loads((out / ".sparse-export/report.json").read_text())
    packed = report["verification"]["structure"]["packed"]
    assert packed["kinds"] == {f"3:8, {values}": 2, f"ragged, {values}": 10}
    assert run(["verify", str(out)]) == 0


def test_a_plain_export_needs_nothing(model: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert run([str(model), "--target", "onnxruntime", "-o", str(out)]) == 0
    assert read_manifest(out).target.needs == {}
    assert {o.domain for o in _graph(out).opset_import} == {""}


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("kind", ["smollm2", "qwen3", "mistral"])
def test_logits_are_those_of_the_plain_graph(kind: str, sparsity: float, tmp_path: Path):
    source = save_pruned(kind, tmp_path / "m", at(sparsity))
    plain, half = OnnxRuntimeTarget(), OnnxRuntimeTarget(sparse_ops="on", values="bf16")
    want = logits(plain, lower(plain, fused(source, plain), tmp_path / "plain"))
    found = logits(SPARSE, lower(SPARSE, fused(source, SPARSE), tmp_path / "fp32"))
    assert off(found, want) <= 1e-5
    found = logits(half, lower(half, fused(source, half), tmp_path / "bf16"))
    assert off(found, want) <= 1e-5  # of a bfloat16 checkpoint


def test_every_instruction_set(
    folder: Path, model: Path, kernels: Library, monkeypatch: pytest.MonkeyPatch
):
    plain = OnnxRuntimeTarget()
    want = logits(plain, lower(plain, fused(model, plain), folder.parent / "plain"))
    for isa in kernels.isas():
        monkeypatch.setenv(ISA_VARIABLE, isa.label)
        assert off(logits(SPARSE, folder), want) <= 1e-5
        assert SPARSE.open(folder).facts().extra["isa"] == isa.label


def test_threads_of_the_session_change_no_bit(folder: Path, kernels: Library):
    before = kernels.threads
    one, two = logits(SPARSE, folder, 1), logits(SPARSE, folder, 2)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert kernels.threads == before


def test_the_graph_alone_tells_that_it_needs_operators(folder: Path):
    """A benchmark or a peer opens it without the options it was exported with."""
    session = OnnxRuntimeTarget().open(folder)
    extra = session.facts().extra
    assert extra["packed_linears"] == 12 and extra["isa"]
    assert session.facts().weight_bytes == (folder / "model.data").stat().st_size


def test_probe_shows_the_states_of_the_plain_graph(folder: Path, model: Path):
    plain = OnnxRuntimeTarget()
    other = lower(plain, fused(model, plain), folder.parent / "plain")
    want, found = plain.probe(other, [5, 6, 7]), SPARSE.probe(folder, [5, 6, 7])
    assert found.keys() == want.keys()
    assert all(np.allclose(found[key], want[key], atol=1e-5) for key in want)


def test_bytes_are_smaller_and_the_same_every_time(folder: Path, model: Path):
    again = lower(SPARSE, fused(model, SPARSE), folder.parent / "again")
    for name in ("model.onnx", "model.data"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()
    plain = lower(OnnxRuntimeTarget(), fused(model, SPARSE), folder.parent / "plain")
    assert (folder / "model.data").stat().st_size < 0.6 * (plain / "model.data").stat().st_size
    onnx.checker.check_model(str(folder / "model.onnx"))


def test_what_is_not_sparse_stays_plain(tmp_path: Path):
    nothing = by_role(up_proj=at(1.0), rest=everything)
    source = save_pruned("llama2", tmp_path / "m", nothing)
    model = fused(source, SPARSE)
    assert SPARSE.inspect(model)[-1].level == "warning"
    out = lower(SPARSE, model, tmp_path / "out")
    assert {o.domain for o in _graph(out).opset_import} == {""}
    assert structure(SPARSE, model, out).failures == ()
    assert logits(SPARSE, out)[0].shape == (3, 272)


def test_note_counts_the_nodes(model: Path):
    note = SPARSE.inspect(fused(model, SPARSE))[-1]
    assert note.level == "note" and "12 of 14 linears" in note.message


def test_values_go_with_sparse_ops_only():
    for options in ({"values": "bf16"}, {"sparse_ops": "off", "values": "fp32"}):
        with pytest.raises(UsageError, match="sparse_ops=on") as caught:
            load_target("onnxruntime", options)
        assert caught.value.code == "target-option"
    for options in ({"sparse_ops": "yes"}, {"sparse_ops": "on", "values": "int8"}):
        with pytest.raises(UsageError):
            load_target("onnxruntime", options)


def _libm() -> Path:
    """A library that is none of ours."""
    with open("/proc/self/maps", encoding="ascii") as lines:
        return Path(
            next(found[0] for line in lines if (found := re.findall(r"/\S*libm[.-]\S*", line)))
        )


@pytest.mark.parametrize("case", ["absent", "junk", "foreign", "older"])
def test_a_library_that_cannot_serve_is_a_typed_error(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    code = {"absent": "engine-missing", "junk": "engine-missing"}.get(case, "engine-unfit")
    path = folder / "kernels.so"
    if case == "junk":
        path.write_bytes(b"junk")
    elif case == "foreign":
        shutil.copy(_libm(), path)
    if case == "older":
        monkeypatch.setattr(Library, "operators", 0)
    else:
        monkeypatch.setattr(operators, "LIBRARY", path)
    for call in (lambda: SPARSE.open(folder), lambda: OnnxRuntimeTarget().probe(folder, [1])):
        with pytest.raises(EngineUnfit) as caught:
            call()
        assert caught.value.code == code
        assert "backends.packed.kernels.compile" in str(caught.value) or case == "foreign"
    assert not SPARSE.runtime().available
    assert OnnxRuntimeTarget().runtime().available


def test_an_export_without_the_library_publishes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setattr(operators, "LIBRARY", tmp_path / "none.so")
    out = tmp_path / "out"
    assert run([str(model), "--target", "onnxruntime,sparse_ops=on", "-o", str(out)]) == 4
    assert "engine-missing" in capsys.readouterr().err and not out.exists()
    assert run([str(model), "--target", "onnxruntime", "-o", str(out)]) == 0


def test_an_instruction_set_that_is_not_here(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ISA_VARIABLE, "neon")
    with pytest.raises(EngineUnfit, match="neon") as caught:
        SPARSE.open(folder)
    assert caught.value.code == "engine-unfit"


def test_operators_of_another_version_are_refused(folder: Path):
    _change(folder, lambda graph: setattr(graph.opset_import[1], "version", 2))
    with pytest.raises(EngineUnfit, match="version 2") as caught:
        SPARSE.open(folder)
    assert caught.value.code == "engine-unfit"


def test_a_changed_bit_of_a_value_or_a_mask_is_found(folder: Path, model: Path):
    whole = (folder / "model.data").read_bytes()
    want = fused(model, SPARSE)
    places = {t.name: _place(t) for t in _graph(folder).graph.initializer if t.external_data}
    module = "model.layers.1.mlp.up_proj"
    for part in ("values", "mask", "offsets", "starts"):
        raw = bytearray(whole)
        raw[places[f"{module}.{part}"] + 8] ^= 1
        (folder / "model.data").write_bytes(raw)
        if part == "values":
            assert any(module in fault for fault in structure(SPARSE, want, folder).failures)
            continue
        with pytest.raises(VerificationFailed, match=module) as caught:
            list(SPARSE.read_back(folder))
        assert caught.value.code == "verify-structure"


Change = Callable[[onnx.ModelProto], Any]


def _attribute(name: str, value: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.domain == DOMAIN)
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        more = [] if value is None else [onnx.helper.make_attribute(name, value)]
        node.attribute.extend([*kept, *more])

    return change


def _inputs(*names: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.domain == DOMAIN)
        del node.input[1:]
        node.input.extend(names)

    return change


def _inside(model: onnx.ModelProto) -> None:
    """The first node's mask as a tensor of the graph itself."""
    tensor = next(t for t in model.graph.initializer if t.name.endswith(".mask"))
    raw = bytes(int(np.prod(tensor.dims)))
    tensor.CopyFrom(
        onnx.helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, raw, raw=True)
    )


BAD: dict[str, Change] = {
    "kind": _attribute("kind", "dense"),
    "no kind": _attribute("kind", None),
    "values": _attribute("values", "int8"),
    "shape": _attribute("shape", [72, 71]),
    "nnz": _attribute("nnz", 3),
    "more": _attribute("group", 64),
    "kind of bytes": _attribute("kind", b"\xff\xfe"),
    "no parts": _inputs(),
    "strange parts": _inputs("a.values", "a.mask", "a.offsets", "a.starts"),
    "empty parts": _inputs("", ""),
    "inside": _inside,
}


@pytest.mark.parametrize("case", BAD)
def test_a_node_that_lies_is_refused(case: str, folder: Path):
    _change(folder, BAD[case])
    with pytest.raises(VerificationFailed) as caught:
        list(SPARSE.read_back(folder))
    assert caught.value.code == "verify-structure"


def test_only_parts_may_have_other_types(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    OnnxRuntimeTarget().lower(fused_from(make_tiny("llama2")), out, lambda *_: None)

    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "model.norm.weight")
        tensor.data_type = onnx.TensorProto.INT32

    _change(out, change)
    with pytest.raises(VerificationFailed, match="I32"):
        list(OnnxRuntimeTarget().read_back(out))


def _graph(folder: Path) -> onnx.ModelProto:
    return onnx.load_model(folder / "model.onnx", load_external_data=False)


def _change(folder: Path, change: Change) -> None:
    model = _graph(folder)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def _place(tensor: onnx.TensorProto) -> int:
    return next(int(e.value) for e in tensor.external_data if e.key == "offset")
