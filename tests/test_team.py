"""Team lakes: Postgres and S3 by the address alone, several processes at once, the past, and no secret anywhere."""

import json
import os
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from builders import commit, random_plate, wide
from typer.testing import CliRunner
from writers import SPAWN, big_plate, night, run_together

import cli
from benchmarks.servers import GUARDED_PASSWORD, GUARDED_USER, KEY_ID, SECRET
from warehouse import query
from warehouse.errors import LakeError, LakeUnavailableError
from warehouse.lake import Lake, now
from warehouse.runs import Run
from warehouse.status import faults

IS_LONG = os.environ.get("WELLHOUSE_LONG") == "1"


@pytest.fixture
def place(postgres, s3):
    """A new database and a new prefix of a bucket."""
    return f"postgres:{postgres.new_database()}", f"s3://{s3.new_bucket()}/lakes/one/"


@pytest.fixture(params=["sqlite", "postgres"])
def any_lake(request, tmp_path):
    """The address of a new lake of either kind, with the feature set `wide` of 64 dimensions."""
    if request.param == "sqlite":
        address, data = str(tmp_path / "lake"), None
    else:
        address, data = request.getfixturevalue("place")
    with Lake.create(address, data=data) as lake:
        lake.transaction(lambda _: _ensure_wide(lake))
    return address


def _ensure_wide(lake):
    from warehouse import feature_sets

    feature_sets.ensure(lake, wide(64), Run("test", {}))


# --- made and opened


