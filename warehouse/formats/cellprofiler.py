"""CellProfiler's exports: tables of images and objects, however they are stored, to plates of cells."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from warehouse.errors import ProfileError
from warehouse.formats.cellprofiler_joins import join
from warehouse.formats.cellprofiler_tables import (
    COMPARTMENTS,
    Export,
    count_column,
    count_of,
    image_keys,
    object_keys,
)
from warehouse.formats.model import GEOMETRY, REJECTIONS, ImportSettings, Part, Plate
from warehouse.names import unknown

#: Where the geometry of a cell is, and in which compartment.
_BOX = {
    "box_left_px": "Minimum_X",
    "box_top_px": "Minimum_Y",
    "box_right_px": "Maximum_X",
    "box_bottom_px": "Maximum_Y",
}


@dataclass(frozen=True)
class _Opened:
    """An export whose keys have been read; `images` has code, plate, well, field, and source and batch where known."""

    export: Export
    images: pl.DataFrame
    cells: pl.DataFrame
    rejections: pl.DataFrame
    faults: dict[int, str]


def plates_of(path: Path, exports: Sequence[Export], settings: ImportSettings) -> list[Plate]:
    """Join the object tables of exports and cut them into plates.

    Args:
        path: of all of them, for messages.
        exports: with disjoint images.
        settings: what columns mean, and which compartments make up a cell.

    Raises:
        ProfileError: a key, a compartment or a link between two is not there, or images repeat.
    """
    names = _compartments(path, exports, settings)
    complete = next(export for export in exports if all(name in export.objects for name in names))
    columns = {name: complete.objects[name].features() for name in names}
    features = tuple(feature for name in names for feature in columns[name])
    if settings.features is not None:
        for feature in settings.features:
            if feature not in features:
                raise unknown(feature, f"feature in {path}", features)
        features = settings.features
    opened = [_open(export, names, columns, settings) for export in exports]
    keys = pl.concat(
        [one.images.with_columns(pl.lit(index).alias("export")) for index, one in enumerate(opened)],
        how="diagonal",
    )
    _refuse_repeated_fields(path, keys)
    notes = _notes(exports, names, opened)
    by = [key for key in ("source", "batch", "plate") if key in keys.columns]
    plates = []
    for values, images in keys.group_by(by, maintain_order=True):
        said = {str(key): str(value) for key, value in zip(by, values, strict=True) if value is not None}
        work = [
            (opened[index], group)
            for (index,), group in images.sort("well", "field").group_by("export", maintain_order=True)
        ]
        plates.append(
            Plate(path, said, "cell", features, _parts(work, names, columns, features, settings), notes)
        )
    return plates


def _compartments(path: Path, exports: Sequence[Export], settings: ImportSettings) -> tuple[str, ...]:
    there = {name: None for export in exports for name in export.objects}
    for name in settings.compartments:
        if name not in there:
            raise unknown(name, f"compartment in {path}", there)
    names = (
        settings.compartments or tuple(name for name in COMPARTMENTS if name in there) or tuple(sorted(there))
    )
    if not names:
        message = (
            f"{path}: no table of objects (Cells, Nuclei, …) with the columns ImageNumber and ObjectNumber"
        )
        raise ProfileError(message)
    counted = [name for name in COMPARTMENTS if any(count_column(export, name) for export in exports)]
    missing = [name for name in counted if name not in there]
    if missing and not settings.compartments:
        message = (
            f"{path}: the images count objects of {missing[0]}, and there is no table {missing[0]}: bring it, or name "
            f"the tables that make up a cell with --compartments {','.join(names)}"
        )
        raise ProfileError(message)
    if not any(all(name in export.objects for name in names) for export in exports):
        message = f"{path}: no image has all of {', '.join(names)}: name those that make up a cell with --compartments"
        raise ProfileError(message)
    return names


def _open(
    export: Export, names: Sequence[str], columns: dict[str, dict[str, str]], settings: ImportSettings
) -> _Opened:
    """Read the keys of one export and join its objects."""
    images, codes = image_keys(export, settings)
    missing = [name for name in names if name not in export.objects]
    other = [
        name
        for name in names
        if name not in missing and list(export.objects[name].features()) != list(columns[name])
    ]
    if missing or other:
        why = (
            f"there is no table {missing[0]}"
            if missing
            else f"its {other[0]} has other features than the first image"
        )
        empty = [count_of(export, name) == 0 for name in missing]
        faults = (
            {}
            if missing and all(empty)
            else dict.fromkeys(images["code"].to_list(), f"{export.path.name}: {why}")
        )
        cells = pl.DataFrame(schema={"image": pl.Int64, "object": pl.Int64})
        return _Opened(export, images, cells, _no_rejections(), faults)
    tables, lost = [], []
    for name in names:
        table, strays = object_keys(export.objects[name], names, codes)
        tables.append(table)
        lost.append(strays)
    cells, rejections = join(tables, str(export.path))
    strays = pl.concat(lost)
    if len(strays):
        if images.select("plate").n_unique() > 1:
            message = (
                f"{export.path}: {len(strays)} objects are of images that {export.images.name} lacks (first: "
                f"{strays['cell'][0]}): bring the images, or take the objects out"
            )
            raise ProfileError(message)
        rejections = pl.concat([rejections, strays])
    no_well = images.filter(pl.col("well").is_null())
    faults = {code: "the image names no well" for code in no_well["code"]}
    return _Opened(export, images, cells.sort("image", "object"), rejections, faults)


def _no_rejections() -> pl.DataFrame:
    return pl.DataFrame(schema={"image": pl.Int64, "cell": pl.String, "reason": pl.String})


def _refuse_repeated_fields(path: Path, images: pl.DataFrame) -> None:
    by = [key for key in ("source", "plate", "well", "field") if key in images.columns]
    twice = images.filter(images.select(by).is_duplicated() & pl.col("well").is_not_null())
    if len(twice):
        row = twice.row(0, named=True)
        message = (
            f"{path}: field {row['field']!r} of well {row['well']!r} of plate {row['plate']!r} has more than one "
            "image: name the column that tells them apart with --column field=NAME"
        )
        raise ProfileError(message)


def _notes(exports: Sequence[Export], names: Sequence[str], opened: Sequence[_Opened]) -> tuple[str, ...]:
    """Say which object tables are left out, and where images count other numbers of cells than there are rows."""
    left = sorted({name for export in exports for name in export.objects} - set(names))
    notes = [f"tables left out: {', '.join(left)}; --compartments takes them in"] if left else []
    counts = [count_of(export, names[0]) for export in exports]
    if all(count is not None for count in counts):
        counted = sum(count for count in counts if count is not None)
        rows = sum(len(one.cells) + one.rejections["cell"].str.contains(r"^\d+$").sum() for one in opened)
        if counted != rows:
            notes.append(f"the images count {counted} {names[0]}, the tables have {rows}")
    return tuple(notes)


def _parts(
    work: Sequence[tuple[_Opened, pl.DataFrame]],
    names: Sequence[str],
    columns: dict[str, dict[str, str]],
    features: tuple[str, ...],
    settings: ImportSettings,
) -> Callable[[], Iterator[Part]]:
    limit = settings.rows_at_once(len(features))

    def parts() -> Iterator[Part]:
        for opened, images in work:
            usable = images.filter(~pl.col("code").is_in(list(opened.faults)))
            faulty = images.join(usable, on="code", how="anti")
            ids = images.select(pl.col("code").cast(pl.Int64).alias("image"), "well", "field")
            listed = opened.rejections.join(ids, on="image", how="left")
            mine = listed.filter(
                pl.col("image").is_in(usable["code"].cast(pl.Int64).implode()) | pl.col("image").is_null()
            )
            whole = faulty.select(
                "well",
                "field",
                pl.lit(None, dtype=pl.String).alias("cell"),
                pl.Series("reason", [opened.faults[code] for code in faulty["code"]], dtype=pl.String),
            )
            rejections = pl.concat([mine.select(*REJECTIONS), whole])
            yield Part(_no_keys(), np.empty((0, len(features)), np.float32), rejections)
            cells = ids.join(
                usable.select(pl.col("code").cast(pl.Int64).alias("image")), on="image", how="semi"
            )
            cells = cells.join(opened.cells, on="image", how="inner", maintain_order="left_right")
            for start, end in _runs(cells["image"].to_numpy(), limit):
                yield _part(opened.export, cells[start:end], names, columns, features)

    return parts


def _no_keys() -> pl.DataFrame:
    return pl.DataFrame(schema={"well": pl.String, "field": pl.String, "cell": pl.String})


def _runs(images: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Cut rows into runs of at most `limit`, or of one image where that has more."""
    starts = np.flatnonzero(np.r_[True, images[1:] != images[:-1]]) if len(images) else np.array([], int)
    first, before = 0, 0
    for start in [*starts[1:].tolist(), len(images)]:
        if start - first > limit and before > first:
            yield first, before
            first = before
        before = start
    if first < len(images):
        yield first, len(images)


