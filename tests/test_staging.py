"""A screen whose images are on S3 gives the same lake as the same screen on disk, and leaves nothing behind."""

import shutil
import tempfile
from pathlib import Path

import polars as pl
import pytest
from test_pipeline import Statistics

from extractors.pipeline import PipelineSettings, ingest_screen
from extractors.simulator import CHANNELS, SimulatorSettings, simulate_screen
from extractors.staging import staged
from warehouse.errors import LakeUnavailableError, PlaceError, ScreenError
from warehouse.lake import Lake
from warehouse.screens import read_screen

SCREEN = SimulatorSettings(
    batches=1, plates_per_batch=2, wells_per_plate=4, phenotypes=1, compounds_per_phenotype=1, doses=(2.0,),
    dmso_wells=2, positive_wells=1, fields=1, field_px=96, cells_per_field=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    return simulate_screen(tmp_path_factory.mktemp("simulated") / "screen", SCREEN).folder


@pytest.fixture
def remote(simulated, s3) -> tuple[str, Path]:
    """The screen in a bucket: its location, and the folder behind it."""
    bucket = s3.new_bucket()
    folder = Path(shutil.copytree(simulated, s3.folder / bucket / "screen"))
    return f"s3://{bucket}/screen", folder


@pytest.fixture
def staging(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def rows(lake: Lake, query: str) -> list[tuple]:
    return lake.frame(query).rows()


def numbers(lake: Lake) -> dict[str, list[tuple]]:
    found = {name: rows(lake, f"SELECT * FROM statistics.{name} ORDER BY ALL") for name in ("cells", "wells")}
    found["loads"] = rows(lake, "SELECT plate, content_hash, images_in, cells_in, wells_in FROM main.plate_loads "
                                "ORDER BY ALL")  # fmt: skip
    found["digests"] = rows(
        lake, "SELECT plate, well, field, channels, planes, digests FROM main.fields ORDER BY ALL"
    )
    return found


def jump_manifest(folder: Path, location: str, as_url: bool) -> Path:
    """Write the screen's manifest as a load_data.csv whose images are where `location` says."""
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    out = {f"Metadata_{name}": table[column] for name, column in (
        ("Source", "source"), ("Batch", "batch"), ("Plate", "plate"), ("Well", "well"), ("Site", "field"))}  # fmt: skip
    for channel in CHANNELS:
        paths = [f"{location}/{path}" for path in table[f"path_{channel}"]]
        if as_url:
            out[f"URL_Orig{channel}"] = pl.Series(paths)
        else:
            out[f"PathName_Orig{channel}"] = pl.Series([path.rpartition("/")[0] + "/" for path in paths])
            out[f"FileName_Orig{channel}"] = pl.Series([path.rpartition("/")[2] for path in paths])
    path = folder / "load_data.csv"
    pl.DataFrame(out).write_csv(path)
    return path


def test_a_screen_on_s3_gives_the_same_wells_as_on_disk(simulated, remote, tmp_path, staging):
    location, folder = remote
    with Lake.create(tmp_path / "a") as lake:
        ingest_screen(
            lake,
            read_screen(simulated / "manifest.csv", layout=simulated / "layout.csv"),
            Statistics(CHANNELS),
        )
        expected = numbers(lake)
    manifests = {
        "plain": f"{location}/manifest.csv",
        "url": jump_manifest(folder, location, as_url=True),
        "folders": jump_manifest(folder, location, as_url=False),
    }
    for name, manifest in manifests.items():
        screen = read_screen(manifest, layout=f"{location}/layout.csv")
        assert screen.manifest["path"].str.starts_with(f"{location}/images/").all(), name
        with Lake.create(tmp_path / name) as lake:
            reports = ingest_screen(lake, screen, Statistics(CHANNELS))
            assert [report.outcome for report in reports] == ["added", "added"]
            assert numbers(lake) == expected
            paths = [path for (found,) in rows(lake, "SELECT paths FROM main.fields") for path in found]
            assert sorted(paths) == sorted(screen.manifest["path"])
            again = ingest_screen(lake, screen, Statistics(CHANNELS))
            assert [report.outcome for report in again] == ["unchanged", "unchanged"]
    assert list(staging.iterdir()) == []


def test_images_may_be_found_below_a_prefix(simulated, remote, tmp_path):
    location, folder = remote
    manifest = jump_manifest(folder, "/home/ubuntu/bucket/screen", as_url=False)
    found = read_screen(manifest, images=location).manifest
    assert found["path"].str.starts_with(f"{location}/images/").all()
    plain = read_screen(folder / "manifest.csv", images=location).manifest
    assert sorted(plain["path"]) == sorted(found["path"])
    # Recorded on S3, copied to this machine: found there by the same rule.
    local = read_screen(jump_manifest(folder, location, as_url=False), images=simulated).manifest
    assert local["path"].str.starts_with(f"{simulated}/images/").all()
    with pytest.raises(ScreenError, match=r"images folder s3://.*/none: there is no such folder"):
        read_screen(manifest, images=f"{location}/none")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("s3://bucket-1/../../etc/passwd.tif", "is no address s3://bucket/key without"),
        ("s3://bucket-1//a.tif", "is no address s3://bucket/key without"),
        ("s3:///a.tif", "is no address s3://bucket/key without"),
        ("https://bucket/a.tif", "is an address, and only files are read, on disk or on s3://"),
        ("S3://bucket/a.tif", "is an address, and only files are read, on disk or on s3://"),
    ],
)
def test_hostile_addresses_in_a_manifest_are_refused(path, reason, tmp_path):
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"plate,well,field,channel,path\nP1,A01,1,DNA,{path}\n")
    with pytest.raises(ScreenError, match=reason):
        read_screen(manifest)


