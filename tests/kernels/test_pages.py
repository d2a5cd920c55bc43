"""Large pages: values stay, and small or foreign tensors are left alone."""

import torch

from backends.packed.kernels.pages import collapse


def test_values_stay_where_they_are() -> None:
    big, small = torch.arange(3 << 20, dtype=torch.float32), torch.arange(5)
    at, copy = big.data_ptr(), big.clone()
    collapse(big, small, torch.empty(4, device="meta"))
    assert big.data_ptr() == at and torch.equal(big, copy)
    assert torch.equal(small, torch.arange(5))
