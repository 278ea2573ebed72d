"""Embedding what the lake knows gives what ingestion gives, byte for byte, and takes up again where it stopped."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile
from builders import TINY, commit, new_lake, plate

from extractors import embedding, extraction, pipeline, registry
from extractors.base import FieldSample, SettingError
from extractors.crops import cut_crops
from extractors.embedding import PipelineSettings
from extractors.extraction import Asked, extract
from extractors.images import digest
from extractors.pipeline import ingest_screen
from extractors.plate_images import PlateImage
from extractors.registry import Entry
from extractors.segment import SegmentSettings
from extractors.simulator import SimulatorSettings, simulate_screen
from extractors.training import illumination
from extractors.training.illumination import evenly
from warehouse import feature_sets, status
from warehouse.errors import (
    ImageError,
    LakeUnavailableError,
    ProfileError,
    ScreenError,
    SearchError,
    TrainingError,
    UnknownNameError,
)
from warehouse.lake import Lake
from warehouse.screens import Screen, read_screen

SCREEN = SimulatorSettings(
    batches=2, plates_per_batch=1, wells_per_plate=4, phenotypes=1, compounds_per_phenotype=1, doses=(2.0,),
    dmso_wells=2, positive_wells=1, fields=1, field_px=128, cells_per_field=6,
)  # fmt: skip
CHANNELS = ("DNA", "RNA")


class Around:
    """Mean of each channel around each nucleus, times a number: needs no masks, and is quick."""

    name, version, weights, dim = "around", "1", None, 2
    needs_masks = False

    def __init__(self, channels: tuple[str, ...], *, times: int = 1, device: str = "auto") -> None:
        self.channels, self.times, self.device = tuple(channels), times, device
        self.dim = len(channels)
        self.feature_names = tuple(f"mean_{channel}" for channel in channels)
        self.parameters: dict[str, object] = {"times": times}

    def extract(self, samples: list[FieldSample]) -> list[np.ndarray]:
        return [self._of(sample) for sample in samples]

    def _of(self, sample: FieldSample) -> np.ndarray:
        if sample.is_crop:
            return self.times * sample.pixels.mean(axis=(1, 2), dtype=np.float32)[None]
        crops = cut_crops(sample.pixels, sample.cells["x_px"].to_numpy(), sample.cells["y_px"].to_numpy(), 9)
        return self.times * crops.mean(axis=(2, 3), dtype=np.float32)


class Inside(Around):
    """Mean of each channel in each cell: needs masks, and says nothing of it, as an extractor need not."""

    name = "inside"

    def __getattribute__(self, name: str) -> object:
        if name == "needs_masks":
            raise AttributeError(name)
        return super().__getattribute__(name)

    def _of(self, sample: FieldSample) -> np.ndarray:
        assert sample.masks is not None
        masks = [sample.masks.cells == i + 1 for i in range(len(sample.cells))]
        rows = [sample.pixels[:, mask].mean(axis=1) for mask in masks]
        return np.array(rows, np.float32).reshape(-1, self.dim)


class Lit(Around):
    """Brightness around each nucleus, divided by that of the plate's fields."""

    name = "lit"
    needs_plate = True
    light = 0.0

    def for_plate(self, images) -> "Lit":
        made = Lit(self.channels, times=self.times)
        made.light = float(np.mean([image.mean() for image in images]))
        return made

    def _of(self, sample: FieldSample) -> np.ndarray:
        return super()._of(sample) / np.float32(self.light)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    added = (
        Entry(made.name, f"test_extraction:{made.__name__}", "cell", "-") for made in (Around, Inside, Lit)
    )
    monkeypatch.setattr(registry, "ALL", (*registry.ALL, *added))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    return simulate_screen(tmp_path_factory.mktemp("simulated") / "screen", SCREEN).folder


@pytest.fixture
def folder(simulated, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(simulated, tmp_path / "screen"))


@pytest.fixture(scope="module")
def _taken_in(tmp_path_factory, simulated) -> Path:
    """A lake that knows the screen's cells."""
    path = tmp_path_factory.mktemp("lakes") / "known"
    with Lake.create(path) as lake:
        taken_in(lake, simulated, Inside(CHANNELS))
    return path


