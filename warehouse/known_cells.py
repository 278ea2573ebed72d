"""The cells that a lake knows: which there are, where they lie, in which images, and what was done to their wells."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb
import polars as pl

from warehouse import feature_sets
from warehouse.errors import ProfileError, TrainingError
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.profiles import LABEL_KINDS, predicate
from warehouse.sqltext import relation

Key = tuple[str, str, str]

#: Plates whose images are read at once: of each a few thousand rows.
_PLATES_A_QUERY = 64
_IDS = ("source", "batch", "plate", "well", "field", "cell")
_OF_WELLS = ("treatment", "compound", "concentration", "unit", "control_type")
#: Columns of `KnownCells.rows`.
COLUMNS = (*_IDS, "x_px", "y_px", *_OF_WELLS)
_FOR_PREDICATES = (*COLUMNS, "row_number", "column_number", *LABEL_KINDS)


@dataclass(frozen=True)
class KnownCells:
    """Cells of one feature set, whose pixels are to be looked at once more.

    Attributes:
        feature_set: whose table says which cells there are and where.
        channels: wanted of each image.
        is_crops: True where each image is one cell, already cut out.
        rows: one row a cell, sorted by source, batch, plate, well, field, cell (text); x_px and y_px (Float64) are
            NULL for single-cell pictures; treatment, compound, concentration, unit and control_type of the well,
            NULL where its plate has no layout.
        left_out: cells that are not among them, and why.
    """

    feature_set: FeatureSet
    channels: tuple[str, ...]
    is_crops: bool
    rows: pl.DataFrame
    left_out: dict[str, int]


def known_cells(
    lake: Lake,
    *,
    cells_of: str | None = None,
    where: str | None = None,
    channels: tuple[str, ...] | None = None,
) -> KnownCells:
    """Read which cells a lake knows, of images that have the channels wanted.

    Args:
        lake: an open lake.
        cells_of: a feature set of single cells that was made from images in this lake; None for the only one, or
            the one with most plates.
        where: an SQL predicate over the columns of `KnownCells.rows`, row_number, column_number, and the labels moa,
            target, pathway and gene_family.
        channels: that are wanted, in order; None for those of the feature set.

    Raises:
        UnknownNameError: no such feature set, or a channel that no image has.
        ProfileError: the predicate is none, names a column that cells lack, or no cell meets it.
        TrainingError: no feature set knows cells, several know as many, or whole plates lack a channel.
    """
    if where is not None:
        predicate(where)
    with lake.reading():
        target = cells_feature_set(lake, cells_of, channels=channels)
        is_crops = target.parameters["input"] == "crops"
        wanted = target.channels if channels is None else tuple(channels)
        rows = _rows(lake, target.name, where, wanted, is_crops)
        left_out = {} if where is None else _not_chosen(lake, target.name, where, len(rows))
        _refuse_lacking(lake, wanted, is_crops, rows.select(_IDS[:3]).unique())
    without = rows.filter(~pl.col("has_image"))
    if len(without):
        first = " ".join(without.select("plate", "well", "field").row(0))
        left_out[f"no image with channels {', '.join(wanted)} (first: {first})"] = len(without)
        rows = rows.filter("has_image")
    if rows.is_empty():
        message = f"none of the cells of {target.name!r} has an image with channels {', '.join(wanted)}"
        raise TrainingError(message)
    rows = rows.drop("has_image")
    return KnownCells(target, wanted, is_crops, rows, left_out)


def cells_feature_set(
    lake: Lake,
    name: str | None = None,
    *,
    preferred: str | None = None,
    channels: Sequence[str] | None = None,
) -> FeatureSet:
    """Choose the feature set whose cells are to be looked at once more.

    Args:
        lake: an open lake.
        name: of the one that was asked for; None to choose.
        preferred: of the one that is taken where it knows cells; else the one with cells of most plates, and of several
            that found the same cells in the same way the oldest.
        channels: that are wanted of the images; None for those of the feature set, so that two of other channels are
            not the same.

    Raises:
        UnknownNameError: no such feature set.
        TrainingError: it knows no cells, none does, or several know other cells of as many plates.
    """
    if name is not None:
        return _checked(feature_sets.find(lake, name))
    counted = lake.frame(
        "SELECT sets.feature_set, count(loads.plate) AS plates FROM main.feature_sets AS sets "
        "INNER JOIN main.plate_loads AS loads ON sets.feature_set = loads.feature_set AND loads.cells_in > 0 "
        "GROUP BY sets.feature_set, sets.created_at ORDER BY plates DESC, sets.created_at, sets.feature_set"
    )
    found = [
        (target, int(plates))
        for each, plates in counted.iter_rows()
        if knows_cells(target := feature_sets.find(lake, each))
    ]
    if not found:
        message = (
            f"{lake.address} knows no single cells of images yet: ingest images first, with "
            "`wellhouse ingest MANIFEST --extractor transfer`"
        )
        raise TrainingError(message)
    most = found[0][1]
    best = [target for target, _ in found if target.name == preferred]
    best = best or [target for target, plates in found if plates == most]
    ways = [(how_found(target), target.channels if channels is None else None) for target in best]
    if any(way != ways[0] for way in ways):
        names = ", ".join(target.name for target in best)
        message = f"feature sets {names} know other cells of as many plates ({most}): choose one with --cells"
        raise TrainingError(message)
    return best[0]


def knows_cells(target: FeatureSet) -> bool:
    """Whether a feature set says which cells images of this lake have."""
    return target.entry_level == "cell" and target.parameters.get("input") in ("crops", "fields")


def how_found(target: FeatureSet) -> tuple[object, object]:
    """Say how the cells of a feature set were found: two of which this is the same have the same cells."""
    return target.parameters["input"], target.parameters.get("segmentation")


def _checked(target: FeatureSet) -> FeatureSet:
    if knows_cells(target):
        return target
    how = "was imported" if target.extractor == "import" else f"holds {target.entry_level}s, not cells"
    message = (
        f"feature set {target.name!r} {how}: it does not say where cells lie in images; name one with --cells that was "
        "ingested from images"
    )
    raise TrainingError(message)


def images_of(
    lake: Lake, key: Key, channels: tuple[str, ...] | None = None, is_crops: bool | None = None
) -> pl.DataFrame:
    """Read the images of a plate as they came in: rows of `main.fields`, by well, field and cell.

    Args:
        lake: an open lake.
        key: source, batch and plate.
        channels: that an image must have; None takes all images.
        is_crops: True for single-cell pictures alone, False for whole fields alone, None for both.
    """
    return lake.frame(
        "SELECT * FROM main.fields WHERE source = ? AND batch = ? AND plate = ? "
        "AND list_has_all(channels, ?::VARCHAR[]) AND coalesce((cell IS NOT NULL) = ?::BOOLEAN, TRUE) "
        "ORDER BY well, field, cell NULLS LAST",
        [*key, list(channels or ()), is_crops],
    )


def images_of_plates(
    lake: Lake, keys: Sequence[Key], channels: tuple[str, ...], is_crops: bool
) -> Iterator[tuple[Key, pl.DataFrame]]:
    """Read the images of each of many plates, as `images_of`: a query for 64 of them, not one each.

    Yields:
        A plate that has such images, and its rows; in the order of their keys.
    """
    for start in range(0, len(keys), _PLATES_A_QUERY):
        some = keys[start : start + _PLATES_A_QUERY]
        rows = lake.frame(
            "SELECT * FROM main.fields WHERE (source, batch, plate) IN (SELECT unnest(?), unnest(?), unnest(?)) "
            "AND list_has_all(channels, ?) AND (cell IS NOT NULL) = ? "
            "ORDER BY source, batch, plate, well, field, cell NULLS LAST",
            [*(list(column) for column in zip(*some, strict=True)), list(channels), is_crops],
        )
        for (source, batch, plate), part in rows.group_by(*_IDS[:3], maintain_order=True):
            yield (str(source), str(batch), str(plate)), part


def plates_with(lake: Lake, channels: tuple[str, ...], is_crops: bool) -> list[Key]:
    """List the plates that have images, single-cell pictures or whole fields, with all these channels."""
    return lake.connection.execute(
        "SELECT DISTINCT source, batch, plate FROM main.fields "
        "WHERE list_has_all(channels, ?::VARCHAR[]) AND (cell IS NOT NULL) = ? ORDER BY ALL",
        [list(channels), is_crops],
    ).fetchall()


def _cells(feature_set: str, with_labels: bool) -> str:
    """Write the query of a feature set's cells, with all that a predicate may speak of where there is one."""
    columns = [
        *(f"cells.{name}" for name in (*_IDS, "x_px", "y_px")),
        *(f"wells.{name}" for name in (*_OF_WELLS, "row_number", "column_number")),
        *(f"labels.{kind}" for kind in LABEL_KINDS if with_labels),
    ]
    joined = "LEFT JOIN main.treatment_annotations AS labels ON wells.treatment = labels.treatment"
    return (
        f"SELECT {', '.join(columns)} FROM {relation(feature_set, 'cells')} AS cells LEFT JOIN main.wells AS wells "
        "ON cells.source = wells.source AND cells.batch = wells.batch AND cells.plate = wells.plate "
        f"AND cells.well = wells.well {joined if with_labels else ''}"
    )


