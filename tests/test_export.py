"""Giving profiles out: names and order of what is written, whole files or none, the same rows when taken in again."""

import errno
import gzip
import json
import os
import resource
import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from builders import SMALL, commit, layout, neighbour_lake, new_lake, plate, small_lake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from warehouse import __version__, feature_sets, profiles
from warehouse.correct import correct
from warehouse.embeddings import to_column, to_matrix
from warehouse.errors import ExportError, ProfileError, RecipeError, UnknownNameError
from warehouse.export import export, stream, whole
from warehouse.export.columns import NAMES
from warehouse.export.h5ad import H5adWriter
from warehouse.export.writers import Head, ParquetWriter, Writer
from warehouse.feature_lists import from_text, to_text
from warehouse.feature_sets import FeatureSet
from warehouse.importers import ImportSettings, import_profiles
from warehouse.ingest import PlateData
from warehouse.lake import Lake

ENDINGS = ("parquet", "csv", "csv.gz", "h5ad", "npy")
#: Examples of a round trip: more of them in a long run.
EXAMPLES = int(os.environ.get("WELLHOUSE_EXAMPLES", "5"))
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "export.md"


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    with small_lake(tmp_path_factory.mktemp("export") / "lake") as made:
        yield made


def read_back(path: Path) -> tuple[pl.DataFrame, np.ndarray, list[str]]:
    """Read what was written with other tools than ours: metadata, features, names of features."""
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    if path.suffix == ".h5ad":
        held = anndata.read_h5ad(path)
        columns = {name: [None if v is pd.NA or v != v else v for v in held.obs[name]] for name in held.obs}
        return pl.DataFrame(columns, strict=False), held.X, list(held.var_names)
    if path.suffix == ".npy":
        names = path.with_name(f"{stem}.features.txt").read_text().splitlines()
        return pl.read_parquet(path.with_name(f"{stem}.metadata.parquet")), np.load(path), names
    if path.suffix == ".parquet":
        names = json.loads(pq.read_schema(path).metadata[b"wellhouse.features"])
        table = pl.read_parquet(path)
    else:
        names = path.with_name(f"{stem}.features.txt").read_text().splitlines()
        table = pl.read_csv(path, infer_schema_length=None)
    return table.drop(names), table.select(names).fill_null(np.nan).to_numpy(), names


def bits(matrix: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrix, dtype=np.float32).view(np.uint32)


# --- what is written


