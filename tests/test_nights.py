"""The night job on tables of profiles: what is new goes in, once; what fails is kept aside; what is done stays done."""

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from builders import new_lake

from warehouse import quarantine
from warehouse.errors import UnknownNameError
from warehouse.nights import report
from warehouse.nights.config import read_config
from warehouse.nights.jobs import ImagesJob, JobError, ProfilesJob, from_dict, to_dict
from warehouse.nights.night import nightly
from warehouse.nights.plan import make_plan
from warehouse.nights.profiles import take_profiles
from warehouse.nights.retry import retry
from warehouse.status import faults

TAKERS = {ProfilesJob: take_profiles}
FEATURES = ["Cells_a", "Cells_b", "Cells_c", "Cells_d"]
NIGHT = """
settle_seconds = 0

[[profiles]]
name = "screen"
path = "incoming"
pattern = "*.parquet"
feature_set = "cellprofiler"
batch = "b1"
layout = "layout.csv"
annotations = "labels.csv"

[[feature_set]]
name = "cellprofiler"
recipes = ["standardize"]
index = ["standardize"]
evaluate = ["standardize"]
metrics = ["nsc"]
"""


def write_plate(folder: Path, name: str, seed: int, features=FEATURES, wells=12) -> Path:
    """A plate of 4 DMSO wells and 8 treated ones, with seeded profiles."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(wells, len(features))).astype(np.float32)
    table = pl.DataFrame(values, schema=features).with_columns(
        pl.lit(name).alias("Metadata_Plate"),
        pl.Series("Metadata_Well", [f"A{i + 1:02d}" for i in range(wells)]),
    )
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.parquet"
    table.write_parquet(path)
    return path


def write_layout(folder: Path, plates: list[str], controls: set[str] | None = None) -> None:
    rows = [
        f"{plate},A{i + 1:02d},{'DMSO' if i < 4 else f'c{i}'},{'' if i < 4 else 1},{'' if i < 4 else 'uM'},"
        + ("negative" if i < 4 and (controls is None or plate in controls) else "none")
        for plate in plates
        for i in range(12)
    ]
    text = "\n".join(["plate,well,compound,concentration,unit,control_type", *rows])
    (folder / "layout.csv").write_text(text + "\n", encoding="utf-8")


@pytest.fixture
def world(tmp_path):
    """A configuration, two plates, their layout and labels, and an empty lake."""
    labels = [f"c{i},moa,{'even' if i % 2 == 0 else 'odd'}" for i in range(4, 12)]
    (tmp_path / "labels.csv").write_text("\n".join(["compound,kind,label", *labels]) + "\n", encoding="utf-8")
    (tmp_path / "night.toml").write_text(NIGHT, encoding="utf-8")
    write_layout(tmp_path, ["p1", "p2", "p3"])
    for seed, name in enumerate(("p1", "p2")):
        write_plate(tmp_path / "incoming", name, seed)
    with new_lake(tmp_path / "lake") as lake:
        yield lake, tmp_path


def do(lake, folder, takers=TAKERS):
    return nightly(lake, read_config(folder / "night.toml"), takers)


def outcomes(night):
    return [
        (result.step, result.item, result.outcome)
        for result in night.results
        if result.outcome != "unchanged"
    ]


def test_a_night_takes_in_corrects_indexes_scores_and_checks(world):
    lake, folder = world
    night = do(lake, folder)
    assert outcomes(night) == [
        ("ingest", "default/b1/p1", "added"),
        ("ingest", "default/b1/p2", "added"),
        ("labels", str(folder / "labels.csv"), "updated"),
        ("correct", "cellprofiler standardize", "fitted"),
        ("index", "cellprofiler standardize", "built"),
        ("evaluate", "cellprofiler standardize", "scored"),
        ("check", "all checks", "passed"),
    ]
    assert night.is_good
    assert lake.value("SELECT count(*) FROM cellprofiler.wells__standardize") == 24
    run = lake.frame("SELECT command, outcome, snapshot_before, snapshot_after, counts FROM main.runs").rows()
    assert run == [("nightly", "done", 1, night.snapshot_after - 1, run[0][4])]
    assert json.loads(run[0][4])["plates_added"] == 2
    steps = lake.frame("SELECT step, item, outcome FROM main.night_steps ORDER BY position").rows()
    assert steps == [one for one in outcomes(night) if one[0] not in ("ingest", "check")]


def test_a_second_night_does_nothing(world):
    lake, folder = world
    do(lake, folder)
    before = lake.snapshot()
    night = do(lake, folder)
    assert outcomes(night) == [("check", "all checks", "passed")]
    assert (night.plan.done, night.is_good, night.did_something) == (2, True, False)
    assert (lake.snapshot(), lake.value("SELECT count(*) FROM main.runs")) == (before, 1)
    assert report.headline(night) == "nothing new, 2 in already"


def test_new_changed_and_touched_plates(world):
    lake, folder = world
    do(lake, folder)
    held = lake.snapshot()
    former = lake.frame(
        "SELECT well, embedding FROM cellprofiler.wells WHERE plate = 'p1' ORDER BY well"
    ).rows()
    write_plate(folder / "incoming", "p1", 100)
    os.utime(folder / "incoming" / "p2.parquet", (1_000_000_000, 1_000_000_000))
    write_plate(folder / "incoming", "p3", 3)
    plan = make_plan(lake, read_config(folder / "night.toml"))
    assert plan.frame().select("plate", "action", "why").rows() == [
        ("p1.parquet", "take in", "new"), ("p2.parquet", "take in", "new"), ("p3.parquet", "take in", "new"),
    ]  # fmt: skip
    night = do(lake, folder)
    assert outcomes(night)[:3] == [
        ("ingest", "default/b1/p1", "replaced"),
        ("ingest", "default/b1/p3", "added"),
        ("correct", "cellprofiler standardize", "extended"),
    ]
    # One snapshot replaced it: the former content is where the history says.
    history = lake.frame("SELECT former_snapshot FROM main.plate_history WHERE outcome = 'replaced'")
    assert history["former_snapshot"].to_list() == [held]
    query = f"SELECT well, embedding FROM cellprofiler.wells AT (VERSION => {held}) WHERE plate = 'p1' ORDER BY well"
    assert lake.frame(query).rows() == former
    assert outcomes(do(lake, folder)) == [("check", "all checks", "passed")]


def test_a_plate_that_fails_is_kept_aside_and_the_others_go_on(world):
    lake, folder = world
    empty = pl.read_parquet(folder / "incoming" / "p1.parquet").with_columns(
        pl.lit(None).cast(pl.Float32).alias(f) for f in FEATURES
    )
    empty.with_columns(pl.lit("nan").alias("Metadata_Plate")).write_parquet(
        folder / "incoming" / "nan.parquet"
    )
    (folder / "incoming" / "garbage.parquet").write_bytes(b"PAR1 this is none")
    write_plate(folder / "incoming", "q4", 4, features=[*FEATURES[:3], "Cells_z"])
    night = do(lake, folder)
    assert not night.is_good
    assert [one for one in outcomes(night) if one[0] == "ingest"] == [
        ("ingest", "default/default/garbage.parquet", "quarantined"),
        ("ingest", "default/b1/nan", "quarantined"),
        ("ingest", "default/b1/p1", "added"),
        ("ingest", "default/b1/p2", "added"),
        ("ingest", "default/default/q4.parquet", "quarantined"),
    ]
    reasons = {one.key[2]: one.reason for one in quarantine.read(lake)}
    assert reasons.keys() == {"garbage.parquet", "nan", "q4.parquet"}
    assert "garbage.parquet: " in reasons["garbage.parquet"]
    assert "Cells_z" in reasons["q4.parquet"]
    before = lake.snapshot()
    again = do(lake, folder)
    assert (again.plan.held, again.is_good, lake.snapshot()) == (3, True, before)
    assert report.headline(again) == "nothing new, 2 in already, 3 in quarantine"
    # Mended files are tried again by the next night, without a word.
    write_plate(folder / "incoming", "garbage", 5)
    mended = do(lake, folder)
    assert ("ingest", "default/b1/garbage", "added") in outcomes(mended)
    assert {one.key[2] for one in quarantine.read(lake)} == {"nan", "q4.parquet"}
    assert faults(lake) == {}


def test_retry_tries_again_what_the_files_do_not_tell(world):
    """What is wrong may lie elsewhere: a setting, a folder's permissions, a plate of another batch."""
    lake, folder = world
    path = write_plate(folder / "incoming", "p9", 9)
    path.chmod(0o000) if os.getuid() else path.rename(path.with_suffix(".away"))
    broken = folder / "incoming" / "p9.parquet"
    if not os.getuid():
        broken.mkdir()
        (broken / "part.csv").write_text("x\n1\n")
    do(lake, folder)
    with pytest.raises(UnknownNameError, match="unknown plate in quarantine 'p8'"):
        retry(lake, "p8", TAKERS)
    held = quarantine.read(lake)
    for one in held:
        (failed,) = retry(lake, one.key[2], TAKERS)
        assert failed.outcome == "failed"
    assert [one.tries for one in quarantine.read(lake)] == [2] * len(held)


