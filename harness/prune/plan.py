"""What each decoder block is pruned to: the same everywhere, by importance, or by a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from exporter.arch.model_spec import ModelSpec
from exporter.errors import UsageError
from exporter.sparsity.mixed import Bounds, MixedNM, equal_deviation, spend_budget
from harness.prune.sparsity import NM, Sparsity, Unstructured, share_of
from harness.rates.names import IMPORTANCES, UNIFORM

Rule = Literal["deviation", "budget"]
# Importance [layers] by name, of the names asked for.
Observe = Callable[[Collection[str]], Mapping[str, "list[float]"]]


@dataclass(frozen=True)
class Rates:
    """How rates are made.

    `source` is "uniform", one of `IMPORTANCES`, or a JSON file (`harness.rates.user`). With N:M
    they make a mixed N:M, by `rule` of `exporter.sparsity.mixed`; `for_2_4` keeps N at 2 or less,
    so that a 2:4 kernel takes every layer.
    """

    source: str = UNIFORM
    delta: float | None = None
    beta: float = 1.0
    rule: Rule = "deviation"
    for_2_4: bool = False
    compare: tuple[str, ...] = ()  # importances whose rank correlation with RMI is told


@dataclass(frozen=True)
class Plan:
    """Sparsity of each block, and where it comes from."""

    targets: tuple[Sparsity, ...]
    importance: Mapping[str, list[float]] = field(default_factory=dict[str, list[float]])
    correlation: Mapping[str, tuple[float, float]] = field(  # with RMI: Spearman, Kendall
        default_factory=dict[str, tuple[float, float]]
    )

    @property
    def rates(self) -> list[float]:
        """Share of zeros asked of each block."""
        return [share_of(target) for target in self.targets]


def wanted(rates: Rates) -> tuple[str, ...]:
    """Importances that have to be observed.

    Raises:
        UsageError: `usage` for one that is not known.
    """
    unknown = [name for name in rates.compare if name not in IMPORTANCES]
    if unknown:
        raise UsageError(
            "usage", f"importance {unknown[0]!r}", expected=f"of {', '.join(IMPORTANCES)}"
        )
    names = {*rates.compare, *(("rmi",) if rates.compare else ())}
    if rates.source in IMPORTANCES:
        names.add(rates.source)
    return tuple(name for name in IMPORTANCES if name in names)


def make_plan(spec: ModelSpec, sparsity: Sparsity, rates: Rates, observe: Observe) -> Plan:
    """The sparsity of each block.

    Raises:
        UsageError: `usage`.
        InputRefused: `rates-invalid`; what `observe` raises.
    """
    names = wanted(rates)
    seen = dict(observe(names)) if names else {}
    if rates.source == UNIFORM:
        targets: tuple[Sparsity, ...] = (sparsity,) * spec.layers
    else:
        targets = _targets(spec, sparsity, rates, seen)
    return Plan(targets, seen, _correlations(seen) if rates.compare else {})


def _targets(
    spec: ModelSpec, sparsity: Sparsity, rates: Rates, seen: Mapping[str, list[float]]
) -> tuple[Sparsity, ...]:
    # Imported here: scipy is not needed for uniform rates.
    from harness.rates.lp import default_delta, layer_rates
    from harness.rates.user import read_rates

    sizes = block_sizes(spec)
    target = share_of(sparsity)
    importance = seen.get(rates.source)
    if importance is None:
        shares = read_rates(Path(rates.source), spec.layers).tolist()
        importance, rule = [-share for share in shares], "budget"
    else:
        shares, rule = layer_rates(importance, target, rates.delta, sizes).tolist(), rates.rule
    if isinstance(sparsity, Unstructured):
        return tuple(Unstructured(share, sparsity.scope) for share in shares)
    bounds = Bounds.of_2_4_kernel() if rates.for_2_4 else None
    if rule == "budget":
        mixed = spend_budget(shares, importance, sizes, n0=sparsity.n, m=sparsity.m, bounds=bounds)
    else:
        delta = default_delta(target) if rates.delta is None else rates.delta
        mixed = equal_deviation(
            importance, n0=sparsity.n, m=sparsity.m, delta=delta,
            insist=True, sizes=sizes, bounds=bounds,
        )  # fmt: skip
    return _nm(mixed)


def _nm(mixed: MixedNM) -> tuple[Sparsity, ...]:
    return tuple(NM(n, mixed.m) for n in mixed.kept)


def block_sizes(spec: ModelSpec) -> list[int]:
    """Weights in the linears of each block."""
    sizes = [0] * spec.layers
    for linear in spec.linears():
        sizes[linear.layer] += linear.out_features * linear.in_features
    return sizes


def _correlations(seen: Mapping[str, list[float]]) -> dict[str, tuple[float, float]]:
    import numpy as np

    from harness.rates.correlation import rank_correlation

    rmi = np.asarray(seen["rmi"])
    found = {n: rank_correlation(rmi, np.asarray(v)) for n, v in seen.items() if n != "rmi"}
    return {name: (c.spearman, c.kendall) for name, c in found.items()}
