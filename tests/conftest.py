"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
from servers import _s3, postgres, s3  # noqa: F401  (fixtures)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: `WELLHOUSE_TEST_DATA`, else `../shared/data`; skips where it is absent."""
    folder = Path(os.environ.get("WELLHOUSE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}: set WELLHOUSE_TEST_DATA to run this test")
    return folder