def test_still_arriving_files_wait(world):
    lake, folder = world
    text = (folder / "night.toml").read_text().replace("settle_seconds = 0", "settle_seconds = 3600")
    (folder / "night.toml").write_text(text)
    os.utime(folder / "incoming" / "p1.parquet", (1_000_000_000, 1_000_000_000))
    night = do(lake, folder)
    assert [one for one in outcomes(night) if one[0] == "ingest"] == [("ingest", "default/b1/p1", "added")]
    (waits,) = night.waiting
    assert waits.item == "p2.parquet"
    assert "p2.parquet" in waits.waits_for
    assert night.is_good


def test_a_plate_without_controls_goes_in_and_is_left_out_by_name(world):
    lake, folder = world
    write_layout(folder, ["p1", "p2"], controls={"p1"})
    night = do(lake, folder)
    assert night.is_good
    (corrected,) = [result for result in night.results if result.step == "correct"]
    assert corrected.detail == (
        "1 plates, 12 wells; left out: p2 (standardize: its plate has 0 negative control(s), at least 2 needed)"
    )
    # The layout is mended: the plate is relabelled without reading its file again, and corrected.
    write_layout(folder, ["p1", "p2"])
    mended = do(lake, folder)
    assert outcomes(mended)[:2] == [
        ("layout", str(folder / "layout.csv"), "updated"),
        ("correct", "cellprofiler standardize", "extended"),
    ]
    assert lake.value("SELECT count(*) FROM cellprofiler.wells__standardize") == 24


