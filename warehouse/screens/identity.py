"""Which source and batch a plate belongs to, when a file, an argument or a folder's name says so."""

from collections.abc import Mapping, Sequence

import polars as pl

from warehouse.screens.table import literal, refuse

DEFAULT = "default"
HINTS = {"source": "__source", "batch": "__batch"}
"""Columns with what the folders around a file, or the name of a plate, say of source and batch."""

_KEYS = (("source", ["plate"]), ("batch", ["source", "plate"]))


def settle(
    manifest: pl.DataFrame, layout: pl.DataFrame, given: Mapping[str, str | None], origin: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Fill in source and batch where a file leaves them out.

    In this order: the file's own column; the argument; for a layout, what holds for the same plate in the
    manifest; what the folders around the file say; for a manifest, what holds for the same plate in the
    layout; ``"default"``.

    Args:
        manifest: rows with `plate`, perhaps `source`, `batch` and the columns `HINTS`; no rows where there
            is no manifest.
        layout: likewise.
        given: the arguments, by ``"source"`` and ``"batch"``; None where not given.
        origin: what is read, for messages.

    Returns:
        Both frames with `source` and `batch` never null and without hints.

    Raises:
        ScreenError: an argument contradicts a file, or a layout without sources has a plate of which the
            manifest knows several.
    """
    manifest, layout = _with_columns(manifest), _with_columns(layout)
    for name, key in _KEYS:
        for frame in (manifest, layout):
            _refuse_contradiction(frame, name, given[name], origin)
        stated = pl.coalesce(name, pl.lit(given[name], dtype=pl.String)).alias(name)
        hinted = pl.coalesce(name, HINTS[name]).alias(name)
        manifest, layout = manifest.with_columns(stated).with_columns(hinted), layout.with_columns(stated)
        if name == "source":
            _refuse_ambiguous(manifest, layout, origin)
        layout = _filled(layout, name, key, manifest).with_columns(hinted)
        manifest = _filled(manifest, name, key, layout)
        known = pl.col(name).fill_null(DEFAULT)
        manifest, layout = manifest.with_columns(known), layout.with_columns(known)
    return manifest.drop(HINTS.values()), layout.drop(HINTS.values())


def _with_columns(frame: pl.DataFrame) -> pl.DataFrame:
    """Add the columns that are not there, all null."""
    names = [name for pair in HINTS.items() for name in pair if name not in frame.columns]
    return frame.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in names)


def _filled(frame: pl.DataFrame, name: str, key: Sequence[str], other: pl.DataFrame) -> pl.DataFrame:
    """Take what `other` says of the same plate where `frame` says nothing."""
    told = other.filter(pl.col(name).is_not_null()).unique(key, keep="first", maintain_order=True)
    told = told.select(*key, pl.col(name).alias("__told"))
    joined = frame.join(told, on=key, how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce(name, "__told").alias(name)).drop("__told")


def _refuse_contradiction(frame: pl.DataFrame, name: str, value: str | None, origin: str) -> None:
    if value is not None:
        bad = frame.filter(pl.col(name) != value)
        says = f"{name} is {{{name}!r}}, but {name} {literal(repr(value))} was asked for"
        refuse(bad, origin, says, f"Leave the argument out, or correct the column {name!r}.")


def _refuse_ambiguous(manifest: pl.DataFrame, layout: pl.DataFrame, origin: str) -> None:
    """A plate name that two sources share cannot be looked up by its name alone."""
    shared = manifest.group_by("plate").agg(pl.col("source").n_unique()).filter(pl.col("source") > 1)
    bad = layout.filter(pl.col("source").is_null() & pl.col("plate").is_in(shared["plate"].to_list()))
    says = "plate {plate!r} is in several sources of the manifest, and the layout does not say which"
    refuse(bad, origin, says, "Add a column 'source' to the layout.")
