"""The block of a full weight that one rank keeps."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.errors import InputRefused


@dataclass(frozen=True)
class Piece:
    """Rows `[r0:r1]`, columns `[c0:c1]` of a weight `[out, in]`.

    Args:
        shape: `[out, in]` of the whole weight, as the layer expects it.
        at: first row that the block fills in the layer's own (fused) weight.
    """

    r0: int
    r1: int
    c0: int
    c1: int
    shape: tuple[int, int]
    at: int = 0

    @property
    def rows(self) -> int:
        """Rows of the block."""
        return self.r1 - self.r0

    @property
    def columns(self) -> int:
        """Columns of the block."""
        return self.c1 - self.c0

    @property
    def whole(self) -> bool:
        """Whether the block is the weight."""
        return (self.rows, self.columns) == self.shape

    def fits(self, module: str, shape: tuple[int, ...]) -> None:
        """Refuse a weight of another shape than the layer's.

        Raises:
            InputRefused: `tensor-shape`.
        """
        if shape != self.shape:
            raise InputRefused(
                "tensor-shape",
                f"a weight of shape {list(shape)}",
                expected=f"{list(self.shape)}, from config.json",
                tensor=module,
            )


def column_piece(rows: int, columns: int, rank: int, ranks: int, at: int = 0) -> Piece:
    """The rows of rank `rank` of `ranks`, each of which has `rows`; all columns."""
    return Piece(rank * rows, (rank + 1) * rows, 0, columns, (rows * ranks, columns), at)


def row_piece(rows: int, columns: int, rank: int, ranks: int) -> Piece:
    """The columns of rank `rank` of `ranks`, each of which has `columns`; all rows."""
    return Piece(0, rows, rank * columns, (rank + 1) * columns, (rows, columns * ranks))


def kv_piece(rows: int, columns: int, rank: int, ranks: int, replicas: int, at: int) -> Piece:
    """Rows of key or value heads, each of which `replicas` neighbouring ranks hold alike."""
    return column_piece(rows, columns, rank // replicas, ranks // replicas, at)
