"""Blocks of similarities made by torch: the metrics of pairs on a GPU, by the same code.

`warehouse.metrics.passes.one_pass(vectors, plans, arrays=TorchArrays())`: the product, and what a metric asks of a
block (single similarities, windows, exact products), are done on the device; only what was asked for comes back.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from extractors.base import SettingError
from warehouse.metrics.passes import Block, Floats, Rows, Vectors
from warehouse.names import unknown

DEVICES = ("auto", "cpu", "cuda")
#: Similarities held at a time: 1 GiB on a GPU, 64 MiB in the host's memory.
BLOCK = {"cuda": 2**28, "cpu": 2**24}
#: Elements that a comparison looks at, at a time.
COMPARED = 2**25


class TorchArrays:
    """A back end of `one_pass`.

    Args:
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``.

    Raises:
        UnknownNameError: a device that is in no list.
        SettingError: ``cuda`` where there is none.
    """

    def __init__(self, device: str = "auto") -> None:
        if device not in DEVICES:
            raise unknown(device, "device", DEVICES)
        there = torch.cuda.is_available()
        if device == "cuda" and not there:
            message = "device='cuda': torch finds no GPU here: take device='auto' or 'cpu'"
            raise SettingError(message)
        self.device = "cpu" if device == "cpu" or not there else "cuda"

    def blocks(self, vectors: Vectors, rows: Rows, columns: Rows | None) -> Iterator[Block]:
        """Multiply rows with columns (None: all), a block of rows at a time, in order."""
        unit = torch.from_numpy(vectors.unit).to(self.device)
        across = unit if columns is None else unit[torch.from_numpy(columns).to(self.device)]
        # In double only where it is asked for.
        exact = _Exact(vectors, columns, self.device)
        step = max(1, BLOCK[self.device] // max(len(across), 1))
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            with _full_precision():
                product = unit[torch.from_numpy(part).to(self.device)] @ across.T
            yield TorchBlock(part, product, columns, vectors, exact)


class _Exact:
    """The library in double on the device, once it is needed."""

    def __init__(self, vectors: Vectors, columns: Rows | None, device: str) -> None:
        self.vectors, self.columns, self.device = vectors, columns, device
        self._across: torch.Tensor | None = None

    def products(self, rows: Rows) -> NDArray[np.float64]:
        unit = self.vectors.exact_unit
        if self._across is None:
            across = unit if self.columns is None else unit[self.columns]
            self._across = torch.from_numpy(across).to(self.device)
        made: NDArray[np.float64] = (
            (torch.from_numpy(unit[rows]).to(self.device) @ self._across.T).cpu().numpy()
        )
        return made


class TorchBlock(Block):
    """A block on a device; `similarity` brings it into the host's memory when it is asked for."""

    def __init__(
        self, rows: Rows, product: torch.Tensor, columns: Rows | None, vectors: Vectors | None, exact: _Exact
    ) -> None:
        self.rows = rows
        self.columns = columns
        self.vectors = vectors
        self._product = product
        self._exact = exact
        self._host: Floats | None = None

    @property
    def similarity(self) -> Floats:  # type: ignore[override]
        """As of `Block`."""
        if self._host is None:
            self._host = self._product.cpu().numpy()
        return self._host

    def only(self, places: Rows, columns: Rows) -> "TorchBlock":
        """As `Block.only`."""
        across = columns if self.columns is None else self.columns[columns]
        product = self._product[self._at(places)][:, self._at(columns)]
        assert self.vectors is not None
        exact = _Exact(self.vectors, across, self._exact.device)
        return TorchBlock(self.rows[places], product, across, self.vectors, exact)

    def products(self, places: Rows) -> NDArray[np.float64]:
        """As `Block.products`."""
        return self._exact.products(self.rows[places])

    def at(self, places: Rows, columns: Rows) -> Floats:
        """As `Block.at`."""
        found: Floats = self._product[self._at(places), self._at(columns)].cpu().numpy()
        return found

    def windows(self, places: Rows, low: Floats, high: Floats) -> tuple[Rows, Rows, Rows]:
        """As `Block.windows`."""
        above, number, column = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        step = max(1, COMPARED // max(self._product.shape[1], 1))
        for first in range(0, len(places), step):
            part = slice(first, first + step)
            near = self._product[self._at(places[part])]
            over = near > self._at(high[part])[:, None]
            above.append(over.sum(dim=1).cpu().numpy())
            inside = torch.nonzero(over ^ (near > self._at(low[part])[:, None])).cpu().numpy()
            number.append(inside[:, 0] + first)
            column.append(inside[:, 1])
        return np.concatenate(above), np.concatenate(number), np.concatenate(column)

    def _at(self, values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._product.device)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Without TF32, whose ten bits would be off by far more than `Vectors.slack`."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