@pytest.fixture
def known(_taken_in, tmp_path):
    """A copy of it."""
    with Lake.open(shutil.copytree(_taken_in, tmp_path / "known")) as lake:
        yield lake


@pytest.fixture
def lake(tmp_path):
    with new_lake(tmp_path / "lake") as made:
        yield made


def screen_of(folder: Path) -> Screen:
    return read_screen(folder / "manifest.csv", layout=folder / "layout.csv")


def taken_in(lake: Lake, folder: Path, extractor=None, **settings) -> list:
    """Ingest the screen, by default with what needs masks."""
    name = settings.pop("feature_set", None)
    made = extractor or Inside(CHANNELS)
    return ingest_screen(
        lake, screen_of(folder), made, feature_set=name, settings=PipelineSettings(**settings)
    )


def content(lake: Lake, feature_set: str) -> dict[str, list[tuple]]:
    """What commits wrote of a feature set, without run and time."""
    found = {
        name: lake.frame(f"SELECT * FROM {feature_set}.{name} ORDER BY ALL").rows()
        for name in ("cells", "fields", "wells")
    }
    for name in ("rejections", "plate_loads"):
        less = ", run, loaded_at" if name == "plate_loads" else ""
        query = f"SELECT * EXCLUDE (feature_set{less}) FROM main.{name} WHERE feature_set = ? ORDER BY ALL"
        found[name] = lake.frame(query, [feature_set]).rows()
    return found


def shared(lake: Lake) -> dict[str, list[tuple]]:
    return {
        name: lake.frame(f"SELECT * FROM main.{name} ORDER BY ALL").rows()
        for name in ("fields", "field_quality", "wells", "plates")
    }


def files(folder: Path, channel: str = "RNA") -> list[Path]:
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    return [folder / path for path in table[f"path_{channel}"]]


def forbidden(what: str) -> Callable[..., None]:
    return lambda *_, **__: pytest.fail(f"{what}, and should not be")


# ------------------------------------------------------------------------------------------ the same as ingest


@pytest.mark.parametrize(
    ("name", "settings", "is_segmented"),
    [
        ("around", {"times": 3}, False),
        ("inside", {"times": 3}, True),
        pytest.param("transfer", {"size": 16, "crop": 32}, False, marks=pytest.mark.slow),
    ],
)
def test_extract_gives_byte_for_byte_what_ingest_gives(
    known, simulated, monkeypatch, name, settings, is_segmented
):
    if name == "transfer":
        from extractors.transfer import Transfer

        monkeypatch.setattr(Transfer, "needs_masks", False, raising=False)
    before = shared(known)
    with monkeypatch.context() as patch:
        if not is_segmented:
            patch.setattr(embedding, "segment", forbidden("a field was segmented"))
        patch.setattr(embedding, "measured", forbidden("quality was measured"))
        made = extract(known, Asked("wanted", name, settings=settings))
    assert [report.outcome for report in made.reports] == ["added", "added"]
    assert made.reports[0].images_in == 4
    assert made.reports[0].cells_in > 8
    assert shared(known) == before
    assert status.faults(known) == {}
    run = known.frame("SELECT command, outcome FROM main.runs ORDER BY started_at").rows()[-1]
    assert run == ("extract", "done")
    taken_in(known, simulated, registry.create(name, CHANNELS, settings), feature_set="expected")
    assert_equal(known)
    assert shared(known) == before


def assert_equal(lake: Lake, found: str = "wanted", expected: str = "expected") -> None:
    """Two feature sets are one in all but their names, content hashes and identity included."""
    assert content(lake, found)["cells"]
    assert content(lake, found) == content(lake, expected)
    assert feature_sets.find(lake, found).identity() == feature_sets.find(lake, expected).identity()


@pytest.mark.slow
def test_weights_of_the_package_are_named_once(known):
    settings: dict[str, object] = {"preset": "small", "size": 32}
    first = Asked("baseline", "imagenet_efficientnet", settings=settings, plates=("SYNTH-B1-P1",))
    for asked in (first, Asked("baseline", plates=("SYNTH-B2-P1",))):
        assert [report.outcome for report in extract(known, asked).reports] == ["added"]