def _query(feature_set: str, where: str | None, is_crops: bool) -> str:
    """Write the query of the cells that a checked predicate chooses; bound are channels and the kind of image."""
    chosen = "" if where is None else f" WHERE ({where}\n)"
    image = ", ".join(_IDS if is_crops else _IDS[:5])
    images = f"SELECT {image} FROM main.fields WHERE list_has_all(channels, ?) AND (cell IS NOT NULL) = ?"
    return (
        f"SELECT {', '.join(COLUMNS)}, ({image}) IN ({images}) AS has_image "
        f"FROM ({_cells(feature_set, where is not None)}){chosen} ORDER BY {', '.join(_IDS)}"
    )


def _rows(
    lake: Lake, feature_set: str, where: str | None, channels: tuple[str, ...], is_crops: bool
) -> pl.DataFrame:
    """Read the cells that are chosen, and whether each has an image with these channels."""
    try:
        return lake.frame(_query(feature_set, where, is_crops), [list(channels), is_crops])
    except duckdb.Error as error:
        if where is None:
            raise
        columns = (
            f"; columns of cells: {', '.join(_FOR_PREDICATES)}"
            if isinstance(error, duckdb.BinderException)
            else ""
        )
        message = f"--where {where!r}: {str(error).splitlines()[0]}{columns}"
        raise ProfileError(message) from error


