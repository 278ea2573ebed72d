"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

from benchmarks.servers import _s3, postgres, s3  # noqa: F401  (fixtures)

REPOSITORY = Path(__file__).resolve().parent.parent


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
