"""Search in SQL: rows that join, one searcher a statement, errors in one line, and no way in for a predicate."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from builders import commit, neighbour_lake, new_lake, random_plate, wide

from warehouse.errors import LakeError, ProfileError, SearchError
from warehouse.lake import Lake
from warehouse.nearest import searcher, table_functions
from warehouse.profiles import IDS, LEVELS, predicate
from warehouse.query import sql

#: The same search in plain SQL, for any DuckDB client: similarities by DuckDB, filters and ties by hand.
PLAIN = """
SELECT hit.treatment AS query, other.treatment,
    list_cosine_similarity(hit.embedding::DOUBLE[], other.embedding::DOUBLE[])::FLOAT AS similarity,
    row_number() OVER (PARTITION BY hit.treatment ORDER BY similarity DESC, other.treatment) AS rank
FROM tiny.treatments AS hit, tiny.treatments AS other
WHERE hit.treatment <> other.treatment AND hit.compound <> other.compound
QUALIFY rank <= 3
ORDER BY query, rank
"""
SEARCHED = """
SELECT hit.treatment AS query, near.treatment, near.similarity, near.rank
FROM tiny.treatments AS hit, nearest(hit.treatment, 'tiny', k := 3, not_same_compound := true) AS near
ORDER BY query, rank
"""
WHOLE = {
    "nearest": "nearest('a@1uM', 'tiny')",
    "nearest_to_well": "nearest_to_well('s/b1/p1/A01', 'tiny')",
    "nearest_to_wells": "nearest_to_wells('compound = ''a''', 'tiny')",
    "nearest_to_vector": "nearest_to_vector([1, 0, 0], 'tiny')",
    "neighbours": "neighbours('tiny')",
    "similar_pairs": "similar_pairs('tiny')",
    "novelty": "novelty('tiny')",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with neighbour_lake(tmp_path_factory.mktemp("functions") / "lake") as lake:
        yield lake


@pytest.fixture(scope="module", params=["read-only", "as of"])
def lake(request, made):
    as_of = made.snapshot() if request.param == "as of" else None
    with Lake.open(made.path, read_only=True, as_of=as_of) as reader:
        yield reader


@pytest.fixture
def searchers(monkeypatch):
    """What searchers were made of."""
    seen = []
    original = searcher.Searcher.__init__

    def counted(self, lake, *given, **named):
        seen.append(given)
        original(self, lake, *given, **named)

    monkeypatch.setattr(searcher.Searcher, "__init__", counted)
    return seen


# ------------------------------------------------------------------------------------------ answers


def test_a_lateral_join_is_what_plain_sql_computes(lake):
    expected, found = sql(lake, PLAIN), sql(lake, SEARCHED)
    assert found.drop("similarity").rows() == expected.select("query", "treatment", "rank").rows()
    np.testing.assert_allclose(found["similarity"], expected["similarity"], atol=1e-6)
    assert found.height == 8 * 3


def test_neighbours_join_with_tables(lake):
    query = (
        "WITH near AS (FROM nearest('a@1uM', 'tiny', k := 2)) SELECT near.rank, wells.plate, wells.well "
        "FROM near JOIN tiny.well_profiles AS wells USING (treatment) ORDER BY 1"
    )
    assert sql(lake, query).rows() == [(1, "p1", "A02"), (2, "p1", "A03")]


def test_opposite_predicate_and_labels(lake):
    opposite = sql(lake, "FROM nearest('a@1uM', 'tiny', k := 2, opposite := true)")
    assert opposite["treatment"].to_list() == ["d@1uM", "e@1uM"]  # both at a right angle: by name
    chosen = sql(lake, "FROM nearest('a@1uM', 'tiny', predicate := 'list_contains(moa, ''B'')')")
    assert chosen["treatment"].to_list() == ["c@1uM", "d@1uM"]
    assert chosen["moa"].to_list() == [["B"], ["B"]]
    assert chosen["well_count"].to_list() == [1, 1]


def test_a_well_wells_and_a_vector_are_queries(lake):
    well = sql(lake, "FROM nearest_to_well('s/b1/p1/A03', 'tiny', k := 8)")
    vector = sql(lake, "FROM nearest_to_vector([0.9, 0.1, 0], 'tiny', k := 8)")
    known = sql(lake, "SELECT treatment, embedding FROM tiny.treatments")
    matrix = np.array(known["embedding"].to_list(), dtype=np.float64)
    similarity = matrix @ (0.9, 0.1, 0) / np.linalg.norm(matrix, axis=1) / np.hypot(0.9, 0.1)
    by_name = dict(zip(known["treatment"], similarity, strict=True))
    for found in (well, vector):
        expected = [by_name[name] for name in found["treatment"]]
        np.testing.assert_allclose(found["similarity"], expected, atol=1e-6)
        assert found["similarity"].is_sorted(descending=True)
    assert vector["treatment"].to_list()[0] == "b@1uM"
    # The mean of two wells of one treatment each is as near to both of them as their angle's half.
    wells = sql(lake, "FROM nearest_to_wells('compound = ''a''', 'tiny', k := 8)")
    middle = np.mean([[1, 0, 0], [1, 0.05, 0]], axis=0)
    expected = matrix @ middle / np.linalg.norm(matrix, axis=1) / np.linalg.norm(middle)
    by_name = dict(zip(known["treatment"], expected, strict=True))
    np.testing.assert_allclose(wells["similarity"], [by_name[name] for name in wells["treatment"]], atol=1e-6)


def test_graph_pairs_and_novelty_are_tables(lake):
    graph = sql(lake, "SELECT treatment AS query, neighbour_treatment, rank FROM neighbours('tiny', k := 3, "
                "not_same_compound := true) ORDER BY 1, 3")  # fmt: skip
    expected = sql(lake, PLAIN).select("query", "treatment", "rank")
    assert graph.rows() == expected.rows()
    pairs = sql(lake, "FROM similar_pairs('tiny', threshold := 0.95)")
    among = (
        "SELECT list_cosine_similarity(a.embedding::DOUBLE[], b.embedding::DOUBLE[]) AS similarity "
        "FROM tiny.treatments AS a, tiny.treatments AS b WHERE a.treatment < b.treatment AND similarity >= 0.95 "
        "ORDER BY 1 DESC"
    )
    np.testing.assert_allclose(pairs["similarity"], sql(lake, among)["similarity"], atol=1e-6)
    novel = sql(lake, "SELECT treatment, neighbour_treatment FROM novelty('tiny') ORDER BY 1")
    assert "f@1uM" in novel["treatment"].to_list()
    assert not set(novel["treatment"]) & {"a@1uM", "c@1uM"}
    labels = sql(lake, "SELECT neighbour_treatment, neighbour_moa, neighbour_target FROM novelty('tiny')")
    known = dict(sql(lake, "SELECT treatment, moa FROM tiny.treatments").iter_rows())
    assert [row[1] for row in labels.iter_rows()] == [known[row[0]] for row in labels.iter_rows()]
    assert labels["neighbour_target"].null_count() == len(labels)


def test_settings_may_come_from_columns_and_null_asks_nothing(lake):
    query = (
        "SELECT asked.name, count(near.rank) AS n FROM (VALUES ('a@1uM', 2), ('b@1uM', 5), (NULL, 3)) "
        "AS asked(name, k) "
        "LEFT JOIN LATERAL nearest(asked.name, 'tiny', k := asked.k) AS near ON true GROUP BY 1 ORDER BY 1"
    )
    assert sql(lake, query).rows() == [("a@1uM", 2), ("b@1uM", 5), (None, 0)]


def test_a_graph_of_all_neighbours_takes_no_more_memory_than_it_has_rows(made):
    tiny = searcher.Searcher(made, "tiny")
    whole = tiny.graph(10**15)
    assert whole.equals(tiny.graph(7))
    assert whole.height == 8 * 7
    for k in (0, 2.5, "3"):
        with pytest.raises(SearchError, match=f"k is {k}: ask for at least one neighbour"):
            tiny.graph(k)


@pytest.mark.parametrize("level", LEVELS)
def test_columns_are_the_same_at_every_level(made, level):
    if level in ("cell", "field"):  # this feature set begins with wells
        return
    graph = sql(made, f"SELECT * FROM neighbours('tiny', level := '{level}', k := 1)")
    assert graph.columns == list(table_functions.COLUMNS["neighbours"])
    assert graph.height == sql(made, f"FROM tiny.{LEVELS[level]}").height
    for name in ("treatment", "compound", "source", "batch", "plate", "well", "field", "cell"):
        missing = 0 if name in IDS[level] else graph.height
        assert graph[name].null_count() == missing
        assert graph[f"neighbour_{name}"].null_count() == missing


@pytest.mark.parametrize("function", WHOLE)
def test_a_function_can_be_described_and_explained_without_a_search(made, searchers, function):
    described = sql(made, f"DESCRIBE FROM {WHOLE[function]}")
    columns = table_functions.COLUMNS.get(function, table_functions.COLUMNS["nearest"])
    assert dict(described.select("column_name", "column_type").iter_rows()) == columns
    sql(made, f"EXPLAIN FROM {WHOLE[function]}")
    assert searchers == []


# ------------------------------------------------------------------------------------------ searchers


def test_a_statement_of_many_rows_is_searched_in_batches_by_one_searcher(made, searchers):
    names = sql(made, "SELECT treatment FROM tiny.treatments ORDER BY 1")["treatment"].to_list()
    query = (
        "SELECT number, near.treatment FROM (SELECT number, names[number % 8 + 1] AS name "
        "FROM range(5000) AS t(number), (SELECT list(treatment ORDER BY treatment) AS names FROM tiny.treatments)), "
        "nearest(name, 'tiny', k := 1) AS near ORDER BY number"
    )
    with Lake.open(made.path, read_only=True) as reader:
        found = sql(reader, query)
        first = {
            name: sql(reader, f"FROM nearest('{name}', 'tiny', k := 1)")["treatment"][0] for name in names
        }
    assert found["treatment"].to_list() == [first[names[number % 8]] for number in range(5000)]
    assert len(searchers) == 1


def test_a_search_is_never_older_than_the_lake(tmp_path, searchers):
    with new_lake(tmp_path / "lake") as lake, Lake.open(tmp_path / "lake", read_only=True) as reader:
        for seed in (1, 2):
            commit(lake, random_plate(("s", "b1", f"p{seed}"), seed), wide(4))
            before = reader.snapshot()
            for _ in range(2):
                counts = sql(reader, "FROM nearest('c0@1uM', 'wide', k := 1, level := 'consensus')")[
                    "well_count"
                ]
                assert len(counts) == 1
            # As many searchers as states of the lake that were asked.
            assert len(searchers) == seed
        wells = "FROM nearest('c0@1uM', 'wide', k := 9, predicate := 'well_count = 2')"
        assert sql(reader, wells).height == 5
        with Lake.open(tmp_path / "lake", as_of=before - 1) as past:
            assert sql(past, wells).height == 0


def test_frames_of_a_lake_know_the_functions_once_registered(made):
    with Lake.open(made.path, read_only=True) as reader:
        table_functions.register(reader)
        table_functions.register(reader)
        assert reader.frame("FROM nearest('a@1uM', 'tiny', k := 1)")["treatment"].item() == "a@3uM"
        with reader.reading():
            assert reader.frame("FROM nearest('a@1uM', 'tiny', k := 1)")["treatment"].item() == "a@3uM"


def test_functions_and_transactions(made):
    with Lake.open(made.path, read_only=True) as reader:
        near = "FROM nearest('a@1uM', 'tiny', k := 1)"
        with reader.reading():
            assert sql(reader, "FROM tiny.treatments").height == 8
            with pytest.raises(SearchError, match=r"does not see the functions of search: call .*register"):
                sql(reader, near)
        for _ in range(2):  # what is made inside goes with the end of a transaction, and is made again
            with reader.reading():
                assert sql(reader, near)["treatment"].item() == "a@3uM"
        assert sql(reader, near)["treatment"].item() == "a@3uM"


def test_what_was_registered_goes_with_the_lake(made):
    reader = Lake.open(made.path, read_only=True)
    assert sql(reader, "FROM nearest('a@1uM', 'tiny', k := 1)").height == 1
    held = weakref.ref(table_functions._OPEN[reader])
    reader.close()
    del reader
    gc.collect()
    assert held() is None


def test_a_team_lake_is_searched_at_any_moment(postgres, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    address = f"postgres:{postgres.new_database()}"
    query = "SELECT near.* FROM wide.treatments AS hit, nearest(hit.treatment, 'wide', k := 2) AS near ORDER BY ALL"
    with Lake.create(address, data=tmp_path / "data") as lake:
        commit(lake, random_plate(("s", "b1", "p1"), 1), wide(4))
        then, first = sql(lake, query), lake.snapshot()
        commit(lake, random_plate(("s", "b1", "p2"), 2), wide(4))
        now = sql(lake, query)
        assert not now.equals(then)
        for as_of, expected in ((None, now), (first, then)):
            with Lake.open(address, read_only=True, as_of=as_of) as reader:
                assert sql(reader, query).equals(expected)


def test_queries_that_do_not_search_load_nothing_of_it(made):
    script = (
        "import sys; from warehouse.lake import Lake; from warehouse.query import sql\n"
        f"with Lake.open({str(made.path)!r}, read_only=True) as lake:\n"
        "    sql(lake, \"SELECT 'nearest(' AS nearest FROM main.plates\")\n"
        "print([name for name in sys.modules if name.startswith(('warehouse.nearest', 'warehouse.search', 'faiss'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("FROM nearest('a@1u', 'tiny')", "sql: unknown treatment 'a@1u'. Did you mean 'a@1uM'"),
        ("FROM nearest('a@1uM', 'tinny')", "sql: unknown feature set 'tinny'. Did you mean 'tiny'"),
        ("FROM nearest('a@1uM', 'tiny', recipe := 'center')", "sql: .*has no recipe 'center'"),
        ("FROM nearest('a@1uM', 'tiny', level := 'plates')", "sql: unknown level to search 'plates'"),
        ("FROM nearest('a@1uM', 'tiny', k := 0)", "sql: k is 0"),
        ("FROM nearest('a@1uM', 'tiny', k := NULL)", r"sql: nearest\(\): k is NULL: give a value, or leave it out"),
        ("FROM nearest('a@1uM', NULL)", r"sql: nearest\(\): feature_set is NULL"),
        ("FROM nearest('a@1uM', 'tiny', predicate := 'dose > 1')", "sql: --where 'dose > 1': .*dose"),
        ("FROM nearest('a@1uM')", r"sql: .*Candidate macros: nearest\(query, feature_set, recipe := 'none'"),
        ("FROM nearest('a@1uM', 'tiny', n := 3)", r"sql: .*nearest\(query, feature_set, recipe := 'none'"),
        ("FROM nearest('a@1uM', 'tiny', where := 'x')", r'sql: .*near "where".*predicate :='),
        ("FROM nearest_to_vector([1, 2], 'tiny')", "sql: .*2"),
        ("FROM nearest_to_well('s/b1/p9/A01', 'tiny')", "sql: .*'s/b1/p9/A01'"),
        ("FROM similar_pairs('tiny', threshold := 7)", "sql: .*7"),
        ("FROM novelty('tiny', labels := 'mao')", "sql: .*'mao'. Did you mean 'moa'"),
        ("SELECT hit.treatment FROM tiny.treatments AS hit, nearest(hit.compound, 'tiny')", "sql: unknown treatment '"),
        ("FROM nearest('a@1uM', 'tiny', device := 'tpu')", "sql: .*'tpu'"),
    ],
)  # fmt: skip
def test_faults_are_one_line(made, query, message):
    with pytest.raises(LakeError, match=message) as raised:
        sql(made, query)
    assert "\n" not in str(raised.value)
    assert "Python exception" not in str(raised.value)


def test_a_fault_of_ours_is_seen_whole(made, monkeypatch):
    def broken(*_, **__):
        return {}["a fault of ours"]

    monkeypatch.setattr(searcher.Searcher, "nearest_many", broken)
    with pytest.raises(KeyError, match="a fault of ours"):
        sql(made, "FROM nearest('a@1uM', 'tiny')")
    # It is told once: what fails next is its own fault.
    with pytest.raises(LakeError, match="sql: Conversion Error"):
        sql(made, "SELECT 'x'::INTEGER FROM nearest(NULL, 'tiny') RIGHT JOIN range(1) ON true")


@pytest.mark.parametrize("call", [*WHOLE.values(), *(f"_{call}" for call in WHOLE.values())])
def test_a_predicate_cannot_search(made, call):
    text = f"EXISTS (FROM {call})"
    with pytest.raises(
        ProfileError, match=r"_?\w+\(\) is not allowed here: give one predicate that only reads"
    ):
        predicate(text)
    quoted = text.replace("'", "''")
    with pytest.raises(LakeError, match=r"sql: --where .* is not allowed here"):
        sql(made, f"FROM nearest('a@1uM', 'tiny', predicate := '{quoted}')")


def test_names_are_those_that_the_check_of_queries_knows(made):
    from warehouse.query import _SEARCHES

    with Lake.open(made.path, read_only=True) as reader:
        before = set(reader.frame("SELECT function_name FROM duckdb_functions()")["function_name"])
        table_functions.register(reader)
        after = set(reader.frame("SELECT function_name FROM duckdb_functions()")["function_name"])
    added = after - before
    assert set(WHOLE) <= added
    assert [name for name in added if not _SEARCHES.fullmatch(name)] == []
    assert [name for name in before if _SEARCHES.fullmatch(name)] == []
