"""An index as files: vectors that are only added to, what names them, a structure, and the card that says what counts.

`<name>.json`, the card, is the commit: it is replaced whole, and names a folder `<name>.<token>/` beside it with

- `vectors.f32`: n × d float32, row after row, each of length 1; read as a memory map, so that an index may be
  larger than memory. What lies beyond the n rows of the card is of an addition that did not end, and is written over.
- `rows-<i>.arrow`: columns that name and describe the rows, a part for each addition.
- `gone-<i>.npy`: rows that are no longer there.
- `null.npy`: profiles of negative controls.
- `structure.faiss`: where the index has one.

A new index is a new folder; the former one is taken away once the card names the new one. A crash leaves either the old
card or the new one, and at the most a folder that the next build takes away.
"""

import json
import os
import secrets
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from warehouse import turns
from warehouse.errors import SearchError
from warehouse.search.keys import name_of, refuse_twice
from warehouse.search.structures import Settings, Structure
from warehouse.search.vectors import Rows, Vectors, unit_rows

FORMAT = 2
_VECTORS, _NULL, _STRUCTURE = "vectors.f32", "null.npy", "structure.faiss"
_AGAIN = "build it again with `wellhouse index … --rebuild`"
#: What a card holds, and of which kind it is.
_CARD: dict[str, type | tuple[type, ...]] = {
    "folder": str, "rows": int, "dim": int, "parts": list, "gone": (str, NoneType), "gone_rows": int,
    "structure": (dict, NoneType), "kind": str, "level": str, "feature_set": str, "recipe": str, "left_out": int,
    "marks": dict,
}  # fmt: skip
_THREADS: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
#: Rows of metadata that are held before they are written.
_PART = 1_000_000
#: How long a build waits for another one of the same index, in seconds.
_WAIT_SECONDS = 600.0


@dataclass(frozen=True)
class Stored:
    """What the files of an index hold.

    Attributes:
        vectors: (n, d) float32 of length 1, a memory map.
        rows: n rows, what names and describes them.
        gone: numbers of rows that are no longer there.
        null: (c, d) float32, profiles of negative controls.
        structure: or None.
        card: as it was given, with `format`, `folder`, `rows`, `dim`, `parts`, `gone`, `structure` added.
    """

    vectors: Vectors
    rows: pl.DataFrame
    gone: Rows
    null: Vectors
    structure: Structure | None
    card: dict[str, Any]


def card(place: Path) -> dict[str, Any] | None:
    """Read the card alone; None where there is no index, or one of another format.

    Args:
        place: of the index, the card's path without `.json`.

    Raises:
        SearchError: the card is damaged.
    """
    path = _card_path(place)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        message = f"index {path} cannot be read ({error}): {_AGAIN}"
        raise SearchError(message) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None
    for name, kind in _CARD.items():
        if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
            message = f"index {path} cannot be read ({name} is {found.get(name)!r}): {_AGAIN}"
            raise SearchError(message)
    return found


def load(place: Path, found: dict[str, Any] | None = None) -> Stored:
    """Read an index.

    Args:
        place: of the index.
        found: its card, where it was read already.

    Raises:
        SearchError: there is none, or a file of it is absent or cut short.
    """
    for attempt in range(2):
        about = found or card(place)
        if about is None:
            message = f"no index at {place}: build it with `wellhouse index`"
            raise SearchError(message)
        try:
            return _load(place.parent / str(about["folder"]), about)
        except Exception as error:  # whatever a damaged file makes its reader say
            # A build may have put a new folder in the place of this one since the card was read.
            found = None
            if attempt or card(place) == about:
                message = f"index {place} cannot be read ({error or type(error).__name__}): {_AGAIN}"
                raise SearchError(message) from error
    raise AssertionError