def test_nights_and_extract_interchange(known, simulated, monkeypatch):
    extract(known, Asked("wanted", "around"))
    by_ingest = taken_in(known, simulated, Around(CHANNELS), feature_set="wanted")
    assert {report.outcome for report in by_ingest} == {"unchanged"}
    monkeypatch.setattr(embedding, "read_field", forbidden("an image was read"))
    monkeypatch.setattr(embedding, "digest", forbidden("an image was read"))
    snapshot = known.snapshot()
    for name in ("wanted", "inside"):
        reports = extract(known, Asked(name)).reports
        assert reports == [replace(each, outcome="unchanged") for each in taken_reports(known, name)]
    assert known.snapshot() == snapshot


def taken_reports(lake: Lake, name: str) -> list:
    query = (
        "SELECT source, batch, plate, 'added', images_in, images_rejected, cells_in, cells_rejected, wells_in "
        "FROM main.plate_loads WHERE feature_set = ? ORDER BY ALL"
    )
    return [pipeline.PlateReport(*row) for row in lake.frame(query, [name]).rows()]


def test_a_manifest_of_more_channels_is_the_same_plate(lake, simulated):
    """The screen has five channels; what decides an embedding are the two that are used."""
    taken_in(lake, simulated, Inside(("DNA", "RNA", "ER")))
    extract(lake, Asked("wanted", "around", channels=("DNA", "RNA")))
    again = taken_in(lake, simulated, Around(CHANNELS), feature_set="wanted")
    assert {report.outcome for report in again} == {"unchanged"}


def test_images_without_cells_and_those_that_cannot_be_used_are_as_by_ingest(lake, folder, monkeypatch):
    """A file that is damaged, one that is missing, and noise, which is known to have no cell."""
    paths = files(folder)
    paths[0].write_bytes(b"II*\0")
    paths[1].unlink()
    noise = np.random.default_rng(0).normal(120, 5, (128, 128)).astype(np.uint16)
    for channel in CHANNELS:
        tifffile.imwrite(files(folder, channel)[2], noise)
    taken_in(lake, folder)
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "segment", forbidden("a field was segmented"))
        first, second = extract(lake, Asked("wanted", "around")).reports
    assert (first.images_in, first.images_rejected, first.wells_in, second.images_rejected) == (2, 2, 1, 0)
    taken_in(lake, folder, Around(CHANNELS), feature_set="expected")
    assert_equal(lake)
    assert len(content(lake, "wanted")["rejections"]) == 2


class Picky(Inside):
    """Has no value for the first cell of a field."""

    def _of(self, sample: FieldSample) -> np.ndarray:
        rows = super()._of(sample)
        rows[:1] = np.nan
        return rows


def test_cells_that_another_extractor_rejected_are_found_again(lake, simulated, monkeypatch):
    """Its table lacks them: the fields are segmented, and no cell is lost unseen."""
    rejected = sum(report.cells_rejected for report in taken_in(lake, simulated, Picky(CHANNELS)))
    assert rejected > 5
    calls = []
    original = embedding.segment
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "segment", lambda *given: calls.append(1) or original(*given))
        extract(lake, Asked("wanted", "around"))
    assert len(calls) == rejected  # a field each; one without cells is known to have none
    taken_in(lake, simulated, Around(CHANNELS), feature_set="expected")
    assert_equal(lake)


def test_single_cell_images_are_embedded_as_they_are(lake, folder, monkeypatch):
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    table.with_columns(cell=pl.col("field"), field=pl.lit("1")).write_csv(folder / "manifest.csv")
    monkeypatch.setattr(Lit, "for_plate", forbidden("a plate of single cells was looked at"))
    monkeypatch.setattr(Lit, "light", 1.0)
    taken_in(lake, folder, Around(CHANNELS), feature_set="first")
    made = extract(lake, Asked("wanted", "lit"))
    assert [(report.cells_in, report.outcome) for report in made.reports] == [(4, "added")] * 2
    taken_in(lake, folder, Lit(CHANNELS), feature_set="expected")
    assert_equal(lake)


