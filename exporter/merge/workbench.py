"""Gram matrices and solved weights on disk, in a folder that goes when the run ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.adapters.tiles import tiles
from exporter.contract import Progress
from exporter.errors import InputRefused
from exporter.model import RowReader
from exporter.store.dtypes import F32
from exporter.store.sink import output_failed

BLOCK_ROWS = 256  # of a weight in memory while its rows are solved or its errors are summed


class Workbench:
    """Matrices by module, each in a file of its own, mapped when read.

    Modules that share their input (q, k and v) share one file. `.npy` because numpy itself maps
    it; nothing of it is ever shipped.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._grams: dict[str, Path] = {}
        self._files = 0

    def keep_gram(self, modules: Sequence[str], gram: F32) -> None:
        """Store `H [in, in]` of modules that read the same input.

        Raises:
            InputRefused: `output-failed`; `value-not-finite` where the activations overflowed.
        """
        if not np.isfinite(gram.sum(dtype=np.float64)):
            raise InputRefused(
                "value-not-finite",
                "the second moments of the inputs are not finite on the calibration text",
                expected="finite activations in float32",
                tensor=modules[0],
            )
        path = self._new()
        try:
            np.save(path, gram, allow_pickle=False)
        except OSError as error:
            raise output_failed(error, path) from error
        self._grams |= dict.fromkeys(modules, path)

    def gram(self, module: str) -> Callable[[], F32] | None:
        """What maps the matrix of a module; None where it was not measured."""
        path = self._grams.get(module)
        return None if path is None else lambda: np.load(path, mmap_mode="r", allow_pickle=False)

    def keep_rows(
        self, shape: tuple[int, int], rows: RowReader, progress: Progress | None = None
    ) -> RowReader:
        """Compute `rows` once, `BLOCK_ROWS` at a time, and give a reader of the stored values.

        Raises:
            InputRefused: `output-failed`.
        """
        steps = tiles(0, shape[0], BLOCK_ROWS)
        done = self.keep_blocks(
            shape, np.dtype("<f4"), (rows(r0, r1) for r0, r1 in steps), progress
        )
        return lambda r0, r1: done(r0, r1).astype(np.float32, copy=False)

    def keep_blocks(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        blocks: Iterable[NDArray[Any]],
        progress: Progress | None = None,
    ) -> Callable[[int, int], NDArray[Any]]:
        """Store an array of `shape` given in blocks of rows, and give a reader of fresh rows.

        Raises:
            InputRefused: `output-failed`.
        """
        path, done = self._new(), 0
        descr = np.lib.format.dtype_to_descr(dtype)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        try:
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for block in blocks:
                    block.astype(dtype, copy=False).tofile(file)
                    done += len(block)
                    if progress is not None:
                        progress("solve rows", done, shape[0])
        except OSError as error:
            raise output_failed(error, path) from error
        return _Stored(path)

    def _new(self) -> Path:
        self._files += 1
        return self._folder / f"{self._files:06}.npy"


class _Stored:
    """Rows of a stored array; the file is open only while some are read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, r0: int, r1: int) -> NDArray[Any]:
        """Rows `[r0:r1]`, fresh."""
        return np.array(np.load(self._path, mmap_mode="r", allow_pickle=False)[r0:r1])
