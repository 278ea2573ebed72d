"""A matrix to work on: in memory, or in a temporary file where it would take more than it may."""

import os
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import RecipeError

Matrix = NDArray[np.float64]
_VALUE = 8


class Scratch:
    """An (n, d) float64 matrix that is read and written in stretches of rows.

    A file is read and written explicitly: mapped into memory it would count, and grow, as memory.

    Args:
        rows: n.
        columns: d.
        in_memory: keep it in memory.
        fill: take this matrix, (n, d), as it is, instead of an empty one; for `in_memory`.
    """

    def __init__(
        self, rows: int, columns: int, *, in_memory: bool = True, fill: Matrix | None = None
    ) -> None:
        self.shape = (rows, columns)
        self._array: Matrix | None = None
        self._file: IO[bytes] | None = None
        if in_memory:
            self._array = np.empty(self.shape) if fill is None else fill
        else:
            # Without a name, so that it is gone with its last user, however that ends.
            self._file = tempfile.TemporaryFile(prefix="wellhouse-")  # noqa: SIM115

    @property
    def is_in_memory(self) -> bool:
        """Whether the matrix is held in memory."""
        return self._file is None

    def close(self) -> None:
        """Let the matrix go; the file has no name, and is gone with its last user however that ends."""
        self._array = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, first: int = 0, end: int | None = None) -> Matrix:
        """Return rows `first` to `end` (left out), (m, d); not to be written to."""
        end = self.shape[0] if end is None else end
        if self._array is not None:
            return self._array[first:end]
        assert self._file is not None
        block = np.empty((end - first, self.shape[1]))
        view, at = memoryview(block.data).cast("B"), first * self.shape[1] * _VALUE
        while view:
            count = os.preadv(self._file.fileno(), [view], at)
            assert count, "the scratch file is shorter than its matrix"
            view, at = view[count:], at + count
        return block

    def take(self, rows: NDArray[np.intp], columns: slice = slice(None)) -> Matrix:
        """Return these rows, ascending, of these columns, (m, c)."""
        if self._array is not None:
            return (
                self._array[rows, columns]
                if _stretch(rows) is None
                else self._array[rows[0] : rows[-1] + 1, columns]
            )
        block = np.empty((len(rows), len(range(*columns.indices(self.shape[1])))))
        # What lies between the rows is read too: rows of one plate, or controls among them, lie close.
        step = max(1, (64 << 20) // (self.shape[1] * _VALUE))
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            for start, stop in _runs(part, step):
                inside = part[start:stop]
                read = self.read(int(inside[0]), int(inside[-1]) + 1)
                block[first + start : first + stop] = read[inside - inside[0], columns]
        return block

    def write(self, first: int, block: Matrix) -> None:
        """Put rows in, from row `first` on."""
        if self._array is not None:
            self._array[first : first + len(block)] = block
            return
        assert self._file is not None
        view = memoryview(np.ascontiguousarray(block, dtype=np.float64).data).cast("B")
        at = first * self.shape[1] * _VALUE
        try:
            while view:
                count = os.pwrite(self._file.fileno(), view, at)
                view, at = view[count:], at + count
        except OSError as error:
            message = (
                f"{self.shape[0]} × {self.shape[1]} profiles being corrected do not fit into {tempfile.gettempdir()} "
                f"({error.strerror}): make room, set TMPDIR to another folder, or allow more memory"
            )
            raise RecipeError(message) from error


def _stretch(rows: NDArray[np.intp]) -> tuple[int, int] | None:
    """The first row and the one after the last, where the rows follow each other without a gap."""
    if len(rows) and int(rows[-1] - rows[0]) == len(rows) - 1:
        return int(rows[0]), int(rows[-1]) + 1
    return None


def _runs(rows: NDArray[np.intp], limit: int) -> Iterator[tuple[int, int]]:
    """Cut ascending rows into runs that span at most `limit` rows of the matrix."""
    start = 0
    while start < len(rows):
        stop = int(np.searchsorted(rows, rows[start] + limit))
        yield start, stop
        start = stop