def test_images_on_s3_are_fetched_and_named_by_where_they_are(lake, simulated, s3):
    bucket = s3.new_bucket()
    behind = Path(shutil.copytree(simulated, s3.folder / bucket / "screen"))
    screen = read_screen(f"s3://{bucket}/screen/manifest.csv", layout=f"s3://{bucket}/screen/layout.csv")
    ingest_screen(lake, screen, Inside(CHANNELS))
    extract(lake, Asked("wanted", "around"))
    ingest_screen(lake, screen, Around(CHANNELS), feature_set="expected")
    assert_equal(lake)
    path = files(behind)[0]
    path.write_bytes(path.read_bytes() + b"\0")
    (first, second) = extract(lake, Asked("more", "around", settings={"times": 2})).reports
    assert (first.outcome, second.outcome) == ("failed", "added")
    assert first.reason.startswith(f"s3://{bucket}/screen/{path.relative_to(behind)}: had digest ")


# ------------------------------------------------------------------------------------------ again and again


def test_extraction_goes_on_where_it_was_stopped(known):
    lake = known

    def stop(plate: str, done: int, total: int) -> None:
        if plate.startswith("SYNTH-B2") and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(lake, Asked("wanted", "around"), stop)
    assert lake.value("SELECT count(*) FROM main.plate_loads WHERE feature_set = 'wanted'") == 1
    told = []
    reports = extract(lake, Asked("wanted"), lambda *each: told.append(each)).reports
    assert [report.outcome for report in reports] == ["unchanged", "added"]
    assert told[0] == ("SYNTH-B1-P1", 4, 4)
    assert told[-1] == ("SYNTH-B2-P1", 4, 4)
    assert status.faults(lake) == {}


def test_files_that_are_not_those_that_came_in_are_refused_for_their_plate(lake, folder):
    path = files(folder)[0]
    taken_in(lake, folder)
    path.write_bytes(path.read_bytes() + b"\0")
    first, second = extract(lake, Asked("wanted", "around")).reports
    assert (first.outcome, second.outcome) == ("failed", "added")
    assert first.reason.startswith(f"{path}: had digest ")
    assert lake.value("SELECT outcome FROM main.runs ORDER BY started_at DESC LIMIT 1") == "failed"
    taken_in(lake, folder)
    again = extract(lake, Asked("wanted")).reports
    assert [report.outcome for report in again] == ["added", "unchanged"]


def test_what_is_wrong_with_a_file_is_told(tmp_path):
    path = tmp_path / "a.tif"
    image = PlateImage("A01", "1", None, {"DNA": (path, None)})
    embedding.refuse_changed(image, {path: None})  # it is as it was: missing, and rejected when it is read
    with pytest.raises(
        ScreenError, match=r"a\.tif: is in the lake and is not there now: is the folder mounted\?"
    ):
        embedding.refuse_changed(image, {path: "ab" * 16})
    path.write_bytes(b"1")
    now = digest(path)
    embedding.refuse_changed(image, {path: now})
    embedding.refuse_changed(image, {})
    for was, told in ((None, "was not there"), ("ab" * 16, "had digest abababababababab…")):
        message = f"a.tif: {told} when the plate came in, and has {now[:16]}… now: ingest the plate again"
        with pytest.raises(ScreenError, match=message):
            embedding.refuse_changed(image, {path: was})


def test_a_plate_that_came_in_anew_is_embedded_anew(lake, folder):
    taken_in(lake, folder)
    extract(lake, Asked("wanted", "around"))
    path = files(folder, "DNA")[0]
    tifffile.imwrite(path, np.roll(tifffile.imread(path), 20, axis=0))
    taken_in(lake, folder)
    reports = extract(lake, Asked("wanted")).reports
    assert [report.outcome for report in reports] == ["replaced", "unchanged"]
    taken_in(lake, folder, Around(CHANNELS), feature_set="expected")
    assert_equal(lake)


