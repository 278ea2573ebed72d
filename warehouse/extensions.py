"""Loading DuckDB's extensions from their wheels, so that no run touches the network."""

from importlib.util import find_spec
from pathlib import Path

import duckdb

from warehouse.errors import LakeError
from warehouse.sqltext import literal


def load(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Load one extension: the file in its wheel, else (no wheel for this platform) DuckDB's own repository.

    Args:
        connection: an open DuckDB connection.
        name: the extension, as in `duckdb-extension-<name>` (`ducklake`, `httpfs`).

    Raises:
        LakeError: the wheel's file does not fit this DuckDB, or there is neither wheel nor network.
    """
    spec = find_spec(f"duckdb_extension_{name}")
    wheel = f"duckdb-extension-{name.replace('_', '-')}=={duckdb.__version__}"
    try:
        if spec is None or not spec.submodule_search_locations:
            connection.execute(f"INSTALL {name}")
            connection.execute(f"LOAD {name}")
        else:
            folder = Path(next(iter(spec.submodule_search_locations)))
            file = next(folder.rglob(f"{name}.duckdb_extension"))
            connection.execute(f"LOAD {literal(str(file))}")
        if name == "httpfs":
            # It copies AWS_… into settings, which any query can read; a secret in memory shows no key.
            for setting in ("s3_access_key_id", "s3_secret_access_key", "s3_session_token"):
                connection.execute(f"RESET GLOBAL {setting}")
    except (duckdb.Error, StopIteration) as error:
        message = f"DuckDB {duckdb.__version__} cannot load its extension {name!r}: pip install '{wheel}'"
        raise LakeError(message) from error