def _load(folder: Path, about: dict[str, Any]) -> Stored:
    n, d = about["rows"], about["dim"]
    if n < 1 or d < 1:
        message = f"its card tells of {n} vectors of {d}"
        raise ValueError(message)
    for name in (about["folder"], about["gone"] or _NULL, *about["parts"]):
        if Path(str(name)).name != name or name == "..":
            message = f"its card names {name!r}, which is no file of it"
            raise ValueError(message)
    path = folder / _VECTORS
    if path.stat().st_size < 4 * n * d:
        message = f"{_VECTORS} has {path.stat().st_size} bytes, not {4 * n * d}"
        raise ValueError(message)
    vectors = np.memmap(path, dtype=np.float32, mode="r", shape=(n, d))
    rows = pl.concat([_mapped(folder / part) for part in about["parts"]], rechunk=False)
    if len(rows) != n:
        message = f"its parts have {len(rows)} rows, not {n}"
        raise ValueError(message)
    gone = np.load(folder / about["gone"], allow_pickle=False) if about["gone"] else np.empty(0, np.int64)
    null = np.load(folder / _NULL, allow_pickle=False)
    structure = None
    if about["structure"] is not None:
        settings = Settings(**about["structure"]["settings"])
        structure = Structure.load(folder / _STRUCTURE, settings, int(about["structure"]["width"]))
    return Stored(vectors, rows, gone, null, structure, about)