def test_cells_of_other_images_are_not_taken(lake, folder, monkeypatch):
    """A later ingestion brought other pixels than the first feature set has: its cells are not of these images."""
    taken_in(lake, folder, feature_set="old")
    path = files(folder, "DNA")[0]
    tifffile.imwrite(path, np.roll(tifffile.imread(path), 20, axis=0))
    taken_in(lake, folder, Around(CHANNELS), feature_set="expected")
    calls = []
    original = embedding.segment
    monkeypatch.setattr(embedding, "segment", lambda *given: calls.append(1) or original(*given))
    extract(lake, Asked("wanted", "around", cells="old"))
    assert len(calls) == 4  # the fields of one plate of two
    assert_equal(lake)


# ------------------------------------------------------------------------------------------ what is asked for


def test_only_the_plates_asked_for(known):
    lake = known
    batch = lake.value("SELECT DISTINCT batch FROM main.plates ORDER BY 1 DESC LIMIT 1")
    for asked in ({"plates": ("SYNTH-B2-P1",)}, {"batches": (str(batch),)}):
        reports = extract(lake, Asked("wanted", "around", **asked)).reports
        assert [report.plate for report in reports] == ["SYNTH-B2-P1"]
    for asked, message in (
        ({"plates": ("SYNTH-B3-P1",)}, r"unknown plate with images 'SYNTH-B3-P1'\. Did you mean"),
        ({"sources": ("elsewhere",)}, r"unknown source with images 'elsewhere'"),
    ):
        with pytest.raises(UnknownNameError, match=message):
            extract(lake, Asked("wanted", **asked))


def test_plates_that_lack_a_channel_are_left_out_and_told(lake, simulated):
    screen = screen_of(simulated)
    for number, channels in ((1, ("DNA", "RNA", "ER")), (2, CHANNELS)):
        of_one = screen.only((f"SYNTH-B{number}-P1",))
        ingest_screen(lake, of_one, Around(channels), feature_set=f"of_{len(channels)}")
    made = extract(lake, Asked("wanted", "around", cells="of_3"))
    assert [report.plate for report in made.reports] == ["SYNTH-B1-P1"]
    assert made.notes[0].startswith("1 of 2 plates left out (first: synthetic/SYNTH-B2/SYNTH-B2-P1): they have no "
                                    "whole fields with channels DNA, RNA, ER")  # fmt: skip
    with pytest.raises(ScreenError, match="none of 1 plates has whole fields with channels DNA, RNA, ER"):
        extract(lake, Asked("wanted", plates=("SYNTH-B2-P1",)))
    with pytest.raises(ScreenError, match="none of 2 plates has whole fields with channels DNA, RNA, Mito"):
        extract(lake, Asked("other", "around", cells="of_2", channels=("DNA", "RNA", "Mito")))
    with pytest.raises(ScreenError, match=r"feature set 'of_2': no channel 'RNA' among DNA, ER\."):
        extract(lake, Asked("other", "around", cells="of_2", channels=("DNA", "ER")))


def test_what_cannot_be_extracted_is_told_before_any_work(lake, known, simulated, tmp_path):
    with pytest.raises(TrainingError, match="knows no single cells of images yet: ingest images first"):
        extract(lake, Asked("wanted", "around"))
    lake = known
    other = PipelineSettings(segmentation=SegmentSettings(min_area_px=30))
    ingest_screen(
        lake, screen_of(simulated), registry.create("inside", CHANNELS), feature_set="small", settings=other
    )
    snapshot = lake.snapshot()
    cases: list[tuple[Asked, type[Exception], str]] = [
        (Asked("insid"), UnknownNameError, r"feature set or model 'insid'\. Did you mean 'inside'\?.*--extractor"),
        (Asked("Wanted", "around"), ProfileError, r"feature set name 'Wanted'"),
        (Asked("wanted", "arond"), UnknownNameError, r"unknown extractor 'arond'\. Did you mean 'around'"),
        (Asked("wanted", "around"), TrainingError, r"inside, small know other cells of as many plates \(2\)"),
        (Asked("wanted", "around", cells="no"), UnknownNameError, "unknown feature set 'no'"),
        (Asked("inside", "around"), SettingError, "'inside' was made by inside, not by around: leave --extractor out"),
        (Asked("inside", settings={"times": 2}), SearchError, "with times 1, and here it has 2"),
        (Asked("inside", cells="small"), TrainingError, "cells of 'small' were found otherwise than those of 'inside'"),
        (Asked("wanted", model=str(tmp_path / "no")), TrainingError, "no: there is no such folder of a model"),
        (Asked("wanted", "cell_painting_cnn"), TrainingError, "models/wanted: there is no such folder of a model"),
    ]  # fmt: skip
    for asked, error, message in cases:
        with pytest.raises(error, match=message):
            extract(lake, asked)
    assert lake.snapshot() == snapshot


