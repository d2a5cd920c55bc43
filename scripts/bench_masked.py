"""Time the masked products of training by their two ways, and torch's, over shares of zeros.

    python -m scripts.bench_masked [--zeros ...]; build/bench/masked.json

From these figures come the shares of kept weights at which the kernels change their way
(`Listed` in src/masked.h). All ways of a product take turns in one process, in a new order each
round; `lists_over_whole` is the median of the rounds' ratios of their speeds, with its interval.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from backends.packed.kernels.library import Library, library
from backends.packed.kernels.masked import MaskedProducts, Way
from backends.packed.kernels.pages import collapse
from bench.stats import median_interval

if TYPE_CHECKING:
    from torch import Tensor

PRODUCTS = ("output", "gradient of x", "of the factors")
Calls = dict[tuple[str, str], Callable[[], object]]  # by product and way


def main() -> int:
    """Time, print, write."""
    given = parse()
    lib, found = library(), []
    for zeros in given.zeros:
        milliseconds = rounds(calls(lib, given, zeros), given.rounds)
        found.extend(result(name, zeros, milliseconds) for name in PRODUCTS)
    machine = {"isa": MaskedProducts(lib).isa.name.lower(), "threads": threads()}
    shape = {"out": given.out, "in": given.width, "tokens": given.tokens, "rank": given.rank}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": "masked/1", **machine, **shape, "products": found}, indent=1)
    given.output.write_text(text + "\n", encoding="utf-8")
    show(found)
    return 0


def parse() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--zeros", type=float, nargs="+", default=[0.5, 0.6, 0.65, 0.7, 0.8, 0.9])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=int, default=5504, help="rows of the weight")
    parser.add_argument("--in", type=int, default=2048, dest="width", help="its columns")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench/masked.json"))
    return parser.parse_args()


def calls(lib: Library, given: argparse.Namespace, zeros: float) -> Calls:
    """Each product by each way, on one random linear with a share of `zeros`."""
    import torch

    torch.manual_seed(0)
    weight = torch.randn(given.out, given.width)
    kept = torch.rand(given.out, given.width) >= zeros
    collapse(weight, kept)  # as `sparse-tune` does
    x, dy = torch.randn(given.tokens, given.width), torch.randn(given.tokens, given.out)
    a, b = torch.randn(given.rank, given.width), torch.randn(given.out, given.rank)
    made: Calls = {}
    for way in (Way.WHOLE, Way.LISTS):
        by, name = MaskedProducts(lib, way=way), way.name.lower()
        fixed = (weight, kept, a, b, 2.0)
        made["output", name] = partial(by.forward, x, *fixed)
        made["gradient of x", name] = partial(by.input_gradient, dy, *fixed)
        made["of the factors", name] = partial(by.factor_gradients, x, dy, *fixed)

    def formed() -> Tensor:
        return torch.addmm(weight, b, a, alpha=2.0).mul_(kept)

    def factors() -> object:
        g = (dy.t() @ x).mul_(kept)
        return b.t() @ g, g @ a.t()

    made["output", "torch"] = lambda: x @ formed().t()
    made["gradient of x", "torch"] = lambda: dy @ formed()
    made["of the factors", "torch"] = factors
    made["output", "dense"] = lambda: x @ weight.t()
    made["gradient of x", "dense"] = lambda: dy @ weight
    made["of the factors", "dense"] = lambda: dy.t() @ x
    return made


def rounds(made: Calls, count: int) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of each call in each round; two rounds before the first do not count."""
    rng, keys = np.random.default_rng(0), list(made)
    found: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
    for turn in range(count + 2):
        for index in rng.permutation(len(keys)):
            start = time.perf_counter()
            made[keys[index]]()
            if turn >= 2:
                found[keys[index]].append(1e3 * (time.perf_counter() - start))
    return found


def result(
    name: str, zeros: float, milliseconds: dict[tuple[str, str], list[float]]
) -> dict[str, Any]:
    """Of one product: all rounds, medians, and how many times lists are as fast as whole."""
    mine = {way: each for (product, way), each in milliseconds.items() if product == name}
    ratios = [w / one for w, one in zip(mine["whole"], mine["lists"], strict=True)]
    return {
        "product": name,
        "zeros": zeros,
        "milliseconds": mine,
        "median": {way: median(each) for way, each in mine.items()},
        "lists_over_whole": median_interval(ratios, seed=0).model_dump(),
    }


def threads() -> int:
    """Of torch."""
    import torch

    return torch.get_num_threads()


def show(found: list[dict[str, Any]]) -> None:
    """Print a line for each share of zeros and product."""
    ways = list(found[0]["median"])
    table = Table("zeros", "product", *(f"{way}, ms" for way in ways), "lists / whole")
    for each in sorted(found, key=lambda one: PRODUCTS.index(one["product"])):
        ratio = each["lists_over_whole"]
        span = f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
        times = (f"{each['median'][way]:.1f}" for way in ways)
        table.add_row(f"{each['zeros']:.0%}", each["product"], *times, span)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
