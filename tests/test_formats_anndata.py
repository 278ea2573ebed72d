"""Reading AnnData: dense and sparse, every way of keeping keys, files that lack something, and hostile ones."""

import pickle
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from warehouse.errors import ProfileError, UnknownNameError
from warehouse.formats.anndata import read, recognises
from warehouse.formats.model import ImportSettings

MATRIX = np.array([[1, 0, np.nan], [0, 0, 0], [3, -4, 5], [0, 6, 0]], dtype=np.float32)
OBS = {"Metadata_Plate": ["p", "q", "p", "q"], "Metadata_Well": ["A1", "B2", "a02", "B03"]}


@pytest.fixture(autouse=True)
def plain_text():
    """anndata 0.12 writes no text of pandas 3's own kind."""
    with pd.option_context("future.infer_string", False):
        yield


def written(path: Path, x=MATRIX, names=("a", "b", "c"), **columns) -> Path:
    obs = pd.DataFrame({**OBS, **columns}, index=[f"row{i}" for i in range(len(MATRIX))])
    made = anndata.AnnData(X=x, obs=obs, var=pd.DataFrame(index=list(names)))
    made.layers["raw"] = np.zeros(MATRIX.shape)
    made.write_h5ad(path)
    return path


def rows_of(path: Path, **chosen) -> dict[tuple, list]:
    """Every row that is read: plate and keys to values."""
    found = {}
    for plate in read([path], ImportSettings(**chosen)):
        for part in plate.parts():
            assert part.matrix.dtype == np.float32
            for key, values in zip(part.keys.rows(), part.matrix, strict=True):
                found[(plate.said["plate"], *key)] = [None if np.isnan(v) else float(v) for v in values]
    return found


EXPECTED = {
    ("p", "A01"): [1.0, 0.0, None],
    ("q", "B02"): [0.0, 0.0, 0.0],
    ("p", "A02"): [3.0, -4.0, 5.0],
    ("q", "B03"): [0.0, 6.0, 0.0],
}


@pytest.mark.parametrize(
    "x",
    [MATRIX, MATRIX.astype(np.float64), sparse.csr_matrix(MATRIX), sparse.csr_array(MATRIX)],
    ids=["float32", "float64", "csr_matrix", "csr_array"],
)
@pytest.mark.parametrize("part_rows", [0, 1])
def test_dense_and_sparse_give_the_same_rows(tmp_path, x, part_rows):
    path = written(tmp_path / "x.h5ad", x)
    assert recognises(path)
    assert rows_of(path, part_rows=part_rows) == EXPECTED
    assert {plate.level for plate in read([path], ImportSettings())} == {"well"}


def test_levels_keys_and_counts(tmp_path):
    columns = {
        "Metadata_Site": pd.array([1, 2, 1, None], dtype="Int64"),
        "Metadata_ObjectNumber": [1.0, 2.0, 3.0, 4.0],
        "Metadata_Source": pd.Categorical(["s", "s", "s", "s"]).add_categories("never"),
        "Metadata_Nuclei_Location_Center_X": [0.5, 1.5, np.nan, 2.5],
    }
    with pytest.raises(ProfileError, match=r"x.h5ad: row 5 has no field: every profile needs one"):
        rows_of(written(tmp_path / "x.h5ad", **columns))
    columns["Metadata_Site"] = pd.array([1, 2, 1, 7], dtype="Int64")
    plates = read([written(tmp_path / "x.h5ad", **columns)], ImportSettings())
    assert [(plate.said, plate.level) for plate in plates] == [
        ({"source": "s", "plate": "p"}, "cell"),
        ({"source": "s", "plate": "q"}, "cell"),
    ]
    keys = [part.keys for part in plates[0].parts()]
    assert keys[0].select("well", "field", "cell", "x_px").rows() == [
        ("A01", "1", "1", 0.5),
        ("A02", "1", "3", None),
    ]


def test_the_index_may_be_a_key_and_columns_may_be_named(tmp_path):
    path = tmp_path / "x.h5ad"
    obs = pd.DataFrame({"barcode": [7, 7, 7, 8]}, index=pd.Index(["A1", "A2", "A3", "A4"], name="well"))
    anndata.AnnData(X=MATRIX, obs=obs, var=pd.DataFrame(index=["a", "b", "c"])).write_h5ad(path)
    assert set(rows_of(path, columns={"plate": "barcode"})) == {
        ("7", "A01"),
        ("7", "A02"),
        ("7", "A03"),
        ("8", "A04"),
    }
    with pytest.raises(ProfileError, match=r"no column for plate \(Metadata_Plate or .*it has well, barcode"):
        rows_of(path)


def test_features_that_are_chosen(tmp_path):
    path = written(tmp_path / "x.h5ad", sparse.csr_matrix(MATRIX))
    assert rows_of(path, features=("c", "a"))["p", "A02"] == [5.0, 3.0]
    with pytest.raises(UnknownNameError, match=r"unknown feature in .*x.h5ad 'd'"):
        rows_of(path, features=("d",))


def edited(path: Path, edit) -> Path:
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def replaced(name, **made):
    def edit(file):
        kept = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, **made).attrs.update(kept)

    return edit


def without(name):
    return lambda file: file.__delitem__(name)


