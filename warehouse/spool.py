"""Rows of cells on their way into a commit: in memory while few, on disk beyond a limit."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl


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
            path = Path(self._folder.name) / f"{len(self._files):06d}.parquet"
            pl.concat(self._waiting).write_parquet(path, compression="lz4")
            self._files.append(path)
            self._waiting, self._waiting_bytes = [], 0

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for path in self._files:
            yield pl.read_parquet(path)
        if self._waiting:
            yield pl.concat(self._waiting)
