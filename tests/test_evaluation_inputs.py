"""Files brought to an evaluation, and how metrics are written: read, refused by the value."""

import numpy as np
import polars as pl
import pytest

from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.evaluation.asked import asked_metric, asked_set, split
from warehouse.evaluation.inputs import Inputs, assays_of, clusters_of, folds_of, pairs_of

ROWS = pl.DataFrame(
    {
        "treatment": ["a@1", "a@3", "b@1", "c@1"],
        "compound": ["a", "a", "b", "c"],
        "concentration": [1.0, 3.0, 1.0, 1.0],
        "moa": [["m"], ["m"], None, ["n"]],
    }
)


def written(tmp_path, text, name="file.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_clusters_are_joined_by_whatever_names_rows(tmp_path):
    by_treatment = written(tmp_path, "treatment,cluster\na@3,x\nc@1,y\nnot-here,z\n")
    assert clusters_of(by_treatment, ROWS) == ([None, "x", None, "y"], 1)
    by_compound = written(tmp_path, "cluster,compound\nx,a\nx,a\ny,b\n", "other.csv")
    assert clusters_of(by_compound, ROWS) == (["x", "x", "y", None], 0)
    pl.DataFrame({"compound": ["c"], "cluster": [7]}).write_parquet(tmp_path / "c.parquet")
    assert clusters_of(tmp_path / "c.parquet", ROWS) == ([None, None, None, "7"], 0)


def test_folds_and_assays(tmp_path):
    folds, lost = folds_of(written(tmp_path, "compound,fold\na,0\nb,12\n"), ROWS)
    assert lost == 0
    assert folds.tolist() == [0, 0, 12, -1]
    assert folds.dtype == np.int64
    text = "compound,assay,active\na,z,1\nb,z,0\nb,k,1\nb,k,1\nq,k,0\n"
    matrix, names, lost = assays_of(written(tmp_path, text, "assays.csv"), ROWS)
    assert (names, lost) == (["k", "z"], 1)
    np.testing.assert_array_equal(matrix, [[np.nan, 1], [np.nan, 1], [1, 0], [np.nan, np.nan]])


def test_pairs_are_row_numbers(tmp_path):
    text = "treatment_a,treatment_b\na@1,b@1\nb@1,a@1\nc@1,c@1\nc@1,gone\nc@1,a@3\n"
    pairs, lost = pairs_of(written(tmp_path, text), ROWS)
    assert pairs.tolist() == [[0, 2], [2, 0], [3, 3], [3, 1]]  # the metric counts what is there twice
    assert lost == 1


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (clusters_of, "treatment,group\na@1,x\n", "unknown column of .*file.csv 'cluster'"),
        (clusters_of, "treatmen,cluster\na@1,x\n", "'treatmen'. Did you mean 'treatment'"),
        (clusters_of, "cluster\nx\n", "has only cluster: give a column that names rows too"),
        (clusters_of, "compound,cluster\na,x\na,y\n", "a has more than one cluster"),
        (clusters_of, "compound,cluster\nz,x\n", "no line fits a row by compound"),
        (clusters_of, "", "is no CSV or Parquet table"),
        (folds_of, "compound,fold\na,one\n", "fold 'one' is no whole number"),
        (folds_of, "compound,fold\na,-2\n", "fold '-2' is no whole number"),
        (assays_of, "compound,assay,active\na,z,yes\n", "active is 'yes': write 1, or 0"),
        (assays_of, "compound,assay,active\na,z,\n", "active is None: write 1"),
        (assays_of, "compound,assay,active\na,z,1\na,z,0\n", "'a' is both active and inactive in assay 'z'"),
        (assays_of, "compound,assay,active\nq,z,1\n", "no line fits a row by compound"),
        (assays_of, "compound,assay,active\na,,1\n", "1 lines name no assay"),
        (clusters_of, "moa,cluster\nx,y\n", "moa is a list in each row, and names none"),
        (pairs_of, "moa_a,moa_b\nx,y\n", "moa is a list in each row, and names none"),
        (pairs_of, "a,b\nx,y\n", "has columns a, b: give NAME_a and NAME_b"),
        (pairs_of, "gene_a,gene_b\nx,y\n", "unknown column of this level, in .*'gene'"),
        (pairs_of, "compound_a,compound_b\na,b\n", "compound 'a' stands for 2 rows of this level"),
        (pairs_of, "treatment_a,treatment_b\nx,y\n", "none of 1 pairs has both"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_refused(tmp_path, read, text, message):
    with pytest.raises((EvaluationError, UnknownNameError), match=message):
        read(written(tmp_path, text), ROWS)


def test_a_file_name_is_no_pattern(tmp_path):
    path = written(tmp_path, "compound,cluster\na,x\n", "a[1].csv")
    assert clusters_of(path, ROWS)[0] == ["x", "x", None, None]


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match=r"gone.csv cannot be read: No such file"):
        Inputs(clusters=tmp_path / "gone.csv").marks()
    marks = Inputs(folds=written(tmp_path, "x")).marks()
    assert marks.keys() == {"folds"}
    assert Inputs(folds=written(tmp_path, "y")).marks() != marks


def test_metrics_are_read_as_they_are_typed():
    assert asked_metric("nsc").text == "nsc"
    knn = asked_metric(" knn( k=5 ) ")
    assert (knn.metric.name, knn.parameters["k"], knn.text) == ("knn", 5, "knn(k=5)")
    assert asked_metric("map(ties=copairs,not_same_compound=true)").parameters["not_same_compound"] is True
    assert asked_metric(asked_metric("map(ties=copairs,null=0)").text).parameters["ties"] == "copairs"
    assert split("nsc, knn(k=11,exclude=nsb) ,map,") == ["nsc", "knn(k=11,exclude=nsb)", "map"]
    assert asked_set("transfer:fields:sphering", "none") == ("transfer", "fields:sphering")
    assert asked_set("transfer", "moshkov") == ("transfer", "moshkov")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ncs", "unknown metric 'ncs'. Did you mean 'nsc'"),
        ("knn(n=3)", "unknown parameter of metric 'knn' 'n'"),
        ("knn(k=)", "metric 'knn\\(k=\\)': parameter 'k' has no value: write k="),
        ("knn(k=few)", "metric 'knn': k=few is not a whole number"),
        ("map(not_same_compound=si)", "not_same_compound=si is not true or false"),
        ("knn(k=1,k=2)", "metric 'knn\\(k=1,k=2\\)': k is there twice"),
        ("ari(seed=-1)", "seed -1 is negative"),
        ("knn(k=1", "metric 'knn\\(k=1' is not written as a name"),
    ],
)
def test_a_metric_that_is_not_one_is_refused(text, message):
    with pytest.raises((EvaluationError, UnknownNameError), match=message):
        asked_metric(text)
