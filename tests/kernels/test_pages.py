"""Large pages: what is asked for lies inside the tensor, and values stay."""

from types import SimpleNamespace

import pytest
import torch

from backends.packed.kernels import pages
from backends.packed.kernels.pages import LARGE, MADV_COLLAPSE, collapse


def test_values_stay_where_they_are() -> None:
    big, small = torch.arange(3 << 20, dtype=torch.float32), torch.arange(5)
    at, copy = big.data_ptr(), big.clone()
    collapse(big, small, torch.empty(4, device="meta"))
    assert big.data_ptr() == at and torch.equal(big, copy)
    assert torch.equal(small, torch.arange(5))


def test_whole_pages_of_the_tensor_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []
    libc = SimpleNamespace(madvise=lambda at, size, way: asked.append((at.value, size.value, way)))
    monkeypatch.setattr(pages.ctypes, "CDLL", lambda _: libc)
    monkeypatch.setattr(pages.sys, "platform", "linux")
    big = torch.empty(3 << 20)
    collapse(big, torch.arange(5))
    [(first, size, way)] = asked
    end = big.data_ptr() + big.nbytes
    assert way == MADV_COLLAPSE and first % LARGE == size % LARGE == 0
    assert big.data_ptr() <= first < big.data_ptr() + LARGE
    assert end - LARGE < first + size <= end
