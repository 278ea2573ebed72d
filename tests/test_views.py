"""Every view of sql/: golden rows worked by hand, the grain, the header; many and few dimensions."""

import re

import duckdb
import numpy as np
import polars as pl
import pytest
from builders import commit, new_lake, plate, random_plate, small_lake, wide

from warehouse import feature_sets, resources
from warehouse.lake import Lake
from warehouse.sqltext import expand

FILES = [path for folder in ("main", "feature_set", "checks") for path in resources.files("sql", folder)]
VIEWS = [path for folder in ("main", "feature_set") for path in resources.files("sql", folder)]
#: Other texts of the view `consensus`, for other operators.
CONSENSUS = resources.files("sql", "consensus")


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    with small_lake(tmp_path_factory.mktemp("views") / "lake") as made:
        yield made


def rows(lake, query):
    return lake.frame(query).rows()


# --- golden rows, from the wells in tests/builders.py


def test_sources_and_batches(lake):
    assert rows(lake, "FROM main.sources ORDER BY source") == [("s1", 2, 3), ("s2", 1, 1)]
    assert rows(lake, "FROM main.batches ORDER BY ALL") == [("s1", "b1", 2), ("s1", "b2", 1), ("s2", "b1", 1)]


def test_treatments_of_all_wells(lake):
    """Wells with and without data; the empty well belongs to none."""
    assert rows(lake, "FROM main.treatments ORDER BY treatment") == [
        ("DMSO", "DMSO", None, None, "negative", 5),
        ("aspirin@1uM", "aspirin", 1.0, "uM", "none", 1),
        ("nocodazole@1uM", "nocodazole", 1.0, "uM", "mixed", 2),
        ("taxol@0.3uM", "taxol", 0.3, "uM", "none", 4),
        ("taxol@3uM", "taxol", 3.0, "uM", "none", 1),
    ]


def test_labels_hold_at_all_concentrations_or_at_one(lake):
    assert rows(lake, "FROM main.treatment_labels ORDER BY ALL") == [
        ("nocodazole@1uM", "moa", "Microtubule destabilizers"),
        ("taxol@0.3uM", "moa", "Microtubule stabilizers"),
        ("taxol@0.3uM", "pathway", "cytoskeleton"),
        ("taxol@0.3uM", "target", "TUBA1A"),
        ("taxol@0.3uM", "target", "TUBB"),
        ("taxol@3uM", "moa", "Actin disruptors"),
        ("taxol@3uM", "moa", "Microtubule stabilizers"),
        ("taxol@3uM", "target", "TUBA1A"),
        ("taxol@3uM", "target", "TUBB"),
    ]
    assert rows(lake, "FROM main.treatment_annotations ORDER BY treatment") == [
        ("DMSO", None, None, None, None),
        ("aspirin@1uM", None, None, None, None),
        ("nocodazole@1uM", ["Microtubule destabilizers"], None, None, None),
        ("taxol@0.3uM", ["Microtubule stabilizers"], ["TUBA1A", "TUBB"], ["cytoskeleton"], None),
        ("taxol@3uM", ["Actin disruptors", "Microtubule stabilizers"], ["TUBA1A", "TUBB"], None, None),
    ]


def test_plate_balance(lake):
    query = "SELECT plate, wells_in_layout, wells_in, wells_without_data, wells_without_layout, is_balanced"
    assert rows(lake, f"{query} FROM main.plate_balance WHERE plate < 'p3' ORDER BY plate") == [
        ("p1", 6, 6, 1, 1, True),
        ("p2", 2, 2, 0, 0, True),
    ]


def test_well_profiles_keep_wells_without_layout(lake):
    query = "SELECT well, treatment, compound, concentration, unit, control_type, embedding FROM tiny.well_profiles"
    assert rows(lake, f"{query} WHERE plate = 'p1' ORDER BY well") == [
        ("A01", "DMSO", "DMSO", None, None, "negative", [0.0, 0.0, 2.0]),
        ("A02", "DMSO", "DMSO", None, None, "negative", [0.0, 2.0, 0.0]),
        ("A03", "taxol@0.3uM", "taxol", 0.3, "uM", "none", [1.0, 2.0, 3.0]),
        ("A04", "taxol@3uM", "taxol", 3.0, "uM", "none", [3.0, 4.0, 5.0]),
        ("A05", None, None, None, None, "none", [9.0, 9.0, 9.0]),
        ("A06", None, None, None, None, None, [7.0, 7.0, 7.0]),
    ]
    assert rows(lake, "SELECT embedding FROM tiny.well_profiles WHERE plate = 'p2' AND well = 'A03'") == [
        ([3.0, None, 5.0],)
    ]


LEVEL = "treatment, control_type, well_count, plate_count, batch_count, source_count, batches"


