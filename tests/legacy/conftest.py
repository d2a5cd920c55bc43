"""A sparse model, and the same weights compressed by compressed-tensors and by us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.vllm.legacy.write import plan, write
from exporter.check.model import check_model
from exporter.merge.fuse import fuse
from exporter.model import FusedModel
from exporter.store.checkpoint import Checkpoint
from tests.legacy.write_ct import write_ct
from tests.tiny import make_tiny, save_tokenizer

SHORT = {"max_position_embeddings": 40}


def two_four(folder: Path, kind: str = "smollm2", dtype: str = "bfloat16", **more: Any) -> Path:
    """A tiny model that keeps at most two of each four; some groups keep one, some none."""
    import torch

    model = make_tiny(kind, **{**SHORT, **more})
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_proj.weight" not in name:
                continue
            groups = weight.view(-1, 4)
            least = groups.abs().argsort(dim=1)
            groups.scatter_(1, least[:, :2], 0.0)
            draw = torch.rand(len(groups), generator=generator)
            groups[draw < 0.1] = 0.0
            one = draw > 0.9
            groups[one] *= torch.nn.functional.one_hot(least[one, 3], 4)
            groups += 0.0  # no -0.0
    folder.mkdir(parents=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def fused(folder: Path) -> FusedModel:
    return fuse(check_model(Checkpoint.open(folder)), [])


def written(model: FusedModel, out: Path, **options: Any) -> Path:
    """Our folder; its files have the sizes that were planned."""
    out.mkdir()
    write(model, out, lambda *_: None, **options)
    sizes = {p.relative_to(out).as_posix(): p.stat().st_size for p in out.rglob("*.*")}
    assert {f.name: f.nbytes for f in plan(model, **options).files} == sizes
    return out


@pytest.fixture(scope="session", params=["bfloat16", "float16"])
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("legacy") / request.param
    return two_four(folder, dtype=request.param)


@pytest.fixture(scope="session")
def theirs(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ct(dense, tmp_path_factory.mktemp("legacy") / "theirs")


@pytest.fixture(scope="session")
def ours(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(fused(dense), tmp_path_factory.mktemp("legacy") / "ours")
