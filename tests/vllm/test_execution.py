"""Which way a layer runs on a CPU, what it then gives, and what is told of it; without vLLM."""

from __future__ import annotations

import logging
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from backends.packed.engine.choose import Chooser
from backends.packed.kernels.compile import LIBRARY
from backends.packed.kernels.library import library
from backends.packed.kernels.linear import CpuLinear
from backends.vllm.plugin import execution
from backends.vllm.plugin.execution import Execution
from backends.vllm.plugin.resident import Kept, OnKernels
from backends.vllm.plugin.settings import EXECUTE, MEMORY, THREADS, execute, threads
from backends.vllm.plugin.shards import kept_dense
from exporter.errors import EngineUnfit, UsageError
from tests.kernels.conftest import built
from tests.vllm.packing import How, nm, pack_weight

COLUMNS = 200
HOWS = [How(), nm(2, 8, "int8"), How(values="int4", group=128), How(values="fp32")]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[None]:
    """The kernels are built, no setting is set, nothing is remembered; threads come back."""
    built(LIBRARY)
    for name in (MEMORY, EXECUTE, THREADS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPARSE_EXPORT_HOME", str(tmp_path))
    before = library().threads
    yield
    library().share_threads(0)
    library().threads = before


def shards(hows: list[How]) -> tuple[list[Kept], torch.Tensor]:
    """Shards of 24 rows, and the weight of all in float64."""
    kept: list[Kept] = []
    dense: list[torch.Tensor] = []
    for seed, how in enumerate(hows):
        weight = torch.randn(24, COLUMNS, generator=torch.Generator().manual_seed(seed))
        spec, parts, stored = pack_weight(weight, how)
        kept.append((spec, parts))
        dense.append(stored.double())
    return kept, torch.cat(dense)


def run(
    found: Execution, kept: list[Kept], x: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, OnKernels]:
    layer = torch.nn.Module()
    form = OnKernels(layer, [found.linear(shard, x.dtype) for shard in kept])
    return form(layer, x, bias), form


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 4e-3), (torch.float16, 4e-4), (torch.float32, 5e-5)]
)
def test_a_fused_layer_of_four_kinds(
    dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64, with the values as they are stored."""
    monkeypatch.setenv(EXECUTE, "sparse")
    kept, weight = shards(HOWS)
    kept.append(kept_dense(torch.randn(24, COLUMNS).to(dtype)))  # a shard that is not packed
    weight = torch.cat([weight, kept[-1][1]["values"].double()])
    x = torch.randn(3, COLUMNS, generator=torch.Generator().manual_seed(9)).to(dtype)
    bias = torch.linspace(-1, 1, 120).to(dtype)
    found, form = run(Execution(), kept, x, bias)
    want = x.double() @ weight.T + bias.double()
    assert found.dtype == dtype and found.shape == want.shape
    assert float((found.double() - want).norm() / want.norm()) < bound
    assert [linear.spec.kind for linear in form.linears] == [
        "ragged",
        "nm",
        *["ragged"] * 2,
        "dense",
    ]


def test_auto_asks_the_packed_engines_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense by the kernels where that is much faster for one row, whatever it is for many."""
    kept, weight = shards([How(), nm(2, 8)])
    ratios = {"ragged": (1.0, 9.0, 9.0), "nm": (9.0, 0.1, 0.1)}

    def timed(sparse: CpuLinear, dense: CpuLinear, rows: int) -> float:
        assert dense.spec.kind == "dense"
        return ratios[sparse.spec.kind][(1, 8, 64).index(rows)]

    monkeypatch.setattr(execution, "Chooser", lambda how: Chooser(how, timed=timed))
    x = torch.randn(3, COLUMNS).bfloat16()
    found, form = run(Execution(), kept, x)
    assert [linear.spec.kind for linear in form.linears] == ["ragged", "dense"]
    want = x.double() @ weight.T
    assert float((found.double() - want).norm() / want.norm()) < 4e-3
    monkeypatch.setenv(MEMORY, "low")  # a dense copy is not wanted, so that nothing is timed
    ratios.clear()
    _, form = run(Execution(), kept, x)
    assert [linear.spec.kind for linear in form.linears] == ["ragged", "nm"]


def test_why_a_layer_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [spec for spec, _ in shards([How(), nm(2, 8, "int8")])[0]]
    stored_dense = [pack_weight(torch.randn(16, 64), How("dense"))[0]]
    found = Execution()
    assert found.why_dense(specs, torch.bfloat16) is None
    assert found.why_dense(specs[:1], torch.float32) is None
    assert "float32" in (found.why_dense(specs, torch.float32) or "")
    assert "nothing" in (found.why_dense(stored_dense, torch.bfloat16) or "")
    monkeypatch.setenv(EXECUTE, "sparse")
    assert Execution().why_dense(specs, torch.float32) is None
    monkeypatch.setenv(EXECUTE, "dense")
    assert Execution().why_dense(specs, torch.bfloat16) == f"{EXECUTE}=dense"


def test_without_the_library_it_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> object:
        raise EngineUnfit("engine-missing", "the CPU kernels cannot be loaded", expected="a build")

    monkeypatch.setattr(execution, "library", missing)
    specs = [pack_weight(torch.randn(16, 64), How())[0]]
    found = Execution()
    for _ in range(3):
        assert "cannot be loaded" in (found.why_dense(specs, torch.bfloat16) or "")
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "a build" in record.message


@pytest.mark.parametrize(("setting", "where"), [("openmp", "openmp"), ("own", "own pool")])
def test_the_log_and_the_key_of_compiled_graphs(
    setting: str,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "vllm.sparse_export")
    monkeypatch.setenv(THREADS, setting)
    monkeypatch.setenv(EXECUTE, "sparse")
    keys: list[object] = []
    for dense in (False, True, False):
        config = SimpleNamespace(additional_config={"theirs": 1})
        found = Execution(config)
        kept, _ = shards([How(), nm(2, 4)])
        specs = [spec for spec, _ in kept]
        for _ in range(2):
            found.opens()
            assert found.why_dense(specs, torch.bfloat16) is None
        _, form = run(found, kept, torch.ones(1, COLUMNS).bfloat16())
        found.closes(["a.q", "a.k"], form, None)
        assert "sparse_export" not in config.additional_config  # not before the last one
        found.closes(["b.q", "b.k"], None if dense else form, "so" if dense else None)
        keys.append(config.additional_config["sparse_export"])
        last = caplog.messages[-1]
        assert ("2 of 4" if dense else "4 of 4") in last and where in last
        assert ("; 2 dense (so)" in last) == dense
    assert keys[0] == keys[2] != keys[1]


def test_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (execute(), threads()) == ("auto", "openmp")
    monkeypatch.setenv(EXECUTE, "Dense")
    monkeypatch.setenv(THREADS, "own")
    assert (execute(), threads()) == ("dense", "own")
    monkeypatch.setenv(EXECUTE, "fast")
    with pytest.raises(UsageError, match="auto, sparse or dense"):
        Execution()