def _not_chosen(lake: Lake, feature_set: str, where: str, chosen: int) -> dict[str, int]:
    of_all = int(str(lake.value(f"SELECT count(*) FROM {relation(feature_set, 'cells')}")))
    if not chosen:
        message = f"none of the {of_all} cells of {feature_set!r} meets --where {where!r}"
        raise ProfileError(message)
    return {f"does not meet --where {where}": of_all - chosen} if chosen < of_all else {}


def _refuse_lacking(lake: Lake, channels: tuple[str, ...], is_crops: bool, plates: pl.DataFrame) -> None:
    """Refuse a channel that none of the images of some plates has: their cells would all be left out.

    Raises:
        UnknownNameError: no image has the channel.
        TrainingError: how many plates lack it, and the first.
    """
    having = lake.frame(
        "SELECT DISTINCT source, batch, plate, unnest(channels) AS channel FROM main.fields "
        "WHERE (cell IS NOT NULL) = ?",
        [is_crops],
    )
    known = set(having["channel"])
    for channel in channels:
        if channel not in known:
            raise unknown(channel, "channel", known)
        without = plates.join(having.filter(pl.col("channel") == channel), on=_IDS[:3], how="anti")
        if len(without):
            source, batch, plate = without.sort(_IDS[:3]).row(0)
            message = (
                f"{len(without)} of {len(plates)} plates have no image of channel {channel!r} (first: plate {plate!r} "
                f"of {source}, {batch}): leave the channel out with --channels, or the plates with --where"
            )
            raise TrainingError(message)