def vectors(lake, query):
    """The embeddings of a query, as float32 numbers: means of thirds and the like are rounded to them."""
    return [
        [None if x is None else pytest.approx(x, rel=1e-6) for x in vector] for (vector,) in rows(lake, query)
    ]


def test_treatments_are_means_over_wells(lake):
    """Taxol: (1+3+5+11)/4, (2+6)/2 as two wells have no second element, (3+5+7+13)/4."""
    assert rows(lake, f"SELECT {LEVEL} FROM tiny.treatments ORDER BY treatment") == [
        ("DMSO", "negative", 5, 4, 3, 2, ["s1/b1", "s1/b2", "s2/b1"]),
        ("nocodazole@1uM", "mixed", 2, 2, 2, 2, ["s1/b2", "s2/b1"]),
        ("taxol@0.3uM", "none", 4, 4, 3, 2, ["s1/b1", "s1/b2", "s2/b1"]),
        ("taxol@3uM", "none", 1, 1, 1, 1, ["s1/b1"]),
    ]
    assert vectors(lake, "SELECT embedding FROM tiny.treatments ORDER BY treatment") == [
        [7 / 5, 9 / 5, 9 / 5],
        [0.0, 4.0, 0.0],
        [5.0, 4.0, 7.0],
        [3.0, 4.0, 5.0],
    ]
    labels = "SELECT compound, concentration, unit, moa, target, pathway, gene_family FROM tiny.treatments"
    assert rows(lake, f"{labels} WHERE treatment = 'taxol@3uM'") == [
        ("taxol", 3.0, "uM", ["Actin disruptors", "Microtubule stabilizers"], ["TUBA1A", "TUBB"], None, None)
    ]


def test_what_stands_beside_a_profile(lake):
    beside = "well_count, control_count, plate_count, plates, sources, positions FROM tiny"
    assert rows(
        lake, f"SELECT {beside}.treatments WHERE compound IN ('DMSO', 'nocodazole') ORDER BY compound"
    ) == [
        (5, 5, 4, ["s1/b1/p1", "s1/b1/p2", "s1/b2/p3", "s2/b1/p4"], ["s1", "s2"], ["A01", "A02"]),
        (2, 0, 2, ["s1/b2/p3", "s2/b1/p4"], ["s1", "s2"], ["A02"]),
    ]
    only = "WHERE treatment = 'taxol@0.3uM' AND source = 's1'"
    assert rows(lake, f"SELECT {beside}.sources {only}") == [
        (3, 0, 3, ["s1/b1/p1", "s1/b1/p2", "s1/b2/p3"], ["s1"], ["A03"])
    ]
    assert rows(lake, f"SELECT {beside}.consensus WHERE treatment = 'taxol@3uM'") == [
        (1, 0, 1, ["s1/b1/p1"], ["s1"], ["A04"])
    ]


def test_a_lake_of_before_positions_gets_them(tmp_path):
    with small_lake(tmp_path / "lake") as older:

        def back(connection):
            connection.execute("DELETE FROM main.schema_version WHERE version >= 6")
            connection.execute("CREATE OR REPLACE VIEW tiny.compounds AS SELECT 1 AS compound")
            for column in ("code_version", "baselines", "is_above"):  # of version 7
                connection.execute(f"ALTER TABLE main.evaluations DROP COLUMN {column}")

        older.transaction(back)
    with Lake.open(tmp_path / "lake") as newer:
        assert rows(newer, "SELECT compound, positions FROM tiny.compounds ORDER BY compound") == [
            ("DMSO", ["A01", "A02"]), ("nocodazole", ["A02"]), ("taxol", ["A03", "A04"]),
        ]  # fmt: skip
        assert rows(newer, "SELECT code_version, baselines, is_above FROM main.evaluations") == []


def test_compounds_are_means_over_wells_of_every_concentration(lake):
    """Taxol: (1+3+3+5+11)/5, (2+4+6)/3, (3+5+5+7+13)/5; aspirin has no well with data."""
    facts = "compound, treatments, control_type, well_count, batches, moa, target, pathway"
    assert rows(lake, f"SELECT {facts} FROM tiny.compounds ORDER BY compound") == [
        ("DMSO", ["DMSO"], "negative", 5, ["s1/b1", "s1/b2", "s2/b1"], None, None, None),
        (
            "nocodazole", ["nocodazole@1uM"], "mixed", 2, ["s1/b2", "s2/b1"],
            ["Microtubule destabilizers"], None, None,
        ),
        (
            "taxol", ["taxol@0.3uM", "taxol@3uM"], "none", 5, ["s1/b1", "s1/b2", "s2/b1"],
            ["Actin disruptors", "Microtubule stabilizers"], ["TUBA1A", "TUBB"], ["cytoskeleton"],
        ),
    ]  # fmt: skip
    assert vectors(lake, "SELECT embedding FROM tiny.compounds WHERE compound = 'taxol'") == [[4.6, 4.0, 6.6]]


