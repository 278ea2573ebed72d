"""The images of one plate as the lake knows them, and at hand where they are on S3."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from extractors.plate_images import PlateImage
from extractors.staging import Staged, staged


def images_and_digests(
    rows: pl.DataFrame, channels: Sequence[str], here: Mapping[str, str] | None = None
) -> tuple[list[PlateImage], dict[Path, str | None]]:
    """Read rows of `main.fields` as images with the files of some channels, and the digests that they came in with.

    Args:
        rows: of one plate.
        channels: whose files are wanted; an image need not have them.
        here: path in the lake to the file of this machine, where they differ.
    """
    images: list[PlateImage] = []
    digests: dict[Path, str | None] = {}
    for row in rows.sort("well", "field", "cell", nulls_last=True).iter_rows(named=True):
        files = {}
        for channel, path, plane, digest in zip(
            *(row[name] for name in ("channels", "paths", "planes", "digests")), strict=True
        ):
            if channel in channels:
                file = Path((here or {}).get(path, path))
                files[channel], digests[file] = (file, plane), digest
        images.append(PlateImage(row["well"], row["field"], row["cell"], files))
    return images, digests


@contextmanager
def at_hand(
    rows: pl.DataFrame, channels: Sequence[str], folder: Path | None = None
) -> Iterator[tuple[Staged, list[PlateImage], dict[Path, str | None]]]:
    """Fetch the files of some channels that are on S3, for as long as the block takes.

    Args:
        rows: of `main.fields`, of one plate.
        channels: whose files are wanted.
        folder: where to put them; None for TMPDIR.

    Yields:
        Where files came from, and the images and digests as `images_and_digests`, with files of this machine.

    Raises:
        PlaceError, LakeUnavailableError: as `extractors.staging.staged`.
    """
    paths = [
        path
        for names, paths in rows.select("channels", "paths").iter_rows()
        for name, path in zip(names, paths, strict=True)
        if name in channels
    ]
    with staged(pl.DataFrame({"path": paths}, schema={"path": pl.String}), folder) as manifest:
        here = dict(zip(paths, manifest.rows["path"], strict=True))
        yield manifest, *images_and_digests(rows, channels, here)
