"""Tables of a screen that lie on S3: fetched, read as if they were here, and named as what they are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from warehouse import places
from warehouse.errors import ScreenError

Namer = Callable[[str], str]
#: What a folder of tables may hold; images beside them are left where they are.
_TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt")


@contextmanager
def at_hand(
    manifest: Path | str, layout: Path | str | None = None, annotations: Path | str | None = None
) -> Iterator[tuple[tuple[Path, Path | None, Path | None], Namer]]:
    """Fetch the tables that are on S3 into a temporary folder, where the folders around them are named as there.

    Args:
        manifest: a file or folder, here or on S3.
        layout: likewise.
        annotations: likewise.

    Yields:
        The local path of each, and a function that turns paths of the temporary folder, in any text, into the
        addresses they stand for (`str` where all is here). Errors of the screen raised in the block are renamed so.

    Raises:
        ScreenError: a table is not there.
        PlaceError: S3 refuses it.
        LakeUnavailableError: S3 cannot be reached.
    """
    others = (layout, annotations)
    if not any(places.is_remote(table) for table in (manifest, *others) if table is not None):
        first, second = (None if table is None else Path(table) for table in others)
        yield (Path(manifest), first, second), str
        return
    with TemporaryDirectory(prefix="wellhouse-") as name:
        folder = Path(name)

        def named(text: str) -> str:
            return text.replace(f"{folder}/", places.SCHEME)

        try:
            first, second = (None if table is None else _fetched(table, folder) for table in others)
            yield (_fetched(manifest, folder), first, second), named
        except ScreenError as error:
            raise ScreenError(named(str(error))) from error


def _fetched(table: Path | str, folder: Path) -> Path:
    if not places.is_remote(table):
        return Path(table)
    location = places.located(table)
    files = [location]
    if places.entry(location) is None:
        below = places.listing(location, missing_ok=True)
        files = [entry.location for entry in below if entry.location.casefold().endswith(_TABLES)]
        if not files:
            message = f"{location}: there is no such file, and no table below it. Correct the path."
            raise ScreenError(message)
    places.fetch(files, folder)
    return folder / location.removeprefix(places.SCHEME)