class Writer:
    """An index that is being written, by `writing`: add rows, then finish with the card."""

    def __init__(self, place: Path, folder: Path, former: dict[str, Any] | None) -> None:
        self._place, self._folder = place, folder
        self._parts: list[str] = [] if former is None else list(former["parts"])
        self.rows = 0 if former is None else int(former["rows"])
        self._dim = None if former is None else int(former["dim"])
        self._former = former
        self._new: list[pl.DataFrame] = []
        self._file = (folder / _VECTORS).open("ab" if former is None else "r+b")
        self._file.seek(self.rows * 4 * (self._dim or 0))
        self._file.truncate()

    def add(self, rows: pl.DataFrame, matrix: np.ndarray, keys: tuple[str, ...]) -> None:
        """Scale and write rows.

        Args:
            rows: n rows of metadata.
            matrix: (n, d) floats.
            keys: columns that name a row.

        Raises:
            SearchError: a vector is zero or not finite, or of another length.
        """
        if self._dim is None:
            self._dim = matrix.shape[1]
        if matrix.shape[1] != self._dim:
            message = f"vectors of {matrix.shape[1]} elements in an index of {self._dim}"
            raise SearchError(message)
        named = rows.select(keys)
        unit = unit_rows(matrix, lambda row: name_of(named, row))
        if unit.size:  # not `tofile`, which tells of no disk that is full
            self._file.write(unit.data.cast("B"))
        self._new.append(rows)
        self.rows += len(rows)
        if sum(map(len, self._new)) >= _PART:
            self._write_part(keys)

    def _write_part(self, keys: tuple[str, ...]) -> None:
        made = pl.concat(self._new, rechunk=True)
        refuse_twice(made.select(keys))
        part = f"rows-{len(self._parts)}.arrow"
        _durable(self._folder / part, lambda path: made.write_ipc(path, compression="uncompressed"))
        self._parts.append(part)
        self._new = []

    def vectors(self) -> Vectors:
        """Return all vectors that were added, (n, d), as a memory map."""
        self._file.flush()
        return np.memmap(
            self._folder / _VECTORS, dtype=np.float32, mode="r", shape=(self.rows, self._dim or 0)
        )

    def finish(
        self,
        about: Mapping[str, Any],
        keys: tuple[str, ...],
        *,
        gone: Rows | None = None,
        null: Vectors | None = None,
        structure: Structure | None = None,
    ) -> None:
        """Write what describes the vectors, then the card: from then on the index is this one.

        Args:
            about: what the card is to say.
            keys: columns that name a row; each may be there once.
            gone: all rows that are no longer there; None for none.
            null: profiles of controls; None leaves those of the former card.
            structure: proposes candidates; None leaves that of the former card.

        Raises:
            SearchError: a key comes twice.
        """
        if self._new:
            self._write_part(keys)
        former = self._former or {"gone": None, "gone_rows": 0, "structure": None}
        gone_file = former["gone"]
        if gone is not None and len(gone):
            gone_file = f"gone-{len(self._parts)}-{secrets.token_hex(4)}.npy"
            _durable(self._folder / gone_file, lambda path: np.save(path, gone, allow_pickle=False))
        if null is not None:
            _durable(self._folder / _NULL, lambda path: np.save(path, null, allow_pickle=False))
        asked = former["structure"]
        if structure is not None:
            _durable(self._folder / _STRUCTURE, structure.save)
            asked = {"settings": asdict(structure.settings), "width": structure.width}
        self._file.flush()
        os.fsync(self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        self._file.close()
        if size != 4 * self.rows * (self._dim or 0):
            message = f"{_VECTORS} has {size} bytes, not those of {self.rows} vectors: is the disk full?"
            raise SearchError(message)
        if self._former is not None and card(self._place) != self._former:
            raise SearchError(_renewed(self._place))
        own = {"format": FORMAT, "folder": self._folder.name, "rows": self.rows, "dim": self._dim}
        own |= {"gone_rows": former["gone_rows"] if gone is None else len(gone)}
        whole = {**about, **own, "parts": self._parts, "gone": gone_file, "structure": asked}
        _replace(_card_path(self._place), json.dumps(whole, allow_nan=False))

    def close(self) -> None:
        """Leave the files; what was not finished does not count."""
        self._file.close()


@contextmanager
def writing(place: Path, *, onto: dict[str, Any] | None = None) -> Iterator[Writer]:
    """Write an index anew, or add to the one that this card is of; one process at a time.

    Args:
        place: of the index.
        onto: the card of the index that is added to; None for a new one.

    Raises:
        SearchError: the folder cannot be written, the disk is full, or the index was replaced since its card was read.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = place.parent / f".{place.name}.lock"
        # One thread of this process at a time, then one process.
        with _THREADS[place], turns.turn(lock, _WAIT_SECONDS) as is_held:
            if not is_held:
                message = (
                    f"index {place} is built by another process since {_WAIT_SECONDS:.0f} s: wait for it"
                )
                raise SearchError(message)
            if onto is not None and card(place) != onto:
                raise SearchError(_renewed(place))
            folder = place.parent / (
                f"{place.name}.{secrets.token_hex(4)}" if onto is None else str(onto["folder"])
            )
            folder.mkdir(exist_ok=True)
            writer = Writer(place, folder, onto)
            try:
                yield writer
            finally:
                writer.close()
                _sweep(place)
    except OSError as error:
        message = f"index {place} cannot be written ({error.strerror or error}); the former one stays"
        raise SearchError(message) from error


def _sweep(place: Path) -> None:
    """Take away folders of this index that its card does not name, and a file of the format before."""
    with suppress(OSError, SearchError):
        about = card(place)
        current = None if about is None else about["folder"]
        for path in place.parent.glob(f"{place.name}.*"):
            if path.is_dir() and path.name != current:
                shutil.rmtree(path, ignore_errors=True)
        place.with_name(f"{place.name}.index").unlink(missing_ok=True)


def _mapped(path: Path) -> pl.DataFrame:
    """Read a file of Arrow IPC where it lies, without a copy of it in memory."""
    with pa.memory_map(str(path)) as file:
        found = pl.from_arrow(pa.ipc.open_file(file).read_all(), rechunk=False)
    assert isinstance(found, pl.DataFrame)
    return found


def _renewed(place: Path) -> str:
    return f"index {place} was renewed by another process meanwhile: try again"


def _card_path(place: Path) -> Path:
    return place.with_name(f"{place.name}.json")


def _durable(path: Path, write: Any) -> None:
    """Write a file and see it to the disk."""
    write(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
