"""Taking layouts and labels in from files, without profiles: before these come, or after."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from warehouse import layouts
from warehouse.errors import ScreenError
from warehouse.lake import Lake
from warehouse.layouts import LayoutReport
from warehouse.runs import Run
from warehouse.screens import checks, jump_metadata, read_annotations, read_layout
from warehouse.screens.identity import DEFAULT
from warehouse.screens.model import ANNOTATIONS_SCHEMA, MANIFEST_SCHEMA, empty

#: What people write or leave out between the letters and digits of one name.
_BETWEEN = r"[\s\-_]"


@dataclass(frozen=True)
class LayoutImport:
    """What became of the rows of some files: `wells_seen` = wells of `report` that are in + rejected ones.

    Attributes:
        wells_seen: rows of wells in the files.
        wells_rejected: of them, left out; `rejections` says why.
        report: what became of the plates.
        labels_added: labels that the lake did not have.
        rejections: reason → rows left out for it, with the first of them.
        notes: sentences on what is in without being known, each with its count.
    """

    wells_seen: int
    wells_rejected: int
    report: LayoutReport
    labels_added: int
    rejections: dict[str, str]
    notes: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Return all counts by name."""
        seen = {"wells_seen": self.wells_seen, "wells_rejected": self.wells_rejected}
        return {**seen, **asdict(self.report), "labels_added": self.labels_added}


def import_layout(
    lake: Lake,
    paths: Sequence[Path],
    *,
    annotations: Path | None = None,
    source: str | None = None,
    batch: str | None = None,
    plates: Sequence[str] | None = None,
    compound_column: str | None = None,
    replace: bool = False,
) -> LayoutImport:
    """Take plates, their wells and the labels of compounds in; profiles of these plates may be in or may come later.

    Args:
        lake: open for writing.
        paths: layouts of any kind that `read_layout` knows, JUMP's metadata tables among them.
        annotations: labels; JUMP's tables bring their own besides.
        source: of the plates, where the files name none.
        batch: likewise. Where neither says, a plate that the lake holds is the one that is meant.
        plates: the plates that a single platemap holds for.
        compound_column: of platemaps and JUMP's tables, the column that names the compound.
        replace: let wells go that the lake holds of these plates and the files lack.

    Raises:
        ScreenError: a file cannot be read or contradicts itself, another file or the lake. Nothing was written.
    """
    run = Run("import-layout", {"files": [str(path) for path in paths], "replace": replace})
    wells, labels, rejections, notes = [], [empty(ANNOTATIONS_SCHEMA)], [], []
    seen = 0
    for path in paths:
        if jump_metadata.is_metadata(path):
            tables = jump_metadata.read(path, source=source, batch=batch, compound_column=compound_column)
            wells.append(tables.layout)
            labels.append(tables.annotations)
            rejections.append(tables.rejections.with_columns(pl.lit(str(path)).alias("path")))
            notes += [f"{path}: {note}" for note in tables.notes]
            seen += tables.wells_seen
            continue
        compounds = annotations if annotations is not None and annotations.is_file() else None
        rows = read_layout(
            path, source=source, batch=batch, plates=plates, compounds=compounds, compound_column=compound_column
        )  # fmt: skip
        wells.append(rows)
        seen += rows.height
    if not wells:
        message = "no layout was given: name at least one file or folder"
        raise ScreenError(message)
    layout = placed(lake, pl.concat(wells))
    if len(wells) > 1:
        checks.check_layout(layout, "the layouts together")
        checks.check_batches(empty(MANIFEST_SCHEMA), layout, "the layouts together")
    if annotations is not None:
        labels.append(read_annotations(annotations, compound_column=compound_column))
    known = pl.concat(labels).unique(maintain_order=True)
    notes += near_names(lake, layout, known)
    report = layouts.put_layout(lake, run, layout, replace=replace)
    added = layouts.put_annotations(lake, run, known)
    left_out = _by_reason(rejections)
    rejected = sum(part.height for part in rejections)
    done = LayoutImport(seen, rejected, report, added, left_out, tuple(notes))
    run.finish(lake, done.counts())
    return done


def placed(lake: Lake, layout: pl.DataFrame) -> pl.DataFrame:
    """Give plates of which the files name no source or batch those that the lake holds them under.

    Raises:
        ScreenError: the lake holds plates of that name in several sources.
    """
    keys = layout.select("source", "batch", "plate").unique()
    vague = keys.filter((pl.col("source") == DEFAULT) | (pl.col("batch") == DEFAULT))
    if not vague.height:
        return layout
    held: dict[str, list[tuple[str, str]]] = {}
    for (source, plate), (batch, _) in layouts.plates(lake).items():
        held.setdefault(plate, []).append((source, batch))
    found = []
    for source, batch, plate in vague.sort("plate").rows():
        fits = [
            one
            for one in sorted(held.get(plate, []))
            if source in (DEFAULT, one[0]) and batch in (DEFAULT, one[1])
        ]
        if len(fits) > 1:
            message = (
                f"plate {plate!r} is in the lake in sources {' and '.join(repr(one[0]) for one in fits)}, and the "
                "layout names none: give --source"
            )
            raise ScreenError(message)
        found.append((source, batch, plate, *(fits[0] if fits else (source, batch))))
    names = ("source", "batch", "plate", "held_source", "held_batch")
    meant = pl.DataFrame(found, schema=dict.fromkeys(names, pl.String), orient="row")
    rows = layout.join(meant, on=names[:3], how="left", maintain_order="left")
    return rows.with_columns(
        pl.coalesce("held_source", "source").alias("source"),
        pl.coalesce("held_batch", "batch").alias("batch"),
    ).select(layout.columns)


def near_names(lake: Lake, layout: pl.DataFrame, labels: pl.DataFrame, shown: int = 5) -> list[str]:
    """Tell of compounds, new ones and those of the lake, whose names differ in case, spaces, - and _ alone."""
    new = pl.concat([layout["compound"], labels["compound"]]).drop_nulls().unique()
    old = lake.frame("SELECT DISTINCT compound FROM main.wells WHERE compound IS NOT NULL")["compound"]
    names = pl.DataFrame({"name": pl.concat([new, old]).unique()}).with_columns(
        pl.col("name").str.to_lowercase().str.replace_all(_BETWEEN, "").alias("folded"),
        pl.col("name").is_in(new.implode()).alias("is_new"),
    )
    groups = (
        names.group_by("folded")
        .agg(pl.col("name").sort(), pl.col("is_new").any())
        .filter((pl.col("name").list.len() > 1) & pl.col("is_new"))["name"]
        .sort()
    )
    if not len(groups):
        return []
    told = "; ".join(", ".join(map(repr, group)) for group in groups.head(shown))
    more = "; …" if len(groups) > shown else ""
    return [
        f"{len(groups)} compounds are spelled in several ways and kept apart as they are spelled: {told}{more}"
    ]


def _by_reason(rejections: Sequence[pl.DataFrame]) -> dict[str, str]:
    told: dict[str, str] = {}
    if not rejections:
        return told
    rows = pl.concat(rejections)
    for (reason,), part in rows.group_by("reason", maintain_order=True):
        first = part.row(0, named=True)
        place = f"{first['path']}, row {first['row']}: plate {first['plate']!r}, well {first['well']!r}"
        told[str(reason)] = f"{part.height} rows, the first: {place}"
    return told