def _part(
    export: Export,
    cells: pl.DataFrame,
    names: Sequence[str],
    columns: dict[str, dict[str, str]],
    features: tuple[str, ...],
) -> Part:
    """Fetch the numbers of some cells from each table."""
    position = {feature: index for index, feature in enumerate(features)}
    matrix = np.empty((len(cells), len(features)), np.float32)
    geometry: dict[str, np.ndarray] = {}
    for name in names:
        chosen = [feature for feature in columns[name] if feature in position]
        places = _geometry(name, names, columns[name])
        wanted = list(dict.fromkeys([*(columns[name][feature] for feature in chosen), *places.values()]))
        rows = cells[f"row {name}"].to_numpy()
        order = np.argsort(rows, kind="stable")
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        values = export.objects[name].fetch(rows[order], wanted)
        if (order[1:] < order[:-1]).any():
            values = values[back]
        at = {column: index for index, column in enumerate(wanted)}
        with np.errstate(over="ignore"):  # beyond float32 is infinite: that row is rejected by name
            matrix[:, [position[feature] for feature in chosen]] = values[
                :, [at[columns[name][feature]] for feature in chosen]
            ]
        geometry |= {key: values[:, at[column]] for key, column in places.items()}
    keys = cells.select("well", "field", pl.col("object").cast(pl.String).alias("cell")).with_columns(
        pl.Series(key, np.where(np.isfinite(values), values, np.nan), nan_to_null=True).cast(
            GEOMETRY[key], strict=False
        )
        for key, values in geometry.items()
    )
    return Part(keys, matrix)


def _geometry(name: str, names: Sequence[str], columns: dict[str, str]) -> dict[str, str]:
    """Find the columns of one compartment that say where the cell and its nucleus are, and how large."""
    places = {}
    if name == ("Nuclei" if "Nuclei" in names else names[0]):
        for axis in ("x", "y"):
            ends = [f"{name}_{kind}_Center_{axis.upper()}" for kind in ("Location", "AreaShape")]
            found = next((columns[end] for end in ends if end in columns), None)
            if found is not None:
                places[f"{axis}_px"] = found
    if name == names[0]:
        for key, end in _BOX.items():
            if f"{name}_AreaShape_BoundingBox{end}" in columns:
                places[key] = columns[f"{name}_AreaShape_BoundingBox{end}"]
    area = {"Nuclei": "nucleus_area_px", names[0]: "cell_area_px"}.get(name)
    if area is not None and f"{name}_AreaShape_Area" in columns:
        places[area] = columns[f"{name}_AreaShape_Area"]
    return places