def test_a_night_that_was_cut_short_is_taken_up(world):
    lake, folder = world
    calls = []

    class Killed(BaseException):
        pass

    def dies(*args):
        calls.append(args)
        if len(calls) == 2:
            raise Killed
        return take_profiles(*args)

    with pytest.raises(Killed):
        do(lake, folder, {ProfilesJob: dies})
    assert lake.frame("SELECT finished_at FROM main.runs").rows() == [(None,)]
    night = do(lake, folder)
    assert night.cut_short is not None
    assert outcomes(night)[0] == ("ingest", "default/b1/p2", "added")
    assert "which did not end" in report.markdown(night)


def test_a_file_of_several_plates_is_taken_up_where_it_stopped(world, monkeypatch):
    lake, folder = world
    both = pl.concat(pl.read_parquet(folder / "incoming" / f"{name}.parquet") for name in ("p1", "p2"))
    for name in ("p1", "p2"):
        (folder / "incoming" / f"{name}.parquet").unlink()
    both.write_parquet(folder / "incoming" / "both.parquet")
    from warehouse import importers, ingest

    commit, calls = ingest.commit_plate, []

    def dies(*args, **named):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return commit(*args, **named)

    monkeypatch.setattr(importers.ingest, "commit_plate", dies)
    with pytest.raises(KeyboardInterrupt):
        do(lake, folder)
    plan = make_plan(lake, read_config(folder / "night.toml"))
    assert [take.why for take in plan.takes] == ["cut short"]
    assert ("ingest", "default/b1/p2", "added") in outcomes(do(lake, folder))
    assert make_plan(lake, read_config(folder / "night.toml")).done == 1


def test_the_report_tells_all_of_it(world):
    lake, folder = world
    (folder / "incoming" / "bad|name.parquet").write_bytes(b"none")
    night = do(lake, folder)
    path = report.save(night)
    assert path.parent == lake.folder / "reports"
    page = path.read_text()
    assert report.headline(night) in page
    assert "2 plates added, 1 plates quarantined, 1 in quarantine" in page
    assert "| ingest | default/b1/p1 | added |" in page
    assert "bad\\|name.parquet" in page
    assert json.loads(json.dumps(report.document(night)))["counts"]["plates_added"] == 2


