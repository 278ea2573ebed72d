"""Addresses of lakes: folders, Postgres in libpq's words or as a URL, and never a password in a message."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warehouse import address
from warehouse.errors import LakeError, UnknownNameError

WORD = "hunter2-secret"


@pytest.mark.parametrize(
    ("text", "connection"),
    [
        ("postgres:host=db dbname=screens", "host=db dbname=screens"),
        ("postgres: host = 'db'   port=5433 dbname = screens ", "host=db port=5433 dbname=screens"),
        (r"postgres:host='/my folder' dbname='o\'lake'", r"host='/my folder' dbname='o\'lake'"),
        ("postgres:service=lake", "service=lake"),
        ("postgresql://ann@db.example.org/screens", "host=db.example.org user=ann dbname=screens"),
        ("postgres://ann@db:5433/screens?sslmode=require", "host=db port=5433 user=ann dbname=screens sslmode=require"),
        ("postgresql://ann:@db/screens", "host=db user=ann dbname=screens"),
        ("postgres:postgresql://db/screens", "host=db dbname=screens"),
        ("postgresql://ann@a:1,b/screens", "host=a,b port=1, user=ann dbname=screens"),
        ("postgresql://%2Ftmp%2Fmy%20run/screens", "host='/tmp/my run' dbname=screens"),
        ("postgresql:///screens?host=/tmp/run&user=me%40here", "host=/tmp/run user=me@here dbname=screens"),
        ("postgresql://[::1]:5432/screens", "host=::1 port=5432 dbname=screens"),
    ],
)  # fmt: skip
def test_postgres_addresses(text, connection):
    found = address.parse(text)
    assert found == address.Address(f"postgres:{connection}", None, connection)
    assert found.is_team
    assert address.parse(found.text) == found


@pytest.mark.parametrize("text", ["lake", "~/lake", "postgres.lake", "./postgres:x", "a b/o'lake"])
def test_all_else_is_a_folder(text):
    found = address.parse(text)
    assert (found.path, found.connection) == (Path(text).expanduser().absolute(), "")
    assert found.text == str(found.path)
    assert not found.is_team


@pytest.mark.parametrize(
    "text",
    [
        f"postgres:host=db dbname=x password={WORD}",
        f"postgres:host=db dbname=x password = '{WORD}'",
        f"postgres:host=db dbname=x sslpassword={WORD}",
        f"postgresql://ann:{WORD}@db/x",
        f"postgresql://ann:{WORD}@@db/x",
        f"postgresql://db/x?password={WORD}",
        f"postgres:postgresql://ann:{WORD}@db/x",
    ],
)
def test_a_password_is_refused_and_not_repeated(text):
    with pytest.raises(LakeError, match=r"holds a password.*leave it out, and set PGPASSWORD or") as caught:
        address.parse(text)
    assert WORD not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"postgres:host=db {WORD} dbname=x", "cannot be read from its letter 17 on"),
        (f"postgres:{WORD}", "cannot be read from its letter 10 on"),
        (f"postgres:host=db dbname='{WORD}", "cannot be read from its letter 17 on"),
        (f"postgres:host=db pasword={WORD}", r"unknown parameter of a Postgres address 'pasword'"),
        (f"postgres:dbname=postgresql://ann:{WORD}@db/x", "dbname is the plain name of a database"),
        (f"postgres:dbname='host=db password={WORD}'", "dbname is the plain name of a database"),
        (f"postgresql://ann:hunter2/{WORD}@db/x", "is no URL of a database"),
        ("postgresql://ann:2/hunter2@db/x", "is no URL of a database"),
        ("postgresql://ann:2?hunter2@db/x", "is no URL of a database"),
        ("postgresql://ann:2#hunter2@db/x", "is no URL of a database"),
        (f"postgresql://[{WORD}/x", "is no URL of a database"),
        ("postgres:host=db", "names no database: postgres:host=… dbname=…"),
        ("postgresql://db", "names no database"),
        ("postgres:", "names no database"),
        (f"s3://{WORD}/lake", "a folder or postgres:…, not s3://…: .* with --data"),
        (f"mysql://ann:{WORD}@db/x", "a folder or postgres:…, not mysql://…"),
    ],
)
def test_what_cannot_be_read_is_refused_and_not_repeated(text, message):
    with pytest.raises((LakeError, UnknownNameError), match=message) as caught:
        address.parse(text)
    assert WORD not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@given(
    st.text(st.characters(blacklist_characters="\0=", blacklist_categories=["Cs"]), min_size=1).filter(
        lambda name: "://" not in name
    )
)
def test_any_name_comes_back(name):
    text = "postgres:dbname='" + name.replace("\\", "\\\\").replace("'", "\\'") + "' host=db"
    found = address.parse(text)
    assert address.parse(found.text) == found
    assert dict(address._pairs(found.connection)) == {"dbname": name, "host": "db"}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("s3://bucket", "s3://bucket/"),
        ("s3://my-bucket.x/a/b c/", "s3://my-bucket.x/a/b c/"),
        ("/shared/lake", "/shared/lake/"),
        ("/shared/lake//", "/shared/lake/"),
    ],
)
def test_places_of_data(text, place):
    assert address.data_place(text) == place


def test_a_place_of_data_is_absolute():
    assert address.data_place("here") == f"{Path.cwd()}/here/"


@pytest.mark.parametrize(
    "text", [f"s3://key:{WORD}@bucket/x", f"s3://b/x?secret={WORD}", "s3://", "s3://b/*", f"gs://{WORD}/x"]
)
def test_other_places_of_data_are_refused_and_not_repeated(text):
    scheme = text.split(":")[0]
    with pytest.raises(
        LakeError, match=rf"--data {scheme}://… is not of the form s3://bucket/prefix"
    ) as caught:
        address.data_place(text)
    assert WORD not in str(caught.value)
