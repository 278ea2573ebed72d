"""Where a lake is: a folder, or a database in Postgres with its data in S3 or a shared folder; never a password."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from warehouse.errors import LakeError
from warehouse.names import unknown

#: What an address may say to libpq; the rest (sslpassword, a misspelt word before a password) is refused unread.
_PARAMETERS = (
    "application_name", "channel_binding", "connect_timeout", "dbname", "gssencmode", "host", "hostaddr",
    "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "krbsrvname", "options",
    "passfile", "port", "service", "sslcert", "sslcrl", "sslkey", "sslmode", "sslrootcert",
    "target_session_attrs", "tcp_user_timeout", "user",
)  # fmt: skip
_PAIR = re.compile(r"\s*(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)+))(?=\s|$)")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(?:/[^?*\[\]@#]*)?")


@dataclass(frozen=True)
class Address:
    """A lake's address, taken apart.

    Attributes:
        text: for messages, and to open the lake by again.
        path: the lake's folder; None for a team lake.
        connection: libpq's parameters of a team lake's database; empty for a folder.
    """

    text: str
    path: Path | None
    connection: str

    @property
    def is_team(self) -> bool:
        """Whether the catalog is in Postgres."""
        return self.path is None


def parse(address: str | Path) -> Address:
    """Take a lake's address apart.

    Args:
        address: a folder, `postgres:host=… dbname=…`, or `postgresql://user@host:port/database`.

    Raises:
        LakeError: it holds a password, is not in libpq's form, names no database, or is of another kind.
        UnknownNameError: a parameter that libpq does not know.
    """
    text = str(address)
    if text.startswith(("postgres://", "postgresql://")):
        return _team(_of_url(text))
    if text.startswith("postgres:"):
        rest = text.removeprefix("postgres:").strip()
        is_url = rest.startswith(("postgres://", "postgresql://"))
        return _team(_of_url(rest) if is_url else dict(_pairs(rest)))
    if scheme := _SCHEME.match(text):
        message = (
            f"a lake's address is a folder or postgres:…, not {scheme.group(1)}://…: for a team lake name the "
            "database, and where its data goes with --data"
        )
        raise LakeError(message)
    path = Path(text).expanduser().absolute()
    return Address(str(path), path, "")


def data_place(text: str | Path) -> str:
    """Check where a team lake's data is to go, and return it as the catalog keeps it.

    Args:
        text: `s3://bucket/prefix`, or a folder that all who use the lake see under the same path.

    Raises:
        LakeError: it is neither.
    """
    place = str(text)
    if scheme := _SCHEME.match(place):
        # What follows may hold a key or a password, so it is not repeated.
        if not _BUCKET.fullmatch(place):
            message = (
                f"--data {scheme.group(1)}://… is not of the form s3://bucket/prefix: name a bucket, or a shared "
                "folder; keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
            raise LakeError(message)
        return place.rstrip("/") + "/"
    return str(Path(place).expanduser().absolute()).rstrip("/") + "/"


def _team(parameters: dict[str, str]) -> Address:
    for name in parameters:
        if name in ("password", "sslpassword", "scram_client_key", "oauth_client_secret"):
            raise LakeError(_NO_PASSWORD)
        if name not in _PARAMETERS:
            raise unknown(name, "parameter of a Postgres address", _PARAMETERS)
    database = parameters.get("dbname", "")
    if not database and "service" not in parameters:
        message = "the lake's address names no database: postgres:host=… dbname=…, or postgresql://user@host/database"
        raise LakeError(message)
    # libpq would read such a name as a whole address.
    if "=" in database or "://" in database or any("\0" in value for value in parameters.values()):
        message = (
            "the lake's address: dbname is the plain name of a database; give host, port and user beside it"
        )
        raise LakeError(message)
    connection = " ".join(f"{name}={_quoted(value)}" for name, value in parameters.items())
    return Address(f"postgres:{connection}", None, connection)


_NO_PASSWORD = (
    "the lake's address holds a password, which would end up in logs and in the list of processes: leave it out, "
    "and set PGPASSWORD or write it to ~/.pgpass"
)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text.rstrip()):
        found = _PAIR.match(text, at)
        if found is None:
            # Not repeated: what cannot be read may hold a password.
            message = (
                f"the lake's address cannot be read from its letter {at + len('postgres:') + 1} on: write "
                "postgres:host=… dbname=… user=…, with quotes '…' around a value with spaces"
            )
            raise LakeError(message)
        quoted, plain = found.group(2), found.group(3)
        yield found.group(1), re.sub(r"\\(.)", r"\1", plain if quoted is None else quoted)
        at = found.end()


def _of_url(url: str) -> dict[str, str]:
    try:
        parts = urlsplit(url)
    except ValueError:  # its own message repeats the address
        message = "the lake's address is no URL of a database: write postgresql://user@host:port/database"
        raise LakeError(message) from None
    login, _, servers = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    if password:
        raise LakeError(_NO_PASSWORD)
    named = [re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(\d*))?", server) for server in servers.split(",")]
    # An @ or # further on is one of a password that was not written as %40 or %23.
    if None in named or parts.fragment or "@" in parts.path + parts.query:
        message = "the lake's address is no URL of a database: write postgresql://user@host:port/database"
        raise LakeError(message)
    ports = [found.group(2) or "" for found in named if found]
    found = {
        "host": ",".join(unquote(server.group(1).strip("[]")) for server in named if server),
        "port": ",".join(ports) if any(ports) else "",
        "user": unquote(user),
        "dbname": unquote(parts.path.removeprefix("/")),
        **dict(parse_qsl(parts.query, keep_blank_values=True)),
    }
    return {name: value for name, value in found.items() if value}


def _quoted(value: str) -> str:
    if re.fullmatch(r"[^\s'\\]+", value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