# ------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = [", "cannot be read as TOML"),
        ("settle = 1", r"unknown setting in .*night.toml 'settle'. Did you mean 'settle_seconds'\?"),
        ("settle_seconds = -1", "settle_seconds = -1 is below 0"),
        ("settle_seconds = true", "settle_seconds = True has the wrong type, float is needed"),
        ("verify = 'fast'", "unknown verify in .* 'fast'"),
        ("profiles = 1", r"write each profiles as a table of its own, \[\[profiles\]\]"),
        ("[[profiles]]\npath = 'x'", "has no 'feature_set': add it"),
        ("[[profiles]]\nfeature_set = 'x'", "has no 'path': add it"),
        ("[[profiles]]\npath = 'x'\nfeature_set = 1", "feature_set = 1 has the wrong type, str is needed"),
        ("[[profiles]]\npath = 'x'\nfeature_set = 'y'\nlayouts = 'z'", "Did you mean 'layout'"),
        ("[[profiles]]\npath = 'x'\nfeature_set = 'y'\nunits = 'plates'", "unknown units in .* 'plates'"),
        ("[[profiles]]\npath = 'x'\nfeature_set = 'y'\n" * 2, "two inputs are named"),
        ("[[images]]\npath = 'x'", r"extractors = None: list at least one"),
        ("[[images]]\npath = 'x'\nextractors = [1]", "extractors: 1 is no name"),
        ("[[images]]\npath = 'x'\nextractors = [{name = 't', setting = {}}]", "Did you mean 'settings'"),
        (
            "[[images]]\npath = 'x'\nextractors = ['t']\nchannels = 'DNA'",
            "channels = 'DNA' has the wrong type, tuple",
        ),
        ("[[feature_set]]\nrecipes = ['a']", "has no 'name': add the feature set's"),
        (
            "[[feature_set]]\nname = 'a'\nrecipes = 'b'",
            "recipes = 'b' has the wrong type, a list of texts is needed",
        ),
        ("[[feature_set]]\nname = 'a'\nindex = ['b']", "unknown recipe to index or evaluate in .* 'b'"),
        ("[[feature_set]]\nname = 'a'\nmetrics = ['nsc']", "metrics and evaluate go together"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_done(tmp_path, text, message):
    path = tmp_path / "night.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises((JobError, UnknownNameError), match=message):
        read_config(path)


def test_paths_count_from_the_configuration(tmp_path):
    path = tmp_path / "night.toml"
    text = """
lake = 'here.lake'
reports = 'r'
[[images]]
path = 's3://bucket/screens'
layout = 'maps'
extractors = ['transfer', {name = 'transfer', feature_set = 'big', settings = {size = 256}}]
"""
    path.write_text(text, encoding="utf-8")
    config = read_config(path)
    assert (config.lake, config.reports) == (str(tmp_path / "here.lake"), str(tmp_path / "r"))
    first, second = (one.job for one in config.inputs)
    assert isinstance(first, ImagesJob)
    assert (first.path, first.layout, first.target) == (
        "s3://bucket/screens",
        str(tmp_path / "maps"),
        "transfer",
    )
    assert (second.target, second.settings) == ("big", {"size": 256})
    path.write_text("lake = 'postgres:dbname=lake'", encoding="utf-8")
    assert read_config(path).lake == "postgres:dbname=lake"
    with pytest.raises(JobError, match=r"nowhere\.toml: there is no such file"):
        read_config(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    "job",
    [
        ProfilesJob("/a/b.csv", "set", columns={"plate": "Barcode"}, plates=("p1",), replace=True),
        ImagesJob("s3://b/m.csv", "transfer", "big", {"size": 64}, channels=("DNA", "ER"), wells=("A01",)),
    ],
)
def test_a_job_can_be_kept_and_read_back(job):
    assert from_dict(json.loads(json.dumps(to_dict(job))), "a test") == job


def test_a_kept_job_is_checked(world):
    with pytest.raises(UnknownNameError, match="unknown kind of job in x 'folders'"):
        from_dict({"kind": "folders"}, "x")
    with pytest.raises(UnknownNameError, match=r"unknown setting in x 'layuot'\. Did you mean 'layout'"):
        from_dict({"kind": "profiles", "path": "a", "feature_set": "b", "layuot": "c"}, "x")
