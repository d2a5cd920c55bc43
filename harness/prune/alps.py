"""ALPS: layer-wise pruning by ADMM on the output's error, then least squares on the support.

Meng et al. 2024 (NeurIPS), algorithm 1, with the constants of its code (`alps.py`): the Gram matrix
is damped by 0.01 of its mean diagonal and scaled to a unit diagonal; ADMM in turn solves for dense
weights, projects onto the sparse ones, and raises rho as long as the support still changes; the
support that remains is fitted by conjugate gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from harness.prune.select import Bools, keep
from harness.prune.sparsity import Sparsity, Unstructured

DAMPING = 0.01
RHO = 0.1
ITERATIONS = 300
EVERY = 3  # iterations between two looks at the support
SETTLE = 30  # iterations after which a support that hardly changes is the last one
STEPS = 10  # of conjugate gradients
TOLERANCE = 1e-4


@dataclass
class _Penalty:
    """rho, and whether its first value has been found."""

    rho: float = RHO
    found: bool = False
    settled: bool = False

    def update(self, changed: int, kept: int, iteration: int) -> bool:
        """After a look at the support; True where ADMM must start again from the dense weights."""
        again = False
        if changed > 0.1 * kept:
            self.found, self.rho = True, self.rho * 1.3
        elif changed > 0.005 * kept:
            self.found, self.rho = True, self.rho * 1.2
        elif self.found:
            self.settled = changed == 0
            self.rho *= 1.1 if changed else 1.0
        else:
            again, self.rho = changed > 0, self.rho / 5
        self.settled |= iteration >= SETTLE and changed < 3e-4 * kept
        self.rho = min(self.rho, 1e6)
        return again


@dataclass
class _Problem:
    """`min |(B - B0) G^(1/2)|` over sparse B `[out, in]`, G with a unit diagonal."""

    gram: torch.Tensor
    start: torch.Tensor
    sparsity: Sparsity
    values: torch.Tensor = field(init=False)
    vectors: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Decompose once: the inverse for any rho follows."""
        values, vectors = torch.linalg.eigh(self.gram.double())
        self.values, self.vectors = values, vectors

    def inverse(self, rho: float) -> torch.Tensor:
        """`(G + rho I)^-1`, float32 `[in, in]`."""
        scaled = self.vectors / (self.values.clamp_min(0) + rho)
        return (scaled @ self.vectors.T).float()

    def support(self, b: torch.Tensor) -> Bools:
        """Positions of the largest values, over the whole matrix or in each group."""
        return keep(b.abs().numpy(), self.sparsity)


def alps(
    weight: torch.Tensor, gram: torch.Tensor, sparsity: Sparsity
) -> tuple[torch.Tensor, Bools]:
    """`(new weight, kept positions)`, both `[out, in]`; float32.

    An unstructured share is reached over the whole matrix, N:M in every group.

    Args:
        weight: `[out, in]` float32; not changed.
        gram: `X^T X` of the inputs, `[in, in]` float32.
        sparsity: what to reach.
    """
    damped = gram.clone()
    damped.diagonal().add_(DAMPING * float(gram.diagonal().mean()) or 1.0)
    scale = damped.diagonal().sqrt()
    if isinstance(sparsity, Unstructured):
        sparsity = Unstructured(sparsity.share, "tensor")
    problem = _Problem(damped / scale / scale[:, None], weight * scale, sparsity)
    found = _admm(problem)
    kept = problem.support(found)
    fitted = _fit(problem, found * torch.from_numpy(kept), kept)
    return fitted / scale, kept


def _admm(problem: _Problem) -> torch.Tensor:
    """The dense variable at the end, `[out, in]`."""
    target = problem.start @ problem.gram
    first = problem.start * torch.from_numpy(problem.support(problem.start))
    b, d, v = problem.start, first, torch.zeros_like(first)
    penalty, support = _Penalty(), problem.support(problem.start)
    total = int(support.sum())
    inverse = problem.inverse(penalty.rho)
    for iteration in range(ITERATIONS):
        b = (target - v + penalty.rho * d) @ inverse
        wished = b + v / penalty.rho
        chosen = problem.support(wished)
        d = wished * torch.from_numpy(chosen)
        v = v + penalty.rho * (b - d)
        if (iteration + 1) % EVERY:
            continue
        changed = int(np.count_nonzero(chosen != support))
        support, before = chosen, penalty.rho
        if penalty.update(changed, total, iteration):
            b, d, v = problem.start, first, torch.zeros_like(first)
        if penalty.settled:
            break
        if penalty.rho != before:
            inverse = problem.inverse(penalty.rho)
    return b


def _fit(problem: _Problem, b: torch.Tensor, kept: Bools) -> torch.Tensor:
    """A few steps of conjugate gradients on the fixed support, each row a system of its own."""
    free = torch.from_numpy(kept)
    target = problem.start @ problem.gram
    bound = TOLERANCE * target.norm()
    residual = (target - b @ problem.gram) * free
    direction = residual.clone()
    size = residual.square().sum(dim=1, keepdim=True)
    for _ in range(STEPS):
        if float(size.sum().sqrt()) <= float(bound):
            break
        image = (direction @ problem.gram) * free
        curve = (direction * image).sum(dim=1, keepdim=True)
        step = torch.where(curve > 0, size / curve, 0.0)
        b = b + step * direction
        residual = residual - step * image
        fresh = residual.square().sum(dim=1, keepdim=True)
        direction = residual + torch.where(size > 0, fresh / size, 0.0) * direction
        size = fresh
    return b * free