@pytest.mark.parametrize("level", ["well", "treatment", "compound", "batch", "source", "consensus"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_are_those_of_the_lake_in_the_order_of_their_ids(lake, tmp_path, ending, level):
    expected = profiles.read(lake, "tiny", level=level)
    report = export(lake, "tiny", tmp_path / f"x.{ending}", level=level)
    assert (report.rows, report.features) == expected.matrix.shape
    assert all(path.is_file() for path in report.files)
    assert sorted(tmp_path.iterdir()) == sorted(report.files)
    rows, matrix, names = read_back(report.files[0])
    assert names == ["f1", "f2", "f3"]
    assert (bits(matrix) == bits(expected.matrix)).all()
    for name in profiles.IDS[level]:
        assert rows[NAMES[name]].to_list() == expected.rows[name].to_list()
    assert (
        rows.columns[: len(profiles.IDS[level])]
        == [n for n in NAMES.values() if n in rows.columns][: len(profiles.IDS[level])]
    )


def test_names_values_and_labels_of_wells(lake, tmp_path):
    export(lake, "tiny", tmp_path / "x.parquet")
    table = pl.read_parquet(tmp_path / "x.parquet")
    assert table.columns == [
        "Metadata_Source", "Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Treatment",
        "Metadata_Compound", "Metadata_Concentration", "Metadata_Concentration_Unit", "Metadata_pert_type",
        "Metadata_control_type", "Metadata_moa", "Metadata_target", "Metadata_pathway", "Metadata_gene_family",
        "Metadata_Site_Count", "Metadata_Object_Count", "f1", "f2", "f3",
    ]  # fmt: skip
    of_plate = {
        row["Metadata_Well"]: row for row in table.filter(pl.col("Metadata_Plate") == "p1").to_dicts()
    }
    kinds = {
        well: (row["Metadata_pert_type"], row["Metadata_control_type"]) for well, row in of_plate.items()
    }
    assert kinds == {
        "A01": ("control", "negcon"),
        "A02": ("control", "negcon"),
        "A03": ("trt", None),
        "A04": ("trt", None),
        "A05": ("empty", None),  # in the layout, nothing in it
        "A06": (None, None),  # not in the layout
    }
    poscon = table.filter(Metadata_Plate="p3", Metadata_Well="A02").row(0, named=True)
    assert (poscon["Metadata_pert_type"], poscon["Metadata_control_type"]) == ("control", "poscon")
    assert of_plate["A04"]["Metadata_moa"] == "Actin disruptors|Microtubule stabilizers"
    assert of_plate["A03"]["Metadata_target"] == "TUBA1A|TUBB"
    assert (of_plate["A03"]["Metadata_Concentration"], of_plate["A03"]["Metadata_Concentration_Unit"]) == (
        0.3,
        "uM",
    )
    assert of_plate["A01"]["Metadata_Concentration"] is None
    mixed = tmp_path / "t.parquet"
    export(lake, "tiny", mixed, level="treatment")
    row = pl.read_parquet(mixed).filter(Metadata_Treatment="nocodazole@1uM").row(0, named=True)
    assert (row["Metadata_pert_type"], row["Metadata_control_type"]) == (None, "mixed")
    assert (row["Metadata_Batches"], row["Metadata_Well_Count"]) == ("s1/b2|s2/b1", 2)


def test_missing_is_missing_in_every_format(lake, tmp_path):
    """A NULL element, a compound that is not there, and a count that is not known."""
    for ending in ENDINGS:
        export(lake, "tiny", tmp_path / f"{ending.replace('.', '_')}.{ending}")
    table = pq.read_table(tmp_path / "parquet.parquet")
    assert table["f2"].null_count == 2
    assert np.isnan(np.load(tmp_path / "npy.npy")).sum() == 2
    held = anndata.read_h5ad(tmp_path / "h5ad.h5ad")
    assert np.isnan(held.X).sum() == 2
    assert held.X.dtype == np.float32
    assert held.obs["Metadata_Compound"].isna().sum() == 2
    assert held.obs["Metadata_Object_Count"].isna().all()
    assert not held.obs.isin(["nan", "None", "NaN"]).any().any()
    text = (tmp_path / "csv.csv").read_text()
    assert "nan" not in text.lower()
    assert "null" not in text.lower()
    assert gzip.decompress((tmp_path / "csv_gz.csv.gz").read_bytes()).decode() == text


def test_a_file_says_where_it_comes_from(lake, tmp_path):
    for ending in ENDINGS:
        export(lake, "tiny", tmp_path / f"{ending.replace('.', '_')}.{ending}", where="plate = 'p1'")
    target = feature_sets.find(lake, "tiny")
    in_parquet = json.loads(pq.read_schema(tmp_path / "parquet.parquet").metadata[b"wellhouse.lineage"])
    assert in_parquet["snapshot"] == lake.snapshot()
    assert in_parquet["identity"] == target.identity()
    assert in_parquet["content"] == profiles.fingerprint(lake, "tiny")
    asked = {key: in_parquet[key] for key in ("wellhouse", "feature_set", "recipe", "level", "where")}
    assert asked == {
        "wellhouse": __version__, "feature_set": "tiny", "recipe": "none", "level": "well", "where": "plate = 'p1'",
    }  # fmt: skip
    assert json.loads((tmp_path / "csv.lineage.json").read_text()) == in_parquet
    in_npy = pq.read_schema(tmp_path / "npy.metadata.parquet").metadata[b"wellhouse.lineage"]
    assert json.loads(in_npy) == in_parquet
    uns = anndata.read_h5ad(tmp_path / "h5ad.h5ad").uns["wellhouse"]
    known = {key: value for key, value in in_parquet.items() if value is not None}
    assert {key: json.loads(v) if key in ("parameters", "channels") else v for key, v in uns.items()} == known


def test_the_same_rows_give_the_same_bytes(lake, tmp_path):
    for ending in ENDINGS:
        first, second = (export(lake, "tiny", tmp_path / f"{n}.{ending}").files for n in ("a", "b"))
        for one, other in zip(first, second, strict=True):
            assert one.read_bytes() == other.read_bytes(), one
            one.unlink()
            other.unlink()


def test_a_recipe_and_the_features_it_leaves(tmp_path):
    with neighbour_lake(tmp_path / "lake") as lake:
        with pytest.raises(RecipeError, match=r"has no recipe 'standardize'"):
            export(lake, "tiny", tmp_path / "x.parquet", recipe="standardize")
        correct(lake, "tiny", "standardize(on=all)")
        expected = profiles.read(lake, "tiny", recipe="standardize(on=all)", level="well")
        report = export(lake, "tiny", tmp_path / "x.h5ad", recipe="standardize(on=all)")
        held = anndata.read_h5ad(report.files[0])
        assert (bits(held.X) == bits(expected.matrix)).all()
        assert held.uns["wellhouse"]["recipe"].startswith("standardize")
        with pytest.raises(ProfileError, match=r"corrects wells; cells are there as they came in"):
            export(lake, "tiny", tmp_path / "y.parquet", recipe="standardize(on=all)", level="cell")


def test_the_table_of_names_in_the_documents():
    rows = [line.split("|") for line in DOCUMENT.read_text().splitlines() if line.startswith("| `Metadata_")]
    documented = {parts[1].strip().strip("`"): parts[2].strip().strip("`") for parts in rows}
    assert documented == {name: column for column, name in NAMES.items()} | {
        "Metadata_pert_type": "control_type"
    }


# --- large levels, in batches


def many_cells(lake: Lake, dim: int = 3) -> None:
    """Two batches of plates with more cells in some wells than in others; names that sort as text."""
    rng = np.random.default_rng(3)
    target = FeatureSet("loose", "import", "1", None, {}, (), tuple(f"f{i}" for i in range(dim)), "cell")
    for key in (("s", "b1", "p10"), ("s", "b1", "p2"), ("s", "b2", "p1"), ("r", "b1", "p10")):
        ids = [
            (well, str(field), str(cell))
            for well in ("A01", "A10", "AA01", "B02")
            for field in (1, 10, 2)
            for cell in range(int(rng.integers(1, 6)))
        ]
        cells = pl.DataFrame(ids, schema=["well", "field", "cell"], orient="row").with_columns(
            pl.Series("x_px", rng.normal(size=len(ids))),
            pl.lit(True).alias("is_border"),
            to_column(rng.normal(size=(len(ids), dim)).astype(np.float32)),
        )  # fmt: skip
        fields = cells.select("well", "field", "embedding").unique(["well", "field"], maintain_order=True)
        fields = fields.with_columns(pl.lit(None, dtype=pl.Int32).alias("cell_count"))
        plan = layout(key, [("A01", "x", 1.0, "none")])
        base = plate(key, {"A01": (1.0, 2.0, 3.0), "B02": (4.0, 5.0, 6.0)}, layout=plan)
        data = PlateData(
            key, "h", plan, None, (cells,), fields, base.wells, base.rejections, cells_seen=len(ids)
        )
        commit(lake, data, target)


@pytest.mark.parametrize("level", ["cell", "field", "well"])
@pytest.mark.parametrize("rows_at_once", [1, 2, 7, 23, 10_000])
def test_batches_of_any_size_give_the_same_rows_in_the_same_order(tmp_path, monkeypatch, level, rows_at_once):
    with new_lake(tmp_path / "lake") as lake:
        many_cells(lake)
        expected = profiles.read(lake, "loose", level=level)
        monkeypatch.setattr(stream, "BATCH_BYTES", rows_at_once * 3 * 4)
        report = export(lake, "loose", tmp_path / "x.parquet", level=level)
        with lake.reading():
            found = list(stream.batches(lake, stream.select(lake, "loose", level, "none", None)))
    rows, matrix, _ = read_back(report.files[0])
    assert (bits(matrix) == bits(expected.matrix)).all()
    ids = [NAMES[name] for name in profiles.IDS[level]]
    assert rows.select(ids).rows() == expected.rows.select(profiles.IDS[level]).rows()
    # What is never divided: a well of cells or fields, a plate of wells.
    whole_part = ["source", "batch", "plate", *(["well"] if level != "well" else [])]
    largest = expected.rows.group_by(whole_part).len()["len"].max()
    assert max(len(part) for part, _ in found) <= max(rows_at_once, largest)
    if level == "cell":
        assert rows["Metadata_Nuclei_Location_Center_X"].to_list() == expected.rows["x_px"].to_list()
        assert rows["Metadata_is_border"].all()
        treated = rows.filter(pl.col("Metadata_Treatment") == "x@1uM")
        assert set(treated["Metadata_Well"]) == {"A01"}
        assert set(treated["Metadata_pert_type"]) == {"trt"}


def test_where_chooses_by_what_was_done_to_the_well_of_a_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BATCH_BYTES", 100)
    with new_lake(tmp_path / "lake") as lake:
        many_cells(lake)
        total = lake.value("SELECT count(*) FROM loose.cells WHERE well = 'A01' AND plate <> 'p2'")
        export(lake, "loose", tmp_path / "x.npy", level="cell", where="compound = 'x' AND plate <> 'p2'")
    assert np.load(tmp_path / "x.npy", mmap_mode="r").shape == (total, 3)


@pytest.mark.parametrize("ending", ENDINGS)
def test_all_rows_are_of_one_snapshot(tmp_path, monkeypatch, ending):
    """A plate that is replaced and one that comes while the file is written: neither is seen."""
    monkeypatch.setattr(stream, "BATCH_BYTES", 12)
    with small_lake(tmp_path / "lake") as lake:
        expected = profiles.read(lake, "tiny", level="well")
        read = stream.batches

        def disturbed(opened, selection):
            for number, part in enumerate(read(opened, selection)):
                if number == 1:
                    with Lake.open(tmp_path / "lake") as other:
                        commit(other, plate(("s2", "b1", "p4"), {"A01": (0.0, 0.0, 0.0)}, "other"))
                        commit(other, plate(("s3", "b1", "p9"), {"A01": (0.0, 0.0, 0.0)}, "new"))
                yield part

        monkeypatch.setattr(stream, "batches", disturbed)
        report = export(lake, "tiny", tmp_path / f"x.{ending}")
    rows, matrix, _ = read_back(report.files[0])
    assert (bits(matrix) == bits(expected.matrix)).all()
    assert rows["Metadata_Plate"].to_list() == expected.rows["plate"].to_list()


# --- refusals


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("x.feather", {}, r"x.feather: unknown kind of file '.feather': end its name in .parquet, .csv, .csv.gz"),
        ("x", {}, r"unknown kind of file '': end its name"),
        ("x.csv", {"format": "parquet"}, r"x.csv: the name says .csv, --format says parquet: make them agree"),
        ("no/x.csv", {}, r"no/x.csv: there is no folder .*no: make it, or name another place"),
        ("folder.csv", {}, r"folder.csv is a folder: name a file in it"),
        ("there.npy", {}, r"there.npy is there already: give --overwrite to replace it"),
        ("beside.csv", {}, r"beside.features.txt is there already: give --overwrite"),
        ("x.csv", {"level": "cell"}, r"nothing to export: 'tiny' has no rows of level 'cell' \(its finest .* 'well'\)"),
        ("x.csv", {"where": "plate = 'p0'"}, r"no row of level 'well' of 'tiny' meets --where \"plate = 'p0'\""),
    ],
)  # fmt: skip
def test_what_cannot_be_exported(lake, tmp_path, name, arguments, message):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "there.npy").write_text("mine")
    (tmp_path / "beside.features.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ExportError, match=message):
        export(lake, "tiny", tmp_path / name, **arguments)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.npy").read_text() == "mine"


def test_names_that_are_unknown(lake, tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown level 'wel'. Did you mean 'well'\?"):
        export(lake, "tiny", tmp_path / "x.csv", level="wel")
    with pytest.raises(UnknownNameError, match=r"unknown format 'parket'. Did you mean 'parquet'\?"):
        export(lake, "tiny", tmp_path / "x", format="parket")
    with pytest.raises(UnknownNameError, match=r"unknown feature set 'tinny'. Did you mean 'tiny'\?"):
        export(lake, "tinny", tmp_path / "x.csv")
    with pytest.raises(ExportError, match=r"s3:/.*: export writes to a folder of this machine"):
        export(lake, "tiny", "s3://bucket/x.csv")


@pytest.mark.parametrize("level", ["well", "treatment"])
def test_predicates_that_are_none(lake, tmp_path, level):
    for where, message in (
        ("plaet = 'p1'", r"--where \"plaet = 'p1'\": Binder Error"),
        (
            "well_count::DATE > '2020-01-01'" if level == "treatment" else "plate::INTEGER > 1",
            r"--where .*Error",
        ),
        ("1=1; DELETE FROM main.wells", r"is no SQL predicate|is not allowed"),
        ("1=1) UNION SELECT * FROM tiny.wells WHERE (1=1", r"is no SQL predicate"),
    ):
        with pytest.raises(ProfileError, match=message):
            export(lake, "tiny", tmp_path / "x.csv", level=level, where=where)
        assert list(tmp_path.iterdir()) == []


def test_a_format_for_a_name_that_tells_none(lake, tmp_path):
    report = export(lake, "tiny", tmp_path / "run.7", format="csv")
    assert [path.name for path in report.files] == ["run.7", "run.7.features.txt", "run.7.lineage.json"]


def test_a_feature_with_the_name_of_metadata(tmp_path):
    target = FeatureSet("odd", "import", "1", None, {}, (), ("Metadata_Well", "b", "c"), "well")
    with new_lake(tmp_path / "lake") as lake:
        commit(lake, plate(("s", "b", "p"), {"A01": (1.0, 2.0, 3.0)}), target)
        for ending in ("parquet", "csv"):
            with pytest.raises(
                ExportError, match=r"feature 'Metadata_Well' has the name of a column of metadata"
            ):
                export(lake, "odd", tmp_path / f"x.{ending}")
        export(lake, "odd", tmp_path / "x.h5ad")
        export(lake, "odd", tmp_path / "x.npy")
    assert list(anndata.read_h5ad(tmp_path / "x.h5ad").var_names) == ["Metadata_Well", "b", "c"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "x.features.txt", "x.h5ad", "x.metadata.parquet", "x.npy",
    ]  # fmt: skip


def test_a_text_that_hdf5_cannot_hold(tmp_path):
    rows = pl.DataFrame({"Metadata_Well": ["A01"]})
    with H5adWriter([tmp_path / "x.h5ad"], Head(("a\0b",), ("Metadata_Well",), {})) as writer:
        writer.write(rows, np.ones((1, 1), np.float32))
        with pytest.raises(ExportError, match=r"'a\\x00b' holds a NUL character.*export to .parquet"):
            writer.finish()


def test_without_the_package_anndata(lake, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(ExportError, match=r"needs the package anndata: pip install 'wellhouse\[anndata\]'"):
        export(lake, "tiny", tmp_path / "x.h5ad")
    assert list(tmp_path.iterdir()) == []


# --- whole or not at all


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk_leaves_what_was_there(lake, tmp_path, monkeypatch, ending):
    """A limit on the size of files stands for the disk: the write fails in the middle."""
    former = export(lake, "tiny", tmp_path / f"x.{ending}").files
    before = {path: path.read_bytes() for path in former}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    read, leave = stream.batches, Writer.__exit__

    def all_read_then_limited(*arguments):
        parts = list(read(*arguments))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        yield from parts

    def left_then_free(*arguments):
        try:
            leave(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(stream, "batches", all_read_then_limited)
    monkeypatch.setattr(Writer, "__exit__", left_then_free)
    with pytest.raises(ExportError, match=rf"x.{ending}: cannot be written: .*; nothing is left of it"):
        export(lake, "tiny", tmp_path / f"x.{ending}", overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(lake, tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(ExportError, match=r"x.csv: cannot be written: Permission denied"):
        export(lake, "tiny", tmp_path / "shut" / "x.csv")


def test_a_failure_of_the_reader_leaves_nothing(lake, tmp_path, monkeypatch):
    monkeypatch.setattr(ParquetWriter, "finish", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(lake, "tiny", tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_move_that_fails_brings_the_former_files_back(lake, tmp_path, monkeypatch):
    export(lake, "tiny", tmp_path / "x.csv", where="plate = 'p1'")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    move, moves = Path.replace, []

    def failing(self, target):
        moves.append(target)
        if len(moves) == 5:  # three away, two in
            raise OSError(errno.EIO, "Input/output error")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(ExportError, match="Input/output error"):
        export(lake, "tiny", tmp_path / "x.csv", overwrite=True)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwriting_replaces_all_files(lake, tmp_path):
    export(lake, "tiny", tmp_path / "x.csv", where="plate = 'p1'")
    report = export(lake, "tiny", tmp_path / "x.csv", overwrite=True)
    assert sorted(tmp_path.iterdir()) == sorted(report.files)
    assert json.loads((tmp_path / "x.lineage.json").read_text())["where"] is None
    assert len(pl.read_csv(tmp_path / "x.csv")) == sum(
        v is not None for rows in SMALL.values() for *_, v in rows
    )


def test_a_file_that_comes_meanwhile_is_not_overwritten(tmp_path):
    place = tmp_path / "x.csv"

    def both_write():
        with whole.written([place], overwrite=False) as [path]:
            path.write_text("mine")
            place.write_text("theirs")

    with pytest.raises(ExportError, match=r"x.csv is there already"):
        both_write()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.csv", "theirs")]


# --- numbers as text


def test_every_kind_of_float_comes_back_from_text(tmp_path):
    """Random bit patterns, denormals, the largest, both zeros, and the one whose digits a double cannot tell."""
    rng = np.random.default_rng(11)
    some = rng.integers(0, 2**32, 60_000, dtype=np.uint32)
    small = rng.integers(0, 2**23, 6_000, dtype=np.uint32)
    lost = np.array([0x15AE43FD, 0x95AE43FD, 1, 0x80000000, 0, 0x7F7FFFFF, 0xFF7FFFFF, 0x4E802666], np.uint32)
    values = np.concatenate([some, small, lost]).view(np.float32)
    values = values[np.isfinite(values)]
    matrix = values[: len(values) // 8 * 8].reshape(-1, 8)
    matrix = np.vstack([matrix, values[-8:].reshape(1, 8)])
    target = FeatureSet("bits", "import", "1", None, {}, (), tuple(f"f{i}" for i in range(8)), "well")
    cells = pl.DataFrame({"well": "A01", "field": "1", "cell": [f"{i:06d}" for i in range(len(matrix))]})
    base = plate(("s", "b", "p"), {"A01": (0.0,) * 8})
    with new_lake(tmp_path / "lake") as lake:
        parts = (cells.with_columns(to_column(matrix)),)
        data = PlateData(
            base.key, "h", None, None, parts, base.fields, base.wells, base.rejections, cells_seen=len(matrix)
        )
        commit(lake, data, target)
        export(lake, "bits", tmp_path / "x.csv", level="cell")
    names = list(target.feature_names)
    again = (
        pl.read_csv(tmp_path / "x.csv", schema_overrides=dict.fromkeys(names, pl.Float64))
        .select(names)
        .to_numpy()
    )
    assert (bits(again.astype(np.float32)) == bits(matrix)).all()
    by_pandas = pd.read_csv(tmp_path / "x.csv")[names].to_numpy()
    assert (bits(by_pandas.astype(np.float32)) == bits(matrix)).all()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True))
def test_lists_of_features_come_back(names):
    assert from_text(to_text(names)) == names


def test_a_list_of_features_by_hand():
    assert from_text('a\n\n  b c \n"quoted\n"x\\ny"\n') == ["a", "b c", '"quoted', "x\ny"]


# --- and in again

_KEY = st.text(
    st.characters(categories=["L", "N", "P", "S"], exclude_characters="\0"), min_size=1, max_size=8
).filter(lambda text: text.strip() == text and text.lower() not in ("nan", "na", "null"))
_NAME = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
).filter(lambda text: not text.startswith("Metadata_"))
_VALUE = st.one_of(
    st.none(),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([1e-45, -0.0, 3.4028234663852886e38, 7.038530691851209e-26]),
)
_COUNT = st.one_of(st.none(), st.integers(0, 2**31 - 1))


@st.composite
def feature_tables(draw):
    """Names of features, and plates of wells: key, then well, counts and values, at least one of them known."""
    names = draw(st.lists(_NAME, min_size=1, max_size=4, unique=True))
    keys = draw(
        st.lists(st.tuples(_KEY, _KEY, _KEY), min_size=1, max_size=3, unique_by=lambda key: (key[0], key[2]))
    )
    vector = st.lists(_VALUE, min_size=len(names), max_size=len(names)).filter(
        lambda row: any(v is not None for v in row)
    )
    wells = st.dictionaries(
        st.sampled_from(["A01", "A02", "B11", "P24", "AF48"]), st.tuples(_COUNT, _COUNT, vector), min_size=1
    )
    return names, {key: draw(wells) for key in keys}


def wells_of(lake: Lake, feature_set: str) -> tuple[list, np.ndarray]:
    frame = lake.frame(f"SELECT * FROM {feature_set}.wells ORDER BY source, batch, plate, well")
    dim = feature_sets.find(lake, feature_set).dim
    return frame.drop("embedding").rows(), bits(to_matrix(frame["embedding"], dim))


def put(lake: Lake, names: list[str], plates: dict) -> None:
    target = FeatureSet("given", "import", "1", None, {}, (), tuple(names), "well")
    for key, wells in plates.items():
        matrix = [[np.nan if value is None else value for value in row] for _, _, row in wells.values()]
        rows = pl.DataFrame(
            [(well, fields, cells) for well, (fields, cells, _) in wells.items()],
            schema={"well": pl.String, "field_count": pl.Int32, "cell_count": pl.Int32}, orient="row",
        ).with_columns(to_column(np.array(matrix, dtype=np.float32)))  # fmt: skip
        empty = plate(key, {"A01": (0.0,)})
        commit(lake, PlateData(key, "h", None, None, (), empty.fields, rows, empty.rejections), target)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(feature_tables())
def test_wells_come_back_as_they_went(drawn):
    names, plates = drawn
    with tempfile.TemporaryDirectory() as folder, new_lake(Path(folder) / "lake") as lake:
        put(lake, names, plates)
        expected = wells_of(lake, "given")
        for number, ending in enumerate(ENDINGS):
            name = f"again{number}"
            report = export(lake, "given", Path(folder) / f"{name}.{ending}")
            chosen = ImportSettings(metadata=report.files[1] if ending == "npy" else None)
            import_profiles(lake, report.files[:1], name, settings=chosen)
            assert feature_sets.find(lake, name).feature_names == tuple(names), ending
            rows, matrix = wells_of(lake, name)
            assert rows == expected[0], ending
            assert (matrix == expected[1]).all(), ending


@pytest.mark.parametrize("ending", ENDINGS)
def test_cells_come_back_as_they_went(tmp_path, ending):
    with new_lake(tmp_path / "lake") as lake:
        many_cells(lake)
        expected = profiles.read(lake, "loose", level="cell")
        report = export(lake, "loose", tmp_path / f"x.{ending}", level="cell")
        chosen = ImportSettings(metadata=report.files[1] if ending == "npy" else None)
        import_profiles(lake, report.files[:1], "again", settings=chosen)
        found = profiles.read(lake, "again", level="cell")
    assert found.feature_names == expected.feature_names
    assert found.rows.equals(expected.rows)
    assert (bits(found.matrix) == bits(expected.matrix)).all()


# --- others' eyes


def test_pycytominer_and_pandas_find_the_features(tmp_path):
    from pycytominer.cyto_utils import infer_cp_features

    names = ("Cells_AreaShape_Area", "Nuclei_Texture_X", "Cytoplasm_Intensity_Y")
    target = FeatureSet("cp", "import", "1", None, {}, (), names, "well")
    with new_lake(tmp_path / "lake") as lake:
        commit(lake, plate(("s", "b", "p"), {"A01": (1.0, None, 3.0), "A02": (4.0, 5.0, 6.0)}), target)
        export(lake, "cp", tmp_path / "x.parquet")
        export(lake, "cp", tmp_path / "x.csv.gz")
    for frame in (pd.read_parquet(tmp_path / "x.parquet"), pd.read_csv(tmp_path / "x.csv.gz")):
        assert infer_cp_features(frame) == list(names)
        assert infer_cp_features(frame, metadata=True) == [name for name in frame if name not in names]
        assert frame[list(names)].isna().sum().sum() == 1


def test_names_of_observations_are_unique(tmp_path):
    target = FeatureSet("odd", "import", "1", None, {}, (), ("a",), "well")
    with new_lake(tmp_path / "lake") as lake:
        for key in (("s", "b/c", "p"), ("s", "b", "c/p"), ("s\\", "b", "p"), ("s", "\\b", "p2")):
            commit(lake, plate(key, {"A01": (1.0,)}), target)
        export(lake, "odd", tmp_path / "x.h5ad")
    held = anndata.read_h5ad(tmp_path / "x.h5ad")
    assert held.obs_names.is_unique
    assert sorted(held.obs_names) == ["s/\\\\b/p2/A01", "s/b/c\\/p/A01", "s/b\\/c/p/A01", "s\\\\/b/p/A01"]


def test_the_command(lake, tmp_path):
    import cli

    call = ["export", "tiny", str(tmp_path / "x.csv"), "--lake", str(lake.path), "--where", "plate = 'p1'"]
    done = CliRunner().invoke(cli.app, [*call, "--json"])
    assert done.exit_code == 0, done.output
    files = [str(tmp_path / name) for name in ("x.csv", "x.features.txt", "x.lineage.json")]
    assert json.loads(done.stdout) == {"rows": 6, "features": 3, "files": files}
    shown = CliRunner().invoke(cli.app, [*call, "--overwrite"])
    assert shown.stdout.splitlines() == ["6 rows, 3 features", *files]
    refused = CliRunner().invoke(cli.app, call)
    assert isinstance(refused.exception, ExportError)


# --- real files


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "moa_screen/Batch1_normalized_feature_select_negcon_batch.csv.gz",
        "moa_screen/Batch2_normalized_feature_select_negcon_batch.csv.gz",
        "jump_recipe/inputs/profiles/source_4/workspace/profiles/2021_04_26_Batch1/BR00117037/BR00117037.parquet",
        "jump_recipe/inputs/profiles/source_13/workspace/profiles/20220914_Run1/CP-CC9-R1-04/CP-CC9-R1-04.parquet",
    ],
)
def test_real_profiles_are_given_out_as_they_came_in(data_dir, tmp_path, name):
    """Every value of the file, as float32, under the same names and in the same order."""
    theirs = pd.read_parquet(data_dir / name) if name.endswith(".parquet") else pd.read_csv(data_dir / name)
    with new_lake(tmp_path / "lake") as lake:
        reports = import_profiles(lake, [data_dir / name], "real")
        assert sum(report.wells_in for report in reports) == len(theirs)
        names = list(feature_sets.find(lake, "real").feature_names)
        exported = [
            export(lake, "real", tmp_path / f"x.{ending}").files[0]
            for ending in ("parquet", "csv.gz", "h5ad")
        ]
    assert names == [column for column in theirs if not column.startswith("Metadata_")]
    keys = ["Metadata_Plate", "Metadata_Well"]
    theirs = theirs.assign(Metadata_Plate=theirs["Metadata_Plate"].astype(str)).sort_values(keys)
    with np.errstate(over="ignore"):
        expected = theirs[names].to_numpy(dtype=np.float64).astype(np.float32)
    for path in exported:
        rows, matrix, found = read_back(path)
        assert found == names
        assert rows.select(pl.col(keys).cast(pl.String)).rows() == [
            tuple(row) for row in theirs[keys].to_numpy()
        ]
        assert (bits(matrix) == bits(expected)).all()