def test_batches_and_sources_are_means_within(lake):
    only = "WHERE treatment = 'taxol@0.3uM' ORDER BY source, batch"
    assert rows(
        lake, f"SELECT source, batch, well_count, plate_count, embedding FROM tiny.batches {only}"
    ) == [
        ("s1", "b1", 2, 2, [2.0, 2.0, 4.0]),
        ("s1", "b2", 1, 1, [5.0, 6.0, 7.0]),
        ("s2", "b1", 1, 1, [11.0, None, 13.0]),
    ]
    only = "WHERE treatment IN ('taxol@0.3uM', 'DMSO') ORDER BY treatment, source"
    assert rows(
        lake, f"SELECT source, well_count, batch_count, batches, embedding FROM tiny.sources {only}"
    ) == [
        ("s1", 4, 2, ["s1/b1", "s1/b2"], [0.75, 1.25, 1.25]),
        ("s2", 1, 1, ["s2/b1"], [4.0, 4.0, 4.0]),
        ("s1", 3, 2, ["s1/b1", "s1/b2"], [3.0, 4.0, 5.0]),
        ("s2", 1, 1, ["s2/b1"], [11.0, None, 13.0]),
    ]


def test_consensus_counts_every_source_the_same(lake):
    """Treatments count wells: taxol is 5, 4, 7 there, and (3+11)/2, 4, (5+13)/2 here."""
    assert rows(lake, f"SELECT {LEVEL} FROM tiny.consensus ORDER BY treatment") == [
        ("DMSO", "negative", 5, 4, 3, 2, ["s1/b1", "s1/b2", "s2/b1"]),
        ("nocodazole@1uM", "mixed", 2, 2, 2, 2, ["s1/b2", "s2/b1"]),
        ("taxol@0.3uM", "none", 4, 4, 3, 2, ["s1/b1", "s1/b2", "s2/b1"]),
        ("taxol@3uM", "none", 1, 1, 1, 1, ["s1/b1"]),
    ]
    assert vectors(lake, "SELECT embedding FROM tiny.consensus ORDER BY treatment") == [
        [2.375, 2.625, 2.625],
        [0.0, 4.0, 0.0],
        [7.0, 4.0, 9.0],
        [3.0, 4.0, 5.0],
    ]
    assert rows(lake, "SELECT moa, target FROM tiny.consensus WHERE treatment = 'taxol@0.3uM'") == [
        (["Microtubule stabilizers"], ["TUBA1A", "TUBB"])
    ]


