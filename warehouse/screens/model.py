"""A screen: which images there are, what is in each well, and what is known of the compounds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from warehouse.names import unknown
from warehouse.screens import checks
from warehouse.wells import normalise

MANIFEST_SCHEMA: dict[str, pl.DataType] = {
    "source": pl.String(), "batch": pl.String(), "plate": pl.String(), "well": pl.String(),
    "field": pl.String(), "cell": pl.String(), "channel": pl.String(),
    "path": pl.String(), "plane": pl.Int64(),
}  # fmt: skip
LAYOUT_SCHEMA: dict[str, pl.DataType] = {
    "source": pl.String(), "batch": pl.String(), "plate": pl.String(), "well": pl.String(),
    "compound": pl.String(), "concentration": pl.Float64(), "unit": pl.String(), "control_type": pl.String(),
}  # fmt: skip
ANNOTATIONS_SCHEMA: dict[str, pl.DataType] = {
    "compound": pl.String(), "concentration": pl.Float64(), "unit": pl.String(),
    "kind": pl.String(), "label": pl.String(),
}  # fmt: skip


@dataclass(frozen=True)
class Screen:
    """What a screen consists of, checked.

    Args:
        manifest: one row per field (or crop) and channel; columns of `MANIFEST_SCHEMA`.
        layout: one row per well; columns of `LAYOUT_SCHEMA`. Empty where no layout was given: what is in
            the wells may be told later.
        annotations: one row per label of a compound; columns of `ANNOTATIONS_SCHEMA`. May be empty.
        origin: where the screen was read from, for messages and for the record of a run.
        notes: sentences on what was left out or does not meet, each with its count.
    """

    manifest: pl.DataFrame
    layout: pl.DataFrame
    annotations: pl.DataFrame
    origin: str
    notes: tuple[str, ...] = ()

    @classmethod
    def validated(
        cls,
        manifest: pl.DataFrame,
        layout: pl.DataFrame | None = None,
        annotations: pl.DataFrame | None = None,
        *,
        origin: str,
        plate_size: int | None = None,
        notes: Sequence[str] = (),
    ) -> "Screen":
        """Normalise the wells, check everything, and build the screen.

        Args:
            manifest: as in the class; may carry the trace of its rows (see `warehouse.screens.table`), which
                makes messages name file and row, and a column `plate_size`.
            layout: as in the class, likewise; None means that none was given.
            annotations: as in the class, likewise; None means that none were given.
            origin: where the screen was read from.
            plate_size: number of wells of every plate; None accepts wells of up to a 1536-well plate.
            notes: sentences to keep with the screen.

        Raises:
            ScreenError: the first fault found, in one line.
        """
        plan = empty(LAYOUT_SCHEMA) if layout is None else layout
        labels = empty(ANNOTATIONS_SCHEMA) if annotations is None else annotations
        for name, frame, schema in _parts(manifest, plan, labels):
            checks.check_schema(frame.drop("plate_size", strict=False), schema, f"{origin} ({name})")
        manifest = normal_manifest(manifest, plate_size, origin)
        plan = normal_layout(plan, plate_size, origin)
        checks.check_annotations(labels, f"{origin} (annotations)")
        checks.check_batches(manifest, plan, origin)
        images, wells, known = (frame.select(*schema) for _, frame, schema in _parts(manifest, plan, labels))
        told = (*notes, *_observations(images, wells, known))
        return cls(manifest=images, layout=wells, annotations=known, origin=origin, notes=told)

    def only(self, plates: Sequence[str] = (), wells: Sequence[str] = ()) -> "Screen":
        """Keep the images of some plates, and of some wells; layout and annotations stay whole.

        Args:
            plates: named as in the manifest; none named keeps all.
            wells: in any spelling; none named keeps all.

        Raises:
            UnknownNameError: the manifest has no such plate, or (of the plates kept) no such well.
        """
        kept = self.manifest
        for column, wanted in (("plate", list(plates)), ("well", [normalise(well) for well in wells])):
            known = kept[column].unique().to_list()
            for name in wanted:
                if name not in known:
                    raise unknown(name, f"{column} in {self.origin}", known)
            if wanted:
                kept = kept.filter(pl.col(column).is_in(wanted))
        return replace(self, manifest=kept)


def check(screen: Screen) -> None:
    """Check a screen that was built by hand.

    Raises:
        ScreenError: the first fault found, in one line.
    """
    parts = _parts(screen.manifest, screen.layout, screen.annotations)
    for name, frame, schema in parts:
        checks.check_schema(frame, schema, f"{screen.origin} ({name})")
    for name, frame, _ in parts[:2]:
        checks.check_normal_wells(frame, f"{screen.origin} ({name})")
    checks.check_manifest(screen.manifest, f"{screen.origin} (manifest)")
    checks.check_layout(screen.layout, f"{screen.origin} (layout)")
    checks.check_annotations(screen.annotations, f"{screen.origin} (annotations)")
    checks.check_batches(screen.manifest, screen.layout, screen.origin)


def normal_manifest(manifest: pl.DataFrame, plate_size: int | None, origin: str) -> pl.DataFrame:
    """Normalise the wells of a manifest and check it; the trace of its rows stays.

    Raises:
        ScreenError: the first fault found.
    """
    name = f"{origin} (manifest)"
    checks.check_ids(manifest, ["plate", "well"], [], name)
    manifest = checks.normalised_wells(manifest, plate_size, name)
    checks.check_manifest(manifest, name)
    return manifest


def normal_layout(layout: pl.DataFrame, plate_size: int | None, origin: str) -> pl.DataFrame:
    """Normalise the wells of a layout and check it; the trace of its rows stays.

    Raises:
        ScreenError: the first fault found.
    """
    name = f"{origin} (layout)"
    checks.check_ids(layout, ["plate", "well"], [], name)
    layout = checks.normalised_wells(layout, plate_size, name)
    checks.check_layout(layout, name)
    return layout


def empty(schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """Build a frame without rows."""
    return pl.DataFrame(schema=schema)


def _parts(
    manifest: pl.DataFrame, layout: pl.DataFrame, annotations: pl.DataFrame
) -> tuple[tuple[str, pl.DataFrame, dict[str, pl.DataType]], ...]:
    return (
        ("manifest", manifest, MANIFEST_SCHEMA),
        ("layout", layout, LAYOUT_SCHEMA),
        ("annotations", annotations, ANNOTATIONS_SCHEMA),
    )


def _observations(manifest: pl.DataFrame, layout: pl.DataFrame, annotations: pl.DataFrame) -> list[str]:
    told = []
    wells = manifest.select(checks.WELL).unique()
    if layout.height:
        lone = wells.join(layout, on=checks.WELL, how="anti").height
        if lone:
            told.append(f"{lone} of {wells.height} wells of the manifest are not in the layout")
        if not (layout["control_type"] == "negative").any():
            told.append("the layout has no negative control: corrections fitted on controls will refuse it")
    if layout.height and annotations.height:
        compounds = annotations.select("compound").unique()
        strange = compounds.join(layout, on="compound", how="anti").height
        if strange:
            told.append(f"{strange} of {compounds.height} annotated compounds are not in the layout")
    return told
