"""One plate's images at hand: those on S3 are fetched before they are hashed and read, and removed afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from warehouse import places
from warehouse.errors import WellhouseError


@dataclass(frozen=True)
class Staged:
    """A plate's manifest with files of this machine.

    Attributes:
        rows: the manifest; `path` names local files.
        folder: where files from S3 lie for now, as `bucket/key`; None where all are of this machine.
    """

    rows: pl.DataFrame
    folder: Path | None = None

    def original(self, text: str) -> str:
        """Name what was fetched, a path or paths in a sentence, by where it came from."""
        return text if self.folder is None else text.replace(f"{self.folder}/", places.SCHEME)

    def renamed(self, rejections: pl.DataFrame) -> pl.DataFrame:
        """Name files in the column `reason` by where they came from."""
        reasons = [self.original(reason) for reason in rejections["reason"]]
        return rejections.with_columns(pl.Series("reason", reasons, dtype=pl.String))


@contextmanager
def staged(rows: pl.DataFrame, folder: Path | None = None) -> Iterator[Staged]:
    """Fetch the files of one plate that are on S3 into a folder that is gone after the block.

    Args:
        rows: the plate's manifest. Where no path is on S3 nothing is done.
        folder: where to make that folder; it needs room for the images of one plate. None for TMPDIR.

    Yields:
        The manifest to read from. A file that is not on S3 is not in the folder either: its field is rejected when
        it is read, as with a missing local file.

    Raises:
        PlaceError: S3 refuses access, there is no such bucket, or the folder's disk is full.
        LakeUnavailableError: S3 cannot be reached. Errors raised in the block name files by where they came from.
    """
    remote = rows["path"].str.starts_with(places.SCHEME)
    if not remote.any():
        yield Staged(rows)
        return
    with TemporaryDirectory(prefix="wellhouse-", dir=folder, ignore_cleanup_errors=True) as name:
        places.fetch(rows.filter(remote)["path"].unique(maintain_order=True), Path(name))
        below = pl.concat_str(pl.lit(f"{name}/"), pl.col("path").str.strip_prefix(places.SCHEME))
        here = pl.when(pl.col("path").str.starts_with(places.SCHEME)).then(below).otherwise("path")
        found = Staged(rows.with_columns(here.alias("path")), Path(name))
        try:
            yield found
        except WellhouseError as error:
            raise type(error)(found.original(str(error))) from error