def test_a_team_lake_is_opened_by_its_address_alone(place, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    address, data = place
    with Lake.create(address, data=data) as lake:
        assert (lake.address, lake.is_team, lake.read_only) == (address, True, False)
        assert commit(lake, random_plate(("s", "b", "p1"), 1)) == "added"
        commit(lake, big_plate("p2"), wide(64))
        with pytest.raises(LakeError, match="is a team lake, which has no folder of its own"):
            _ = lake.path
        folder = lake.folder
    assert folder.parent == tmp_path / "wellhouse" / "lakes"
    assert uuid.UUID(folder.name)
    assert not folder.exists()
    bucket, _, prefix = data.removeprefix("s3://").partition("/")
    assert list((s3.folder / bucket / prefix).rglob("*.parquet"))
    host = address.split("host=")[1].split()[0]
    url = f"postgresql://postgres@/{address.split('dbname=')[1]}?host={host}"
    for other in (address, url, f"postgres:{url}"):
        with Lake.open(other, read_only=True) as lake:
            assert lake.value("SELECT count(*) FROM tiny.wells") == 10
            assert lake.value("SELECT count(*) FROM wide.wells WHERE len(embedding) = 64") == 384
            assert lake.folder == folder
            with pytest.raises(LakeError, match="is open read-only"):
                commit(lake, random_plate(("s", "b", "p3"), 1))
    with Lake.create(address) as lake:
        assert commit(lake, random_plate(("s", "b", "p1"), 1)) == "unchanged"
    with pytest.raises(LakeError, match=rf"has its data at {data}, not at s3://elsewhere/: leave --data out"):
        Lake.create(address, data="s3://elsewhere")


def test_data_in_a_shared_folder(postgres, tmp_path):
    address = f"postgres:{postgres.new_database()}"
    with Lake.create(address, data=tmp_path / "shared" / "data") as lake:
        commit(lake, big_plate("p1"), wide(64))
    assert list((tmp_path / "shared" / "data").rglob("*.parquet"))
    with Lake.open(address) as lake:
        assert lake.value("SELECT count(*) FROM wide.wells") == 384


def test_what_is_no_lake_is_refused_with_what_to_do(postgres, s3, tmp_path):
    parameters = postgres.new_database()
    address = f"postgres:{parameters}"
    for make in (Lake.open, Lake.create, lambda where: Lake.open(where, read_only=True)):
        with pytest.raises(
            LakeError, match=r"is not a lake \(the database holds none\): .*wellhouse init .*--data"
        ):
            make(address)
    postgres.sql("CREATE TABLE orders (i int); CREATE TABLE customers (i int)", parameters)
    with pytest.raises(
        LakeError, match=r"2 tables that are no lake's \(public.customers, public.orders\): make a"
    ):
        Lake.create(address, data=tmp_path / "data")
    postgres.sql("DROP TABLE orders, customers", parameters)
    mine = tmp_path / "data" / "thesis.docx"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(
        LakeError, match=rf"data/ is not empty \(1 files, {mine} the first\): name a new place"
    ):
        Lake.create(address, data=mine.parent)
    bucket = s3.new_bucket()
    (s3.folder / bucket / "x").mkdir()
    (s3.folder / bucket / "x" / "y.txt").write_text("theirs")
    with pytest.raises(
        LakeError, match=rf"s3://{bucket}/x/ is not empty \(1 files, s3://{bucket}/x/y.txt the first"
    ):
        Lake.create(address, data=f"s3://{bucket}/x")
    with pytest.raises(LakeUnavailableError, match=r"S3 refuses, or does not answer .*404 Not Found"):
        Lake.create(address, data="s3://no-such-bucket/x")
    assert "ducklake" not in postgres.dump(parameters)
    with pytest.raises(LakeError, match=r"Postgres has no such database .*createdb"):
        Lake.open(address.replace("dbname=lake", "dbname=nolake"))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(LakeError, match=r"cannot make .*file/data/: Not a directory"):
        Lake.create(address, data=file / "data")


def test_init_and_sql_on_the_command_line(place, tmp_path, monkeypatch):
    address, data = place
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("WELLHOUSE_LAKE", address)

    def wellhouse(*arguments):
        return CliRunner().invoke(cli.app, arguments)

    done = wellhouse("init", address, "--data", data)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == f"lake      {address}"
    done = wellhouse("sql", "SELECT count(*) AS n FROM main.plates", "--json")
    assert json.loads(done.stdout) == [{"n": 0}]
    for text in (
        "FROM duckdb_secrets()",
        "FROM duckdb_databases()",
        "FROM duckdb_settings()",
        "FROM ducklake_settings('lake')",
    ):
        done = wellhouse("sql", text, "--json")
        assert SECRET not in done.output + str(done.exception)
    done = wellhouse("init", address.replace("user=postgres", f"user=guarded password={GUARDED_PASSWORD}"))
    assert done.exit_code == 1
    assert "holds a password" in str(done.exception)
    assert GUARDED_PASSWORD not in done.output + str(done.exception)


def two_make(address, data, barrier, answers):
    try:
        barrier.wait(60)
        Lake.create(address, data=data).close()
        answers.put("made")
    except BaseException as error:
        answers.put(repr(error))


def test_two_processes_make_one_team_lake(postgres, tmp_path):
    address = f"postgres:{postgres.new_database()}"
    barrier, answers = SPAWN.Barrier(2), SPAWN.Queue()
    data = str(tmp_path / "data")
    both = [SPAWN.Process(target=two_make, args=(address, data, barrier, answers)) for _ in range(2)]
    for process in both:
        process.start()
    assert [answers.get(timeout=60) for _ in both] == ["made", "made"]
    for process in both:
        process.join(60)
    with Lake.open(address) as lake:
        versions = lake.frame("SELECT version FROM main.schema_version ORDER BY 1")["version"].to_list()
        assert versions == sorted(set(versions))
        assert lake.frame("SELECT writes FROM main.write_gate")["writes"].to_list() == [0]


# --- secrets


def test_passwords_and_keys_come_from_the_environment_and_stay_there(place, postgres, s3, monkeypatch):
    address, data = place
    address = address.replace("user=postgres", f"user={GUARDED_USER}")
    for password, message in (
        (None, "no password supplied"),
        ("wrong-word", "password authentication failed"),
    ):
        monkeypatch.delenv("PGPASSWORD", raising=False)
        if password:
            monkeypatch.setenv("PGPASSWORD", password)
        with pytest.raises(
            LakeUnavailableError, match=f"Postgres refuses the login .*{message}.*PGPASSWORD"
        ) as caught:
            Lake.open(address)
        assert "wrong-word" not in str(caught.value)
    monkeypatch.setenv("PGPASSWORD", GUARDED_PASSWORD)
    with Lake.create(address, data=data) as lake:
        commit(lake, random_plate(("s", "b", "p1"), 1), run=Run("test", {"lake": lake.address}))
        commit(lake, big_plate("p2"), wide(64))
        shown = ""
        for text in (
            "FROM duckdb_secrets()",
            "FROM duckdb_secrets(redact=false)",
            "FROM duckdb_databases()",
            "FROM duckdb_settings()",
            "FROM which_secret('s3://x', 's3')",
            "FROM ducklake_settings('lake')",
            "SELECT getenv('AWS_SECRET_ACCESS_KEY'), getenv('PGPASSWORD')",
            "SELECT current_setting('s3_secret_access_key')",
        ):
            with suppress(LakeError):
                shown += str(query.sql(lake, text).to_dicts())
    held = postgres.dump(address.removeprefix("postgres:").replace(GUARDED_USER, "postgres"))
    bucket = s3.folder / data.removeprefix("s3://").split("/")[0]
    held += "".join(path.read_bytes().decode("latin1") for path in bucket.rglob("*") if path.is_file())
    assert "plate_loads" in held
    for word in (SECRET, GUARDED_PASSWORD):
        assert word not in shown
        assert word not in held
    assert KEY_ID not in held


@pytest.mark.parametrize(("name", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong-" + "x" * 20)])
def test_wrong_keys_are_said_and_not_repeated(place, s3, monkeypatch, name, value):
    address, data = place
    Lake.create(address, data=data).close()
    monkeypatch.setenv(name, value)
    with (
        Lake.open(address) as lake,
        pytest.raises(LakeUnavailableError, match=r"S3 refuses.*403.*nothing was written: check") as caught,
    ):
        commit(lake, big_plate("p1"), wide(64))
    assert value not in str(caught.value)


# --- the past


def test_as_of_a_snapshot_and_a_time(any_lake):
    moments, counts = [], []
    with Lake.open(any_lake) as lake:
        for number in range(3):
            commit(lake, random_plate(("s", "b", f"p{number}"), number))
            moments.append((lake.snapshot(), now()))
            counts.append(lake.value("SELECT count(*) FROM tiny.wells"))
        commit(lake, random_plate(("s", "b", "p0"), 9))
        newest = lake.snapshot()
    for (snapshot, moment), count in zip(moments, counts, strict=True):
        aware = moment.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=5)))
        for as_of in (snapshot, moment, aware):
            with Lake.open(any_lake, as_of=as_of) as lake:
                assert (lake.snapshot(), lake.read_only, lake.as_of) == (snapshot, True, as_of)
                assert lake.value("SELECT count(*) FROM tiny.wells") == count
                assert lake.value("SELECT sum(well_count) FROM tiny.treatments") == count
                with pytest.raises(LakeError, match="open read-only"):
                    commit(lake, random_plate(("s", "b", "p9"), 1))
    with Lake.open(any_lake, as_of=now() + timedelta(days=1)) as lake:
        assert lake.snapshot() == newest
    for wrong in (newest + 1, -1):
        with pytest.raises(LakeError, match=rf"has no snapshot {wrong} \(it holds 0 to {newest}\): "):
            Lake.open(any_lake, as_of=wrong)
    with pytest.raises(
        LakeError, match=r"has no snapshot as of 2001-02-03 04:05:06 UTC: the first that it holds, 0,"
    ):
        Lake.open(any_lake, as_of=datetime(2001, 2, 3, 4, 5, 6))
    with pytest.raises(LakeError, match="at snapshot 0 the lake was not made yet"):
        Lake.open(any_lake, as_of=0)