def test_a_name_that_is_of_a_feature_set_and_of_a_model_is_said_once(known, tmp_path):
    for name in ("inside", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.json").touch()
    with pytest.raises(UnknownNameError, match=r"Known: inside, other\. To make a new one give --extractor"):
        extract(known, Asked("insid", models=str(tmp_path)))


def test_imported_profiles_are_no_cells_and_have_no_extractor(known):
    lake = known
    commit(lake, plate(("s", "b", "p"), {"A01": (1.0, 2.0, 3.0)}), TINY)
    with pytest.raises(SearchError, match="feature set 'tiny' was imported: no extractor here made it"):
        extract(lake, Asked("tiny"))
    with pytest.raises(TrainingError, match="'tiny' was imported: it does not say where cells lie in images"):
        extract(lake, Asked("wanted", "around", cells="tiny"))


def test_a_lake_that_is_gone_fails_no_plate(known, monkeypatch):
    lake = known

    def gone(*_: object) -> None:
        message = "S3 does not answer"
        raise LakeUnavailableError(message)

    monkeypatch.setattr(extraction, "at_hand", gone)
    with pytest.raises(LakeUnavailableError, match="S3 does not answer"):
        extract(lake, Asked("wanted", "around"))


# ------------------------------------------------------------------------------------------ what a plate has in common


def test_an_extractor_looks_at_evenly_chosen_fields_of_the_plate(lake, folder, monkeypatch):
    files(folder)[0].write_bytes(b"II*\0")
    monkeypatch.setattr(illumination, "evenly", lambda images: evenly(images, 3))
    seen: list[np.ndarray] = []
    original = Lit.for_plate

    def look(self: Lit, images) -> Lit:
        kept = list(images)
        seen.extend(kept)
        return original(self, kept)

    monkeypatch.setattr(Lit, "for_plate", look)
    taken_in(lake, folder, Lit(CHANNELS))
    paths = [files(folder, channel) for channel in CHANNELS]
    # Of four the first, the third (round half to even: 1.5 is 2) and the last; the very first cannot be read.
    expected = [2, 3, 4, 6, 7]
    assert len(seen) == len(expected)
    for image, number in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(image, [tifffile.imread(path[number]) for path in paths])
    taken_in(lake, folder, Around(CHANNELS))
    first = "SELECT embedding[1] FROM {}.cells WHERE plate = 'SYNTH-B1-P1' ORDER BY well, cell LIMIT 1"
    light = np.mean([image.mean() for image in seen[:2]])
    bare = lake.value(first.format("around"))
    assert lake.value(first.format("lit")) == pytest.approx(bare / light, rel=1e-6)


def test_a_plate_without_anything_in_common_fails_alone(lake, simulated, monkeypatch):
    plates = iter(("first", "second"))

    def refuse(self: Lit, images) -> Around:
        assert len(list(images)) == 4
        if next(plates) == "first":
            message = "fields of one plate have shapes (2, 9, 9) and (2, 8, 8)"
            raise ImageError(message)
        return Around(self.channels)

    monkeypatch.setattr(Lit, "for_plate", refuse)
    first, second = taken_in(lake, simulated, Lit(CHANNELS))
    assert (first.outcome, second.outcome) == ("failed", "added")
    assert "have shapes (2, 9, 9) and (2, 8, 8)" in first.reason