def test_counts_of_cells_are_summed_and_unknown_stays_unknown(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        for number in range(2):
            data = random_plate(("s", "b", f"p{number}"), number, dim=3)
            known = (
                data.wells.with_columns(cell_count=pl.lit(10, dtype=pl.Int32)) if number == 0 else data.wells
            )
            commit(lake, type(data)(**{**vars(data), "wells": known}))
        counted = "SELECT treatment, well_count, cell_count FROM tiny.{} WHERE treatment IN {} ORDER BY 1"
        for view in ("treatments", "consensus"):
            # The second plate does not know its cells: what is known is summed.
            assert rows(lake, counted.format(view, ("DMSO", "c0@1uM"))) == [
                ("DMSO", 8, 40),
                ("c0@1uM", 2, 10),
            ]
        only = lake.frame("SELECT sum(cell_count) FROM tiny.wells WHERE plate = 'p1'").item()
        assert only is None


@pytest.mark.parametrize("dim", [1, 3360])
def test_means_at_other_dimensions(tmp_path, dim):
    with new_lake(tmp_path / "lake") as lake:
        plates = [
            random_plate(("s", "b", f"p{number}"), number, dim=dim, controls=2, treatments=1)
            for number in range(2)
        ]
        for data in plates:
            commit(lake, data, wide(dim))
        found = lake.frame("SELECT treatment, embedding FROM wide.treatments ORDER BY treatment")
        matrices = [np.array(data.wells["embedding"].to_list(), dtype=np.float32) for data in plates]
        expected = {
            "DMSO": np.vstack([m[:2] for m in matrices]),
            "c0@1uM": np.vstack([m[2:] for m in matrices]),
        }
        for treatment, embedding in found.rows():
            assert len(embedding) == dim
            np.testing.assert_allclose(
                embedding, expected[treatment].mean(axis=0, dtype=np.float64), rtol=1e-5, atol=1e-6
            )
        assert found.height == 2
        assert found.schema["embedding"] == pl.List(pl.Float32)


def test_an_element_missing_in_every_well_is_missing_above(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        from builders import layout

        key = ("s", "b", "p")
        plan = [("A01", "taxol", 1.0, "none"), ("A02", "taxol", 1.0, "none")]
        commit(lake, plate(key, {"A01": (None, 1, 2), "A02": (None, None, 4)}, "h", layout(key, plan)))
        for view in ("treatments", "batches", "sources", "consensus"):
            assert rows(lake, f"SELECT embedding FROM tiny.{view}") == [([None, 1.0, 3.0],)]


# --- every file: grain, header, no wrong median


def header(path):
    """The comment that opens a file: its first line, and the parts `Grain`, `Reads`, `Columns`."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").strip())
    parts = {}
    for line in lines[1:]:
        found = re.match(r"(Grain|Reads|Columns): (.*)", line)
        if found:
            parts[found[1]] = found[2]
    return lines[0], parts


def relations(text, own):
    """The relations that a query reads, from DuckDB's own parse of it."""
    query = re.sub(
        r"(?s)^.*?\bAS\n", "", re.sub(r"--[^\n]*", "", expand(text, "feature_set", dim=1)), count=1
    )
    tree = duckdb.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchone()[0]
    tables = set(re.findall(r'"schema_name":"(\w*)","table_name":"(\w+)"', tree))
    return {
        f"{schema}.{name}" if schema == "feature_set" else name for schema, name in tables if name not in own
    }


@pytest.mark.parametrize("path", [*VIEWS, *CONSENSUS], ids=lambda path: path.stem)
def test_header_of_a_view(path):
    title, parts = header(path)
    name = "consensus" if path in CONSENSUS else resources.number_and_name(path)[1]
    text = path.read_text(encoding="utf-8")
    assert re.fullmatch(rf"{name}: .+\.", title), title
    schema = "main" if path.parent.name == "main" else "feature_set"
    assert re.search(rf"CREATE OR REPLACE VIEW {schema}\.{name} AS\n", text)
    assert list(parts) == ["Grain", "Reads", "Columns"]
    assert parts["Grain"].startswith("one row per (")
    temporary = set(re.findall(r"\b(\w+) AS \(\n", text))
    assert set(parts["Reads"].split(", ")) == relations(text, temporary)


@pytest.mark.parametrize("path", resources.files("sql", "checks"), ids=lambda path: path.stem)
def test_header_of_a_check(path):
    assert re.fullmatch(rf"{path.stem}: .+\.", header(path)[0])


@pytest.mark.parametrize("path", VIEWS, ids=lambda path: path.stem)
def test_grain_of_a_view_is_unique(lake, path):
    keys = re.search(r"one row per \(([^)]+)\)", header(path)[1]["Grain"])[1]
    name = resources.number_and_name(path)[1]
    relation = f"{'main' if path.parent.name == 'main' else 'tiny'}.{name}"
    total, distinct = rows(lake, f"SELECT count(*), count(DISTINCT row({keys})) FROM {relation}")[0]
    # The small lake's profiles have no fields: tests/test_quality.py looks at a lake that has them.
    assert total == distinct > (-1 if name == "field_flags" else 1)
    assert (
        not rows(
            lake,
            f"SELECT 1 FROM {relation} WHERE NOT ({' AND '.join(f'{key} IS NOT NULL' for key in keys.split(', '))})",
        )
        or name == "well_profiles"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_view_takes_an_aggregate_of_a_whole_embedding(path):
    """`median(embedding)`, `avg(embedding)` and the like run or not, and are never what was meant."""
    text = re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8"))
    text = re.sub(r"elementwise\(\w+, [\w.]+\)", "", text)
    assert not re.search(r"\b\w+\([^()]*embedding", text)


def test_the_views_are_those_of_the_files(lake):
    made = set(lake.frame("SELECT view_name FROM duckdb_views() WHERE schema_name = 'tiny'")["view_name"])
    assert made == {resources.number_and_name(path)[1] for path in resources.files("sql", "feature_set")}
    assert feature_sets.names(lake) == ["tiny"]


@pytest.mark.parametrize("view", ["treatments", "batches", "sources", "consensus", "treatments_passing"])
def test_labels_in_a_view_are_those_of_the_treatment(lake, view):
    """They are found by compound and concentration there, without going through the layouts again."""
    columns = "treatment, moa, target, pathway, gene_family"
    found = set(map(repr, lake.frame(f"SELECT {columns} FROM tiny.{view}").rows()))
    expected = set(map(repr, lake.frame(f"SELECT {columns} FROM main.treatment_annotations").rows()))
    assert found <= expected
    assert any("taxol@0.3uM" in row and "cytoskeleton" in row and "another unit" not in row for row in found)
