"""From one column per channel to one row per channel."""

from collections.abc import Mapping, Sequence

import polars as pl

from warehouse.errors import ScreenError
from warehouse.names import unknown
from warehouse.screens.table import TRACE, refuse

KEYS = ("plate", "well", "field", "cell")
_KEPT = ("source", "batch", "__source", "__batch", *KEYS, "plate_size", *TRACE)


def to_long(
    table: pl.DataFrame, paths: Mapping[str, str], planes: Mapping[str, str | int], origin: str
) -> tuple[pl.DataFrame, list[str]]:
    """Write one row per field and channel, in the order of the rows, then of `paths`.

    A field whose cell for one channel is empty gets no row for it: it is incomplete, which is recorded
    when images are read.

    Args:
        table: one row per field, with the columns named in `paths`.
        paths: channel → column of absolute paths.
        planes: channel → column (Int64) or number of the plane; a channel left out has none.
        origin: what the table is, for messages.

    Returns:
        The rows with `channel`, `path` and `plane`, and a note for each channel that some fields lack.

    Raises:
        ScreenError: a field has no path for any channel.
    """
    nothing = table.filter(pl.all_horizontal(pl.col(column).is_null() for column in paths.values()))
    refuse(
        nothing,
        origin,
        f"no image is given for any channel ({', '.join(paths)})",
        "Give one, or take the row out.",
    )
    kept = [name for name in table.columns if name in _KEPT]
    parts, notes = [], []
    for number, (channel, column) in enumerate(paths.items()):
        plane = planes.get(channel)
        at = pl.col(plane) if isinstance(plane, str) else pl.lit(plane)
        part = table.select(
            *kept,
            pl.lit(channel).alias("channel"),
            pl.col(column).alias("path"),
            at.cast(pl.Int64).alias("plane"),
            (pl.int_range(pl.len()) * len(paths) + number).alias("__order"),
        )
        lacking = part["path"].null_count()
        if lacking:
            notes.append(f"{lacking} of {table.height} fields have no image for channel {channel}")
        parts.append(part.filter(pl.col("path").is_not_null()))
    return pl.concat(parts).sort("__order").drop("__order"), notes


def chosen(available: Sequence[str], channels: Sequence[str] | None, default: Sequence[str]) -> list[str]:
    """Return the channels to read: those asked for, in that order, else the default ones.

    Args:
        available: the channels that the manifest has.
        channels: the channels asked for; None for the default.
        default: the channels read when none are asked for.

    Raises:
        ScreenError: a channel is asked for twice, or is not in the manifest, or none are asked for.
    """
    if channels is None:
        return list(default)
    if not channels or len(set(channels)) < len(channels):
        message = f"channels {', '.join(channels) or '(none)'}: name at least one, and each once."
        raise ScreenError(message)
    for channel in channels:
        if channel not in available:
            message = str(unknown(channel, "channel", available))
            raise ScreenError(message)
    return list(channels)


def left_out(available: Sequence[str], read: Sequence[str]) -> list[str]:
    """Return a note on the channels that are not read, or nothing."""
    rest = [channel for channel in available if channel not in read]
    return [f"{len(rest)} of {len(available)} channels left out: {', '.join(rest)}"] if rest else []
