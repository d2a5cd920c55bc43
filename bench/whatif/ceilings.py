"""What this machine reads and multiplies, at most and by each kernel, measured in one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from backends.packed.kernels.library import library
from backends.packed.values import ValueType
from bench.kernels.cases import kernel_case
from bench.kernels.run import read_ceiling, time_rounds
from bench.parts import Frozen
from bench.whatif.reads import DENSE, PATTERNS, Shape, kept_values
from exporter.contract import Progress

_CALLS = 8  # of a kernel in a round: the first ones after a pause are slower than those in a model
_COMPUTE_ROWS = 16  # of x: enough products a weight that multiplying is what takes the time
_SMALL = 256 << 10  # bytes of a weight that stays in the caches next to a core
_LARGEST = (4096, 8192)  # of the weight that stands for all: bounds memory and time
_L3 = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_DEFAULT_L3 = 32 << 20


class Rate(Frozen):
    """What one kernel reached on weights that come from memory."""

    values: str
    pattern: str
    bytes_per_second: float


class Ceilings(Frozen):
    """Ceilings are of the fastest round, rates of the median one.

    Operations are multiplications and additions.
    """

    isa: str
    threads: int
    batch: int
    l3_bytes: int
    read_bytes_per_second: float
    operations_per_second: dict[str, float]
    rates: list[Rate]

    def rate(self, values: str, pattern: str) -> float:
        """Bytes a second of one kernel."""
        found = (r for r in self.rates if (r.values, r.pattern) == (values, pattern))
        return next(found).bytes_per_second


def measure_ceilings(
    shape: Shape, values: Sequence[ValueType], batch: int, rounds: int, tell: Progress
) -> Ceilings:
    """Plain reading, multiplying in cache, and each kernel on a weight like the model's largest.

    Weights of a kernel are copied until they are twice the last-level cache, as those of a model
    that does not fit.

    Raises:
        EngineUnfit: `engine-missing` where the kernels are not built.
    """
    lib, l3 = library(), l3_bytes()
    shape = (min(shape[0], _LARGEST[0]), min(shape[1], _LARGEST[1]))
    reads: list[float] = []
    rates: list[Rate] = []
    operations: dict[str, float] = {}
    for i, kind in enumerate(values):
        tell(f"kernels with {kind.value} values", i, len(values))
        operations[kind.value] = _operations(kind, rounds)
        total = 2 * l3
        cases = [kernel_case(p, shape, kind.value, p, batch, total) for p in PATTERNS]
        read = read_ceiling(max(64, total >> 20))
        found = time_rounds([*cases, read], rounds + 1, _CALLS)
        reads.append(read.bytes / min(found["read"]))
        for case in cases:
            speed = case.bytes / median(found[case.name][1:])  # the first round warms
            rates.append(Rate(values=kind.value, pattern=case.name, bytes_per_second=speed))
    return Ceilings(
        isa=lib.choose().label,
        threads=lib.threads,
        batch=batch,
        l3_bytes=l3,
        read_bytes_per_second=max(reads),
        operations_per_second=operations,
        rates=rates,
    )


def l3_bytes() -> int:
    """Size of the last-level cache; 32 MiB where the system does not tell."""
    try:
        text = _L3.read_text().strip()
        return int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]]
    except (OSError, ValueError, KeyError, IndexError):
        return _DEFAULT_L3


def _operations(kind: ValueType, rounds: int) -> float:
    """Operations a second of the dense kernel on a weight in cache."""
    columns = 1024
    shape = (max(64, _SMALL * 8 // kind.bits // columns // 16 * 16), columns)
    case = kernel_case("compute", shape, kind.value, DENSE, _COMPUTE_ROWS, 1)
    seconds = time_rounds([case], rounds + 1, 50)["compute"]
    return 2 * _COMPUTE_ROWS * kept_values(shape, DENSE) / min(seconds)