def test_a_missing_and_a_damaged_file_reject_their_fields_by_their_addresses(remote, tmp_path, staging):
    location, folder = remote
    screen = read_screen(f"{location}/manifest.csv")
    first, second = (
        part["path"][0]
        for part in screen.manifest.filter(plate="SYNTH-B1-P1").partition_by("well", "field")[:2]
    )
    (folder / first.removeprefix(f"{location}/")).unlink()
    (folder / second.removeprefix(f"{location}/")).write_bytes(b"no image")
    with Lake.create(tmp_path / "lake") as lake:
        report = ingest_screen(lake, screen, Statistics(CHANNELS))[0]
        assert (report.images_in, report.images_rejected) == (2, 2)
        reasons = [reason for (reason,) in rows(lake, "SELECT reason FROM main.rejections ORDER BY well")]
        assert reasons[0].startswith(f"{first}: no such file")
        assert reasons[1].startswith(f"{second}: cannot be decoded")
        # Gone after it came in: told by its address, and not taken for new content.
        (
            folder / screen.manifest.filter(plate="SYNTH-B1-P1")["path"][-1].removeprefix(f"{location}/")
        ).unlink()
        report = ingest_screen(lake, screen, Statistics(CHANNELS))[0]
        assert report.outcome == "failed"
        assert "1 files of images that are in the lake are not there now (first: s3://" in report.reason
    assert list(staging.iterdir()) == []


def test_s3_down_stops_the_night_and_blames_no_plate(remote, tmp_path, s3, staging):
    location, _ = remote
    screen = read_screen(f"{location}/manifest.csv")
    with Lake.create(tmp_path / "lake") as lake:
        with s3.stopped(), pytest.raises(LakeUnavailableError, match="cannot be reached"):
            ingest_screen(lake, screen, Statistics(CHANNELS))
        assert rows(lake, "SELECT * FROM main.plates") == []
        assert {report.outcome for report in ingest_screen(lake, screen, Statistics(CHANNELS))} == {"added"}
    assert list(staging.iterdir()) == []


def test_no_permission_fails_the_plate_with_its_reason(remote, tmp_path, monkeypatch, staging):
    screen = read_screen(f"{remote[0]}/manifest.csv")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret-key")
    with Lake.create(tmp_path / "lake") as lake:
        reports = ingest_screen(lake, screen, Statistics(CHANNELS))
    assert [report.outcome for report in reports] == ["failed", "failed"]
    assert "S3 refuses access" in reports[0].reason
    assert list(staging.iterdir()) == []


def test_only_one_plate_lies_in_the_folder_that_was_asked_for(remote, tmp_path):
    screen = read_screen(f"{remote[0]}/manifest.csv")
    folder, most = tmp_path / "big disk", []
    folder.mkdir()

    class Watching(Statistics):
        def extract(self, samples):
            most.append(sum(path.is_file() for path in folder.rglob("*")))
            return super().extract(samples)

    with Lake.create(tmp_path / "lake") as lake:
        extractor = Watching(CHANNELS)
        extractor.name = "statistics"
        ingest_screen(lake, screen, extractor, settings=PipelineSettings(staging=folder))
    assert {*most} == {screen.manifest.filter(plate="SYNTH-B1-P1").height}
    assert list(folder.iterdir()) == []


def test_local_images_are_left_where_they_are(simulated, staging):
    table = read_screen(simulated / "manifest.csv").manifest
    with staged(table) as found:
        assert found.rows is table
        assert found.original("a /tmp/x") == "a /tmp/x"
        assert list(staging.iterdir()) == []


def test_the_folder_is_gone_after_an_error_too(remote, staging):
    table = read_screen(f"{remote[0]}/manifest.csv").manifest

    def broken() -> None:
        with staged(table) as found:
            assert len([path for path in staging.rglob("*") if path.is_file()]) == table["path"].n_unique()
            message = f"{found.rows['path'][0]}: broken"
            raise PlaceError(message)

    with pytest.raises(PlaceError, match=f"^{table['path'][0]}: broken$"):
        broken()
    assert list(staging.iterdir()) == []
