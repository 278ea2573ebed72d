"""Files wherever they lie: one small way to list and fetch what is in a local folder or on S3.

A location is text: a path of this machine, or `s3://bucket/key`. Keys are taken as they are: nothing
in them is decoded.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from warehouse import s3
from warehouse.errors import PlaceError
from warehouse.s3_errors import failure

SCHEME = "s3://"
#: Seconds until a connection that is not taken, or one that says nothing, counts as failed; tried `_TRIES` times.
_CONNECT_SECONDS, _SILENT_SECONDS, _TRIES = 5, 10, 3
#: Files fetched at the same time: a request waits for the network far longer than it works.
_THREADS = 16
_PIECE_BYTES = 8 * 2**20
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


class Entry(NamedTuple):
    """One file: where it is, its size in bytes, and when it was last changed, in seconds since 1970 (UTC).

    On S3 the time is in whole seconds.
    """

    location: str
    size: int
    modified: float


def is_remote(location: str | Path) -> bool:
    """Tell whether a location is on S3."""
    return isinstance(location, str) and location.startswith(SCHEME)


def located(place: str | Path) -> str:
    """Write a location in its one form: an absolute path (links are not followed), or `s3://bucket/key`.

    Raises:
        PlaceError: an address on S3 that names no bucket, or whose key no folder can hold.
    """
    if not is_remote(place):
        return os.path.abspath(place)  # noqa: PTH100  (Path.absolute keeps "..")
    bucket, key = _parts(str(place))
    return f"{SCHEME}{bucket}/{key}" if key else f"{SCHEME}{bucket}"


def join(folder: str, name: str) -> str:
    """Name what lies below a folder.

    Raises:
        PlaceError: the name is absolute, climbs with `..`, or holds characters that cannot be seen.
    """
    if name.startswith("/") or "\\" in name or "" in (parts := name.split("/")) or {".", ".."} & {*parts}:
        message = (
            f"{folder}: {name!r} is no name below this folder: give one without '..', '\\' or a leading '/'"
        )
        raise PlaceError(message)
    _refuse_unseen(name)
    return f"{folder.rstrip('/')}/{name}"


def parent(location: str) -> str:
    """Name the folder that a location lies in; that of a bucket is the bucket."""
    head, _, _ = location.rpartition("/")
    return location if head in ("s3:/", SCHEME.rstrip("/")) else head or "/"


def listing(folder: str | Path, recursive: bool = True, *, missing_ok: bool = False) -> list[Entry]:
    """List the files of a folder, sorted by location: one look at each folder, or one listing of the prefix.

    Args:
        folder: a local folder or a prefix on S3.
        recursive: also the files of all folders below. Links to folders are followed, each folder is read once.
        missing_ok: give an empty list where there is no such folder (S3 has none without files).

    Raises:
        PlaceError: the folder is not there or cannot be read.
        LakeUnavailableError: S3 cannot be reached.
    """
    place = located(folder)
    try:
        found = list(_remote(place, recursive) if is_remote(place) else _local(place, recursive))
    except (FileNotFoundError, NotADirectoryError) as error:
        if missing_ok:
            return []
        message = (
            f"{place}: there is no such folder, or no file in it: correct the path, or is it not mounted?"
        )
        raise PlaceError(message) from error
    except OSError as error:
        raise failure(place, error) from error
    return sorted(found)


def entry(location: str | Path) -> Entry | None:
    """Look at one file; None where there is no such file. For many files of a folder use `listing`.

    Raises:
        PlaceError: it cannot be looked at.
        LakeUnavailableError: S3 cannot be reached.
    """
    place = located(location)
    try:
        if is_remote(place):
            info = _filesystem(s3.settings()).get_file_info(place.removeprefix(SCHEME))
            return _entry(info) if info.is_file else None
        seen = os.stat(place)  # noqa: PTH116  (the text stays as it is)
        return Entry(place, seen.st_size, seen.st_mtime) if stat.S_ISREG(seen.st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise failure(place, error) from error


def folders(folder: str | Path) -> list[str]:
    """List the folders that lie directly in a folder, sorted; none where it is not there.

    Raises:
        PlaceError: it cannot be read.
        LakeUnavailableError: S3 cannot be reached.
    """
    place = located(folder)
    try:
        if not is_remote(place):
            with os.scandir(place) as found:
                return sorted(item.path for item in found if item.is_dir())
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(place.removeprefix(SCHEME), allow_not_found=True)
        infos = _filesystem(s3.settings()).get_file_info(selector)
        return sorted(SCHEME + info.path for info in infos if info.type == FileType.Directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise failure(place, error) from error


def is_folder(location: str | Path) -> bool:
    """Tell whether there is such a folder (on S3: any key below the prefix).

    Raises:
        PlaceError: it cannot be looked at.
        LakeUnavailableError: S3 cannot be reached.
    """
    place = located(location)
    if not is_remote(place):
        return Path(place).is_dir()
    from pyarrow.fs import FileType

    try:
        info = _filesystem(s3.settings()).get_file_info(place.removeprefix(SCHEME))
    except OSError as error:
        raise failure(place, error) from error
    return bool(info.type == FileType.Directory)


def read_bytes(location: str | Path) -> bytes:
    """Read a whole file.

    Raises:
        PlaceError: it is not there or cannot be read.
        LakeUnavailableError: S3 cannot be reached.
    """
    place = located(location)
    try:
        if not is_remote(place):
            return Path(place).read_bytes()
        with _filesystem(s3.settings()).open_input_file(place.removeprefix(SCHEME)) as file:
            return bytes(file.read())
    except OSError as error:
        raise failure(place, error) from error


def fetch(locations: Iterable[str], folder: Path) -> dict[str, Path]:
    """Bring files from S3 into a folder, many at a time, each as a whole or not at all.

    Args:
        locations: of files; those of this machine stay where they are.
        folder: where `s3://bucket/key` becomes `bucket/key`; files that are there already are fetched anew.

    Returns:
        The local file of each location. A file that is not there has no entry.

    Raises:
        PlaceError: a key that a folder cannot hold, no permission, no such bucket, a full disk, a file cut short.
        LakeUnavailableError: S3 cannot be reached. Of both: files that were fetched before stay in the folder.
    """
    wanted = list(dict.fromkeys(locations))
    executor = ThreadPoolExecutor(min(_THREADS, len(wanted) or 1))
    try:
        paths = list(executor.map(lambda location: _fetched(location, folder), wanted))
    finally:
        executor.shutdown(cancel_futures=True)  # after an error the files still waiting are not asked for
    found = {location: path for location, path in zip(wanted, paths, strict=True) if path is not None}
    absent = {_parts(location)[0] for location in wanted if location not in found and is_remote(location)}
    for bucket in sorted(absent - {_parts(location)[0] for location in found if is_remote(location)}):
        _check_bucket(bucket)  # to S3, a file of no bucket is just a file that is not there
    return found


@cache
def _filesystem(settings: s3.S3Settings) -> Any:
    # pyarrow.fs takes a fifth of a second to load, and most lakes have nothing on S3.
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    return S3FileSystem(
        access_key=settings.key_id,
        secret_key=settings.secret,
        session_token=settings.token,
        anonymous=settings.key_id is None,
        region=settings.region,
        endpoint_override=settings.endpoint,
        scheme="https" if settings.use_ssl else "http",
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_SILENT_SECONDS,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=_TRIES),
    )


def _parts(location: str) -> tuple[str, str]:
    """Split an address into bucket and key; what could climb out of a folder is refused here, once for all."""
    bucket, _, key = location.removeprefix(SCHEME).partition("/")
    key = key.rstrip("/")
    if not _BUCKET.fullmatch(bucket):
        message = f"{location!r}: {bucket!r} is no name of a bucket: write s3://bucket/key"
        raise PlaceError(message)
    if key and any(part in ("", ".", "..") or "\\" in part for part in key.split("/")):
        message = (
            f"{location!r}: a key with '.', '..', '\\' or nothing between two '/' fits no folder: rename it"
        )
        raise PlaceError(message)
    _refuse_unseen(location)
    return bucket, key


def _refuse_unseen(name: str) -> None:
    if _UNSEEN.search(name):
        message = f"{name!r} holds a character that cannot be seen: rename the file"
        raise PlaceError(message)


def _entry(info: Any) -> Entry:
    # A listing tells milliseconds and a look at one file whole seconds: both must say the same.
    return Entry(SCHEME + info.path, info.size, float(info.mtime_ns // 10**9))


def _remote(place: str, recursive: bool) -> Iterator[Entry]:
    from pyarrow.fs import FileSelector

    selector, filesystem = (
        FileSelector(place.removeprefix(SCHEME), recursive=recursive),
        _filesystem(s3.settings()),
    )
    infos = [info for info in filesystem.get_file_info(selector) if info.is_file]
    # pyarrow reads a time with one or two decimals, as servers other than Amazon's write it, as none.
    undated = [info.path for info in infos if not info.mtime_ns]
    yield from map(_entry, (info for info in infos if info.mtime_ns))
    yield from map(_entry, (info for info in filesystem.get_file_info(undated) if info.is_file))


def _local(place: str, recursive: bool) -> Iterator[Entry]:
    # Real folders come before linked ones, so that what is reached twice has its real name.
    folders, linked, read = [place], list[str](), set[tuple[int, int]]()
    while folders or linked:
        folder = folders.pop() if folders else linked.pop()
        seen = os.stat(folder)  # noqa: PTH116
        if (seen.st_dev, seen.st_ino) in read:
            continue
        read.add((seen.st_dev, seen.st_ino))
        with os.scandir(folder) as found:
            for item in found:
                try:
                    if item.is_dir():
                        if recursive:
                            (linked if item.is_symlink() else folders).append(item.path)
                    elif item.is_file():
                        seen = item.stat()
                        yield Entry(item.path, seen.st_size, seen.st_mtime)
                except FileNotFoundError:
                    continue  # gone since the folder was read, or a link to nothing
        linked.sort(reverse=True)


def _fetched(location: str, folder: Path) -> Path | None:
    """Fetch one file; None where it is not there."""
    if not is_remote(location):
        path = Path(location)
        return path if path.is_file() else None
    bucket, key = _parts(location)
    if not key:
        message = f"{location}: names a bucket and no file: give the file's key"
        raise PlaceError(message)
    target = folder.joinpath(bucket, *key.split("/"))
    part = target.with_name(f".{uuid4().hex}.part")
    try:
        file = _filesystem(s3.settings()).open_input_file(f"{bucket}/{key}")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failure(location, error) from error
    with file:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as out:
                _copy(location, file, out)
            part.replace(target)
        except OSError as error:
            message = (
                f"{target}: cannot be written ({error.strerror}): make room, or set TMPDIR to another disk"
            )
            raise PlaceError(message) from error
        finally:
            with suppress(OSError):  # renamed, or its folder could not be made
                part.unlink()
    return target


def _copy(location: str, file: Any, out: Any) -> None:
    """Copy an open file of S3 in pieces; a small one comes in one answer, so that it is of one moment."""
    size, done = file.size(), 0
    while done < size:
        try:
            piece = file.read(_PIECE_BYTES)
        except OSError as error:
            raise failure(location, error) from error
        if not piece:
            break
        out.write(piece)
        done += len(piece)
    if done != size:
        message = f"{location}: {done} of {size} bytes came: it changes while it is read; try again"
        raise PlaceError(message)


def _check_bucket(bucket: str) -> None:
    """Refuse a bucket that is not there.

    Raises:
        PlaceError: naming it.
    """
    try:
        info = _filesystem(s3.settings()).get_file_info(bucket)
    except OSError:
        return  # a public bucket may show its files and nothing of itself
    if not info.type:  # FileType.NotFound
        raise failure(SCHEME + bucket, OSError("AWS Error NO_SUCH_BUCKET during HeadBucket"))
