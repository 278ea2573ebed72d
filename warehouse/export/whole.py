"""Files that are there whole, all of them, or not at all: written beside their place, then moved into it."""

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from warehouse.errors import ExportError


@contextmanager
def written(files: Sequence[Path], *, overwrite: bool) -> Iterator[list[Path]]:
    """Write files under other names in the same folder, and move them into place when all of them are done.

    The first file is moved last, and with `overwrite` its former version is taken away first: killed in between,
    it is missing, and never stands beside a list of features that is not its own.

    Args:
        files: their places, the one that a person named first, its companions after it.
        overwrite: replace what is there.

    Yields:
        One path a file to write to.

    Raises:
        ExportError: a file is there already, or a place is no file in a folder.
        OSError: the disk is full, or the folder cannot be written to; what was there before is there still.
    """
    folder = files[0].parent
    refuse(files, folder, overwrite)
    token = uuid.uuid4().hex[:12]
    temporary = [folder / f".{path.name}.{token}.partial" for path in files]
    try:
        yield temporary
        for path in temporary:
            _synced(path)
        refuse(files, folder, overwrite)  # another process may have been faster
        _moved(list(zip(temporary, files, strict=True)), token)
        if os.name == "posix":
            _synced(folder)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def refuse(files: Sequence[Path], folder: Path, overwrite: bool) -> None:
    """Refuse files that cannot stand in a folder.

    Raises:
        ExportError: there is no such folder, a file is there already, or its place is a folder.
    """
    if not folder.is_dir():
        message = f"{files[0]}: there is no folder {folder}: make it, or name another place"
        raise ExportError(message)
    for path in files:
        if path.is_dir():
            message = f"{path} is a folder: name a file in it"
            raise ExportError(message)
        if path.exists() and not overwrite:
            message = f"{path} is there already: give --overwrite to replace it, or name another place"
            raise ExportError(message)


def _synced(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _moved(pairs: Sequence[tuple[Path, Path]], token: str) -> None:
    """Move new files to their places; where one move fails, the former files come back."""
    former: list[tuple[Path, Path]] = []
    placed: list[Path] = []
    try:
        for _, path in pairs:
            if path.exists():
                aside = path.with_name(f".{path.name}.{token}.former")
                path.replace(aside)
                former.append((aside, path))
        for new, path in reversed(pairs):
            new.replace(path)
            placed.append(path)
    except OSError:
        for path in placed:
            path.unlink(missing_ok=True)
        for aside, path in former:
            aside.replace(path)
        raise
    for aside, _ in former:
        aside.unlink()
