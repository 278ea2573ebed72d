"""Finding the SQL that travels with the code: `schema/` (tables) and `sql/` (views, checks), as text."""

from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


@cache
def _root(kind: str) -> Path:
    """Return the folder of `kind`: inside the wheel (`warehouse/_data`) first, beside the package second."""
    for candidate in (_PACKAGE / "_data" / kind, _PACKAGE.parent / kind):
        if candidate.is_dir():
            return candidate
    message = f"the folder {kind!r} is missing from this installation of wellhouse: install it again"
    raise FileNotFoundError(message)


def files(kind: str, folder: str = "") -> list[Path]:
    """List the `.sql` files of `schema` or `sql` (or of a folder in it), in the order of their numbers."""
    return sorted((_root(kind) / folder).glob("*.sql"))


def number_and_name(path: Path) -> tuple[int, str]:
    """Split `40_treatments.sql` into its number and the relation it makes: `(40, "treatments")`."""
    number, _, name = path.stem.partition("_")
    return int(number), name
