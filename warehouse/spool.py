"""Rows of cells on their way into a commit: in memory while few, on disk beyond a limit."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl
import pyarrow as pa

#: Rows that are read back at once.
_ROWS = 512


class Spool:
    """Collects frames and gives them back in order; memory stays below `limit_bytes`, whatever the plate holds.

    Used in a `with` block, which removes what lies on disk.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._waiting: list[pl.DataFrame] = []
        self._waiting_bytes = 0
        self._files: list[Path] = []
        self._folder = tempfile.TemporaryDirectory(prefix="wellhouse-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def append(self, frame: pl.DataFrame) -> None:
        """Take a frame in; frames without rows are passed over."""
        if frame.is_empty():
            return
        self._waiting.append(frame)
        self._waiting_bytes += int(frame.estimated_size())
        if self._waiting_bytes > self.limit_bytes:
            path = Path(self._folder.name) / f"{len(self._files):06d}.arrows"
            table = pl.concat(self._waiting).to_arrow()
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table, max_chunksize=_ROWS)
            self._files.append(path)
            self._waiting, self._waiting_bytes = [], 0

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for path in self._files:
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    rows = pl.from_arrow(batch)
                    assert isinstance(rows, pl.DataFrame)
                    yield rows
        if self._waiting:
            yield pl.concat(self._waiting)