def sparse_part(name, at, value):
    def edit(file):
        file[f"X/{name}"][at] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("X"), r"x.h5ad: holds no 'X': write a file with obs, var and X"),
        (without("obs"), r"holds no 'obs'"),
        (without("obs/Metadata_Well"), r"row 2 has no well|no column for well"),
        (replaced("X", data=MATRIX[:3]), r"X has 3 rows, obs has 4: write it again"),
        (replaced("X", data=MATRIX[:, :2]), r"shape \(4, 2\), var has 3 rows"),
        (replaced("X", data=np.full((4, 3), b"x")), r"X is array of \|S1 with shape \(4, 3\).*must hold numbers"),
        (replaced("var/_index", data=[b"a", b"b", b"a"]), r"feature 'a' stands twice in var"),
        (replaced("var/_index", data=[b"a", b"", b"c"]), r"a name in var is empty"),
        (lambda file: file["obs"].attrs.__delitem__("_index"), r"cannot be read as an AnnData file: .*_index"),
        (lambda file: file["obs/Metadata_Well"].attrs.update({"encoding-type": "pickle"}), r"cannot be read as an Ann"),
    ],
)  # fmt: skip
def test_files_that_lack_something(tmp_path, edit, message):
    with pytest.raises(ProfileError, match=message):
        rows_of(edited(written(tmp_path / "x.h5ad"), edit))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            sparse_part("indptr", 2, 900),
            r"rows . to . of the sparse X end before they begin, or beyond its data",
        ),
        (sparse_part("indptr", 1, -5), r"end before they begin"),
        (sparse_part("indices", 0, 3), r"the sparse X name column 3 of 3"),
        (
            lambda file: file["X"].attrs.update({"encoding-type": "csc_matrix"}),
            r"X is stored as 'csc_matrix'",
        ),
    ],
)
def test_sparse_matrices_that_contradict_themselves(tmp_path, edit, message):
    with pytest.raises(ProfileError, match=message):
        rows_of(edited(written(tmp_path / "x.h5ad", sparse.csr_matrix(MATRIX)), edit))


def test_what_points_out_of_the_file_is_refused(tmp_path):
    """Links to other files, virtual and external datasets: what they name is never read."""
    other = tmp_path / "secret.h5"
    with h5py.File(other, "w") as file:
        file["X"] = MATRIX
        file["text"] = [b"a", b"b", b"c"]
    layout = h5py.VirtualLayout(MATRIX.shape, np.float32)
    layout[:] = h5py.VirtualSource(other, "X", MATRIX.shape)

    def linked(name, link):
        def edit(file):
            del file[name]
            file[name] = link

        return edit

    def virtual(file):
        del file["X"]
        file.create_virtual_dataset("X", layout)

    cases = [
        (linked("X", h5py.ExternalLink(str(other), "X")), r"/X is a link to elsewhere"),
        (linked("X", h5py.SoftLink("/layers/raw")), r"/X is a link to elsewhere"),
        (linked("var/_index", h5py.ExternalLink(str(other), "text")), r"/var/_index is a link to elsewhere"),
        (virtual, r"/X keeps its values in another file"),
        (
            replaced("X", shape=(4, 3), dtype="f4", external=[(str(other), 0, h5py.h5f.UNLIMITED)]),
            r"/X keeps its values in another file",
        ),
    ]
    for edit, message in cases:
        with pytest.raises(ProfileError, match=message):
            rows_of(edited(written(tmp_path / "x.h5ad"), edit))


def test_sizes_that_are_only_claimed_are_refused(tmp_path):
    shape = (10**11,)
    claimed = replaced("obs/_index", shape=shape, dtype="S8", chunks=(1000,), compression="gzip")
    with pytest.raises(ProfileError, match=r"/obs/_index claims 800000000000 bytes and holds 0"):
        rows_of(edited(written(tmp_path / "x.h5ad"), claimed))
    large = replaced("X", shape=(10**9, 3), dtype="f4", chunks=(1000, 3))
    with pytest.raises(ProfileError, match=r"X has 1000000000 rows, obs has 4"):
        rows_of(edited(written(tmp_path / "x.h5ad"), large))


def test_groups_without_end_are_refused(tmp_path):
    def edit(file):
        del file["obs/Metadata_Plate"]
        file["obs/Metadata_Plate"] = file["obs"]

    with pytest.raises(ProfileError, match=r"lies deeper than AnnData's parts do"):
        rows_of(edited(written(tmp_path / "x.h5ad"), edit))


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.h5ad").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ProfileError, match=r"x.h5ad: cannot be read as an AnnData file"):
        rows_of(Path("x.h5ad"))
    blob = np.void(pickle.dumps(Bomb()))
    for name in ("obs/Metadata_Plate", "var/_index", "X"):
        with pytest.raises(ProfileError):
            rows_of(edited(written(tmp_path / "y.h5ad"), replaced(name, data=np.array([blob] * 4))))
    assert not Path("exploded").exists()


def test_without_the_package(tmp_path, monkeypatch):
    path = written(tmp_path / "x.h5ad")
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(
        ProfileError, match=r"x.h5ad: reading an .h5ad file needs the package anndata: pip install"
    ):
        rows_of(path)


def test_an_infinite_number_is_left_for_the_builder(tmp_path):
    x = MATRIX.astype(np.float64)
    x[0, 0] = 1e300
    assert rows_of(written(tmp_path / "x.h5ad", x))["p", "A01"][0] == np.inf
