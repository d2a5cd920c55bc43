"""AdaLoRA, LoHa, LoKr, (IA)^3, VeRA and SHiRA folders by our writers, with slow float64 deltas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporter.adapters.adalora import write_adalora
from exporter.adapters.ia3 import write_ia3
from exporter.adapters.loha import write_loha
from exporter.adapters.lokr import kronecker_shapes, write_lokr
from exporter.adapters.shira import write_shira
from exporter.adapters.vera import write_vera

Shapes = Mapping[str, tuple[int, int]]
Slow = Mapping[str, Callable[[Any], Any]]  # module -> the delta on a weight, float64
RANK = 3


def _random(seed: int = 3) -> Callable[..., Any]:
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def adalora(folder: Path, shapes: Shapes) -> Slow:
    """Of init_r 5, of which a budget has left 3; one module has lost all."""
    new = _random()
    last = list(shapes)[-1]
    ranks = {m: 0 if m == last else RANK for m in shapes}
    made = {
        m: (new(ranks[m], i), new(ranks[m], 1), new(o, ranks[m])) for m, (o, i) in shapes.items()
    }
    kept = {m: [k < r for k in range(5)] for m, r in ranks.items()}
    write_adalora(folder, made, init_r=5, alpha=7, kept=kept)

    def slow(module: str) -> Any:
        a, e, b = (t.astype(np.float64) for t in made[module])
        return 7 / (5 + 1e-5) * (b @ np.diag(e[:, 0]) @ a)

    return {m: lambda w, m=m: slow(m) for m in shapes if m != last}


def loha(folder: Path, shapes: Shapes) -> Slow:
    """Ranks that differ from module to module."""
    new = _random()
    made: dict[str, Any] = {}
    for rank, (module, (out, width)) in enumerate(shapes.items(), start=1):
        made[module] = (new(out, rank), new(rank, width), new(out, rank), new(rank, width))
    write_loha(folder, made, alpha=2)

    def slow(module: str) -> Any:
        a, b, c, d = (t.astype(np.float64) for t in made[module])
        return 2 / a.shape[1] * (a @ b) * (c @ d)

    return {m: lambda w, m=m: slow(m) for m in shapes}


def lokr(folder: Path, shapes: Shapes, *, rank: int = RANK, **options: Any) -> Slow:
    """Factored where PEFT factors: with `rank` below half of a factor's longer side."""
    new = _random()
    both, factor = options.get("decompose_both", False), options.get("decompose_factor", -1)
    made: dict[str, dict[str, Any]] = {}
    for module, shape in shapes.items():
        pairs = kronecker_shapes(shape, factor)
        made[module] = {}
        for name, (out, width), may in zip(("w1", "w2"), pairs, (both, True), strict=True):
            if may and rank < max(out, width) / 2:
                made[module] |= {f"{name}_a": new(out, rank), f"{name}_b": new(rank, width)}
            else:
                made[module][name] = new(out, width)
    write_lokr(folder, made, shapes, rank=rank, alpha=5, **options)

    def slow(module: str) -> Any:
        wide = {n: t.astype(np.float64) for n, t in made[module].items()}
        w1, w2 = (wide[n] if n in wide else wide[f"{n}_a"] @ wide[f"{n}_b"] for n in ("w1", "w2"))
        return 5 / rank * np.kron(w1, w2)

    return {m: lambda w, m=m: slow(m) for m in shapes}


def ia3(folder: Path, shapes: Shapes) -> Slow:
    """Every second module scales its inputs."""
    new = _random()
    inputs = {m: new(i) for m, (_, i) in list(shapes.items())[::2]}
    outputs = {m: new(o) for m, (o, _) in list(shapes.items())[1::2]}
    write_ia3(folder, outputs, inputs)
    scales = {m: v[None, :] for m, v in inputs.items()}
    scales |= {m: v[:, None] for m, v in outputs.items()}
    return {m: lambda w, m=m: w * scales[m].astype(np.float64) - w for m in shapes}


def vera(folder: Path, shapes: Shapes) -> Slow:
    """With its shared matrices in the file."""
    new = _random()
    largest = [max(s[axis] for s in shapes.values()) for axis in (0, 1)]
    a, b = new(RANK, largest[1]), new(largest[0], RANK)
    made = {m: (new(out), new(RANK)) for m, (out, _) in shapes.items()}
    write_vera(folder, made, (a, b))

    def slow(module: str) -> Any:
        out, width = shapes[module]
        lb, ld = (t.astype(np.float64) for t in made[module])
        return np.diag(lb) @ b[:out].astype(np.float64) @ np.diag(ld) @ a[:, :width]

    return {m: lambda w, m=m: slow(m) for m in shapes}


def shira(folder: Path, shapes: Shapes, masks: Mapping[str, Any] | None = None) -> Slow:
    """At random positions, or at all positions of `masks` (the oracle)."""
    rng = np.random.default_rng(4)
    entries: dict[str, Any] = {}
    dense: dict[str, Any] = {}
    for module, (out, width) in shapes.items():
        if masks is None:
            chosen = rng.choice(out * width, out + width, replace=False)  # in no order
        else:
            chosen = rng.permutation(np.flatnonzero(masks[module]))
        values = rng.standard_normal(len(chosen)).astype(np.float32)
        entries[module] = (np.stack(np.unravel_index(chosen, (out, width))), values)
        dense[module] = np.zeros((out, width))
        dense[module].flat[chosen] = values
    write_shira(folder, entries, r=1 if masks is None else None)
    return {m: lambda w, m=m: dense[m] for m in shapes}


FAMILIES: dict[str, Callable[[Path, Shapes], Slow]] = {
    "adalora": adalora,
    "loha": loha,
    "lokr": lokr,
    "ia3": ia3,
    "vera": vera,
    "shira": shira,
}