def test_as_of_an_expired_snapshot(any_lake):
    moments = []
    with Lake.open(any_lake) as lake:
        for number in range(4):
            commit(lake, random_plate(("s", "b", f"p{number}"), number))
            moments.append((lake.snapshot(), now()))
        gone = [snapshot for snapshot, _ in moments[1:3]]
        expired = f"SELECT snapshot_id FROM ducklake_expire_snapshots('lake', versions => {gone})"
        assert sorted(lake.frame(expired)["snapshot_id"]) == gone
    for snapshot, moment in moments[1:3]:
        with pytest.raises(LakeError, match=rf"has no snapshot {snapshot} \(it was expired\)"):
            Lake.open(any_lake, as_of=snapshot)
        # The lake as it was then is not known: the snapshot before is another lake.
        with pytest.raises(LakeError, match=r"has no snapshot as of .*others may have been expired"):
            Lake.open(any_lake, as_of=moment)
    with Lake.open(any_lake, as_of=moments[0][0]) as lake:
        assert lake.value("SELECT count(*) FROM tiny.wells") == 10


# --- several processes at once


@pytest.mark.parametrize("contents", [["same", "same"], ["one", "other"]])
def test_the_same_plate_by_two_processes_is_in_once(any_lake, contents):
    names = [f"p{number}" for number in range(4)]
    done = run_together([names, names], any_lake, contents=contents, is_in_step=True)
    assert done.errors == []
    second = "unchanged" if contents[0] == contents[1] else "replaced"
    assert sorted(done.outcomes) == sorted(["added", second] * 4)
    with Lake.open(any_lake, read_only=True) as lake:
        assert faults(lake) == {}
        for table in ("main.plates", "main.plate_loads"):
            assert lake.frame(f"SELECT plate FROM {table} ORDER BY plate")["plate"].to_list() == names
        for table in ("main.wells", "wide.wells"):
            row = lake.frame(f"SELECT count(*), count(DISTINCT (plate, well)) FROM {table}").row(0)
            assert row == (384 * 4, 384 * 4)


@pytest.mark.slow
def test_writers_beside_readers_and_an_open_transaction(any_lake):
    """4 × 25 plates with 4 readers where WELLHOUSE_LONG=1; an analyst's transaction is open all the while."""
    writers, plates, readers = (4, 25, 4) if IS_LONG else (3, 5, 2)
    with Lake.open(any_lake, read_only=True) as analyst:
        with analyst.reading():
            before = analyst.value("SELECT count(*) FROM wide.wells")
            done = night(any_lake, writers, plates, readers)
            assert analyst.value("SELECT count(*) FROM wide.wells") == before == 0
        assert done.errors == []
        assert done.torn == []
        assert done.outcomes == ["added"] * writers * plates
        assert done.looks >= readers
        assert analyst.value("SELECT count(*) FROM main.plate_loads") == writers * plates
        assert analyst.value("SELECT count(*) FROM wide.wells") == writers * plates * 384
        assert faults(analyst) == {}
    print(f"{any_lake[:8]}: {writers} × {plates} plates, {done.looks} looks, {done.seconds:.1f} s")
