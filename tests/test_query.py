"""SQL for people: what reads is answered, everything else is refused, on any lake."""

import pytest
from builders import small_lake, state

from warehouse.errors import LakeError
from warehouse.lake import Lake
from warehouse.query import sql


@pytest.fixture(scope="module")
def writable(tmp_path_factory):
    with small_lake(tmp_path_factory.mktemp("query") / "lake") as made:
        yield made


@pytest.fixture(params=["writable", "read-only"])
def lake(request, writable):
    if request.param == "writable":
        yield writable
    else:
        with Lake.open(writable.path, read_only=True) as reader:
            yield reader


def test_queries_are_answered(lake):
    cases = {
        "SELECT treatment, well_count FROM tiny.treatments ORDER BY 1 LIMIT 1": [("DMSO", 5)],
        "select 1 as a;": [(1,)],
        "FROM main.sources ORDER BY source": [("s1", 2, 3), ("s2", 1, 1)],
        "WITH x AS (SELECT count(*) AS n FROM main.wells) FROM x": [(14,)],
        "VALUES (1, 'a')": [(1, "a")],
        "-- a comment\nSELECT 'a;b' AS text": [("a;b",)],
        "SELECT list_cosine_similarity(embedding, [1, 0, 0]) AS s FROM tiny.treatments WHERE compound = 'nocodazole'": [
            (0.0,)
        ],
        "SELECT count(*) AS n FROM tiny.wells AT (VERSION => 2)": [(6,)],
        "SELECT max(snapshot_id) > 3 AS later FROM ducklake_snapshots('lake')": [(True,)],
        "SELECT count(*) AS n FROM range(3)": [(3,)],
    }
    for query, expected in cases.items():
        assert sql(lake, query).rows() == expected


def test_descriptions_are_answered(lake):
    described = sql(lake, "DESCRIBE tiny.treatments")
    assert described["column_name"].to_list()[:2] == ["treatment", "compound"]
    assert described["column_type"].to_list()[-1] == "FLOAT[]"
    assert sql(lake, "SUMMARIZE main.plates").filter(column_name="plate")["max"].to_list() == ["p4"]
    assert "plate_balance" in sql(lake, "SHOW TABLES")["name"].to_list()
    assert "tiny" in sql(lake, "SHOW ALL TABLES")["schema"].to_list()
    assert "plates" in sql(lake, "EXPLAIN SELECT * FROM main.plates")["explain_value"][0]
    assert "Total Time" in sql(lake, "explain analyze SELECT * FROM main.plates")["explain_value"][0]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("COPY main.plates TO '{out}'", "COPY is not allowed here, only queries"),
        ("ATTACH '{out}' AS other", "ATTACH is not allowed here"),
        ("INSERT INTO main.write_gate VALUES (7)", "INSERT is not allowed here"),
        ("UPDATE main.plates SET batch = 'x'", "UPDATE is not allowed here"),
        ("DELETE FROM main.plates", "DELETE is not allowed here"),
        ("DROP TABLE main.plates", "DROP is not allowed here"),
        ("CREATE TABLE main.mine AS SELECT 1", "CREATE is not allowed here"),
        ("SET threads = 1", "SET is not allowed here"),
        ("USE memory", "SET is not allowed here"),
        ("BEGIN TRANSACTION", "TRANSACTION is not allowed here"),
        ("CALL ducklake_expire_snapshots('lake', older_than => now())", "CALL is not allowed here"),
        ("PRAGMA database_list", "'PRAGMA' is not allowed here"),
        ("INSTALL httpfs", "LOAD is not allowed here"),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'", "'COPY' is not allowed here"),
        ("EXPLAIN ANALYZE DELETE FROM main.plates", "'DELETE' is not allowed here"),
        ("EXPLAIN (ANALYZE) DELETE FROM main.plates", "'DELETE' is not allowed here"),
        ("/* */ EXPLAIN ANALYZE DELETE FROM main.plates", "is not allowed here"),
        ("SELECT 1; SELECT 2", "2 statements were given: give one query"),
        ("SELECT 1; DROP TABLE main.plates", "2 statements were given"),
        ("", "0 statements were given: give one query"),
        ("-- nothing", "0 statements were given"),
        ("SELEC 1", 'Parser Error: syntax error at or near "SELEC"'),
        ("SELECT plat FROM main.plates", 'Binder Error: Referenced column "plat" not found .* "plate"'),
        ("FROM main.plate", "Catalog Error: Table with name plate does not exist! Did you mean .*plates"),
        ("SELECT 'a'::INTEGER", "Conversion Error: Could not convert string 'a' to INT32"),
        ("FROM ducklake_expire_snapshots('lake', older_than => now())", r"expire_snapshots\(\) is not allowed"),
        ("FROM ducklake_cleanup_old_files('lake', cleanup_all => true)", r"old_files\(\) is not allowed"),
        ("FROM ducklake_delete_orphaned_files('lake', cleanup_all => true)", r"orphaned_files\(\) is not allowed"),
        ("FROM ducklake_merge_adjacent_files('lake')", r"ducklake_merge_adjacent_files\(\) is not allowed"),
        ("FROM ducklake_set_option('lake', 'parquet_compression', 'gzip')", r"ducklake_set_option\(\) is not allowed"),
        ("SUMMARIZE FROM system.main.\"CheckPoint\"()", r"checkpoint\(\) is not allowed"),
        ("FROM query('FROM check' || 'point()')", r"query\(\) is not allowed"),
        ("FROM sqlite_query('__ducklake_metadata_lake', 'DELETE FROM x RETURNING 1')", r"sqlite_query\(\)"),
    ],
)  # fmt: skip
def test_everything_else_is_refused_in_one_line(lake, tmp_path, query, message):
    before, snapshots = state(lake), lake.frame("FROM ducklake_snapshots('lake')").height
    options = lake.frame("FROM ducklake_options('lake')").rows()
    with pytest.raises(LakeError, match=f"^sql: .*{message}") as raised:
        sql(lake, query.format(out=tmp_path / "out"))
    assert "\n" not in str(raised.value)
    assert state(lake) == before
    assert lake.frame("FROM ducklake_snapshots('lake')").height == snapshots
    assert lake.frame("FROM ducklake_options('lake')").rows() == options
    assert list(tmp_path.iterdir()) == []
    assert sql(lake, "SELECT count(*) FROM main.plates").item() == 4
