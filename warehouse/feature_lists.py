"""Lists of feature names as text, one name a line, in order; and the keys that Parquet files carry them under.

A name that does not stand on a line by itself (it begins or ends with white space, breaks the line, or begins with
a quotation mark) is written as a JSON string, so that every list comes back as it was.
"""

import json
from collections.abc import Sequence

#: Keys of a Parquet schema's metadata: the names of the features as a JSON list, and where the file comes from.
FEATURES_KEY, LINEAGE_KEY = b"wellhouse.features", b"wellhouse.lineage"


def to_text(names: Sequence[str]) -> str:
    """Write names, one a line."""
    return "".join(f"{_line(name)}\n" for name in names)


def from_text(text: str) -> list[str]:
    """Read names, one a line; white space around them and empty lines mean nothing."""
    return [_name(line.strip()) for line in text.splitlines() if line.strip()]


def _line(name: str) -> str:
    is_plain = name.strip() == name and name.splitlines() == [name] and not name.startswith('"')
    return name if is_plain else json.dumps(name)


def _name(line: str) -> str:
    """Read one line; one that begins with a quotation mark and is no JSON string is a name as it stands."""
    if not line.startswith('"'):
        return line
    try:
        name = json.loads(line)
    except json.JSONDecodeError:
        return line
    return name if isinstance(name, str) else line
