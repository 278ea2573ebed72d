"""From parts of a plate to what is committed: rows rejected with reasons, cells spooled, levels aggregated."""

import hashlib

import numpy as np
import polars as pl

from warehouse.embeddings import first_bad_feature, to_column
from warehouse.feature_sets import FeatureSet
from warehouse.formats.model import GEOMETRY, IDS, REJECTIONS
from warehouse.ingest import PlateData
from warehouse.levels import fields_from_cells, wells_from_fields
from warehouse.spool import Spool

SPOOL_BYTES = 2**25


class PlateBuilder:
    """Takes the rows of one plate in parts; memory is bounded by a part and the spool's limit.

    Used in a `with` block, which removes what was spooled: commit inside it.

    Args:
        target: the feature set; its entry level says what a row is, its operators how rows are aggregated.
        spool_bytes: rows of cells kept in memory before they wait on disk.
        allow_missing: whether an element may be missing (NaN); an extractor's vector is finite or rejected.
    """

    def __init__(
        self, target: FeatureSet, *, spool_bytes: int = SPOOL_BYTES, allow_missing: bool = True
    ) -> None:
        self.target = target
        self.seen = 0
        self.rejected = 0
        self.images_rejected = 0
        self._allow_missing = allow_missing
        self._cells = Spool(spool_bytes)
        self._fields: list[pl.DataFrame] = []
        self._wells: list[pl.DataFrame] = []
        self._rejections: list[pl.DataFrame] = []
        self._digest = 0

    def __enter__(self) -> "PlateBuilder":
        self._cells.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._cells.__exit__(None, None, None)

    def reject(self, rejections: pl.DataFrame) -> None:
        """Count and list rows that the input has and that cannot be used, as `formats.model.REJECTIONS`."""
        self.images_rejected += rejections["cell"].null_count() if self.target.entry_level == "cell" else 0
        self.seen += len(rejections)
        self.rejected += len(rejections)
        self._rejections.append(rejections)
        for row in rejections.iter_rows():
            self._hash(repr(row).encode())

    def add(self, keys: pl.DataFrame, matrix: np.ndarray) -> None:
        """Take rows in: infinite ones, and those without any value, are rejected by name.

        Args:
            keys: columns as in `formats.model.Part`; all cells of a field in one call.
            matrix: (n, d) float32, NaN = missing.
        """
        self.seen += len(keys)
        for row, values in zip(keys.iter_rows(), np.ascontiguousarray(matrix, np.float32), strict=True):
            self._hash(repr(row).encode() + values.tobytes())
        good = self._sound(keys, matrix)
        if not good.all():
            keys, matrix = keys.filter(pl.Series(good)), matrix[good]
        if not len(keys):
            return
        if self.target.entry_level == "cell":
            self._add_cells(keys, matrix)
        elif self.target.entry_level == "field":
            self._fields.append(
                keys.select("well", "field", _count(keys, "cell_count")).with_columns(to_column(matrix))
            )
        else:
            counts = [_count(keys, name) for name in ("field_count", "cell_count")]
            self._wells.append(keys.select("well", *counts).with_columns(to_column(matrix)))

    def fields(self) -> pl.DataFrame:
        """Return the rows of `<feature set>.fields`; the same columns where there is none."""
        return pl.concat([_no_fields(), *self._fields])

    def wells(self, fields: pl.DataFrame) -> pl.DataFrame:
        """Return the rows of `<feature set>.wells`: as they came in, or aggregated from fields."""
        if self.target.entry_level != "well":
            return wells_from_fields(fields, self.target.dim, self.target.well_operator)
        empty = wells_from_fields(_no_fields(), self.target.dim, "mean")
        return pl.concat([empty, *self._wells]).sort("well")

    def rejections(self) -> pl.DataFrame:
        """Return the rows of `main.rejections` less the feature set and the plate."""
        return pl.concat([pl.DataFrame(schema=REJECTIONS), *self._rejections])

    def cells(self) -> Spool:
        """Return the rows of `<feature set>.cells`, in parts."""
        return self._cells

    def content_hash(self) -> str:
        """Return a hash of everything that came in, whatever the order of its rows."""
        hasher = hashlib.blake2b(self.target.identity().encode(), digest_size=16)
        hasher.update(self._digest.to_bytes(32, "big"))
        return hasher.hexdigest()

    def finish(
        self, key: tuple[str, str, str], layout: pl.DataFrame | None = None, arrival: str | None = None
    ) -> PlateData:
        """Return an imported plate, to be committed inside the `with` block."""
        fields = self.fields()
        level, counts = self.target.entry_level, (self.seen, self.rejected)
        cells, profiles = (counts, (0, 0)) if level == "cell" else ((0, 0), counts)
        return PlateData(
            key,
            self.content_hash(),
            layout,
            None,
            self._cells,
            fields,
            self.wells(fields),
            self.rejections(),
            cells_seen=cells[0],
            cells_rejected=cells[1],
            profiles_seen=profiles[0],
            profiles_rejected=profiles[1],
            arrival=arrival,
        )

    def _hash(self, row: bytes) -> None:
        # A sum does not know the order in which rows came, which may be another each time.
        digest = hashlib.blake2b(row, digest_size=32).digest()
        self._digest = (self._digest + int.from_bytes(digest, "big")) % 2**256

    def _sound(self, keys: pl.DataFrame, matrix: np.ndarray) -> np.ndarray:
        missing = np.isnan(matrix)
        empty = missing.all(axis=1)
        bad = np.isinf(matrix).any(axis=1) | empty
        if not self._allow_missing:
            bad |= missing.any(axis=1)
        if bad.any():
            rows = np.flatnonzero(bad)
            reasons = [self._reason(matrix[row], bool(empty[row])) for row in rows]
            ids = [keys[name][rows] if name in keys.columns else None for name in ("well", "field", "cell")]
            listed = [
                pl.Series(name, values if values is not None else [None] * len(rows), dtype=pl.String)
                for name, values in zip(("well", "field", "cell"), ids, strict=True)
            ]
            self._rejections.append(pl.DataFrame([*listed, pl.Series("reason", reasons, dtype=pl.String)]))
            self.rejected += len(rows)
        good: np.ndarray = ~bad
        return good

    def _reason(self, row: np.ndarray, is_empty: bool) -> str:
        if self._allow_missing:
            if is_empty:
                return "no feature has a value"
            row = np.where(np.isnan(row), 0, row)  # a missing element is no fault, an infinite one is
        return f"feature {first_bad_feature(row, self.target.feature_names)}"

    def _add_cells(self, keys: pl.DataFrame, matrix: np.ndarray) -> None:
        absent = [
            pl.lit(None, dtype=kind).alias(name)
            for name, kind in GEOMETRY.items()
            if name not in keys.columns
        ]
        table = keys.with_columns(absent).select(*IDS["cell"], *GEOMETRY)
        self._cells.append(table.with_columns(to_column(matrix)))
        self._fields.append(
            fields_from_cells(table.select("well", "field"), matrix, self.target.field_operator)
        )


def _count(keys: pl.DataFrame, name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Int32) if name in keys.columns else pl.lit(None, dtype=pl.Int32).alias(name)


def _no_fields() -> pl.DataFrame:
    kinds: dict[str, pl.DataType | type[pl.DataType]] = {
        "well": pl.String,
        "field": pl.String,
        "cell_count": pl.Int32,
        "embedding": pl.List(pl.Float32),
    }
    return pl.DataFrame(schema=kinds)
