"""Fixtures shared by all tests."""

import functools
import os
from pathlib import Path

import duckdb
import pytest

from benchmarks.servers import _s3, postgres, s3  # noqa: F401  (fixtures)

REPOSITORY = Path(__file__).resolve().parent.parent


def _sparing(connect):
    """DuckDB without what costs tests most: a third of their time.

    A lake that is opened loads extensions, and DuckDB hashes their files each time (0.1 s); and its threads wait for
    each other by spinning, which takes the core from the other worker. Commands that tests start as processes, and
    all in the long form, run as they do for users.
    """

    @functools.wraps(connect)
    def connected(*arguments, config=None, **others):
        spared = {"allow_unsigned_extensions": True, "threads": 1}
        return connect(*arguments, config={**spared, **(config or {})}, **others)

    return connected


if not os.environ.get("WELLHOUSE_LONG"):
    duckdb.connect = _sparing(duckdb.connect)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: `WELLHOUSE_TEST_DATA`, else `../shared/data`; skips where it is absent."""
    folder = Path(os.environ.get("WELLHOUSE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}: set WELLHOUSE_TEST_DATA to run this test")
    return folder


#: Files that take minutes: begun last, one worker would be busy with them while the other had nothing left to do.
LONG_FILES = ("test_docs.py", "test_night_kills.py", "test_export.py")


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest (with `--no-loadscope-reorder`); the order is as it is otherwise."""
    items.sort(
        key=lambda item: LONG_FILES.index(item.path.name) if item.path.name in LONG_FILES else len(LONG_FILES)
    )
