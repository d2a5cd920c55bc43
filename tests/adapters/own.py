"""Adapters of the families that no library knows, written into a folder and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.load import load_adapter
from exporter.check.model import check_model
from exporter.errors import InputRefused
from exporter.model import CheckedModel, RowReader
from exporter.store.checkpoint import Checkpoint
from tests.adapters.forge import BASE


def reader(values: Any) -> RowReader:
    """Rows of an array, fresh."""
    return lambda r0, r1: values[r0:r1].astype(np.float32)


def base_of(checked: CheckedModel) -> BaseIdentity:
    """The identity of a model on disk, its rows readable."""
    checkpoint = checked.checkpoint
    return BaseIdentity(
        checkpoint.root.name,
        checkpoint.identity,
        lambda t: lambda r0, r1: checkpoint.rows(t, r0, r1),
    )


def opened(folder: Path) -> CheckedModel:
    """A model folder, checked."""
    return check_model(Checkpoint.open(folder))


def load(folder: Path, checked: CheckedModel, base: BaseIdentity | None = None) -> Adapter:
    """The adapter in `folder` for a model."""
    return load_adapter(folder, checked.spec, base or BASE)


def refused(code: str, folder: Path, checked: CheckedModel, **kwargs: Any) -> InputRefused:
    """The error with which reading `folder` ends; its code is `code`."""
    with pytest.raises(InputRefused) as caught:
        load(folder, checked, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


def rows_of(delta: Any, weight: Any) -> Any:
    """All rows of a delta, bound to `weight` where it depends on it."""
    if hasattr(delta, "bind"):
        delta = delta.bind(reader(weight), None)
    return delta.rows(0, delta.shape[0])


def in_blocks(delta: Any, weight: Any, step: int) -> Any:
    """The same, in blocks of `step` rows."""
    if hasattr(delta, "bind"):
        delta = delta.bind(reader(weight), None)
    out = delta.shape[0]
    return np.concatenate([delta.rows(r, min(r + step, out)) for r in range(0, out, step)])


def close(found: Any, want: Any, bound: float = 1e-6) -> None:
    """Largest error against largest value."""
    assert np.abs(found - want).max() <= bound * np.abs(want).max()


def bits(values: Any) -> Any:
    """float32 as its bits."""
    return cast(Any, np.ascontiguousarray(values)).view(np.uint32)
