"""Crops on disk: the pixels of `prepare`, a part a plate, whole or not there, whoever kills or damages what."""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from extractors.base import FieldSample
from extractors.images import read_field
from extractors.known_images import images_and_digests
from extractors.pipeline import ingest_screen
from extractors.plate_images import PlateImage, gathered
from extractors.segment import segment
from extractors.simulator import SimulatorSettings, simulate_screen
from extractors.training import parts, store
from extractors.training.crops import CropSettings, prepare
from extractors.training.illumination import fields_for_illumination, illumination_of
from extractors.training.store import CropStore
from warehouse.errors import ImageError, TrainingError
from warehouse.known_cells import KnownCells, images_of, images_of_plates, known_cells
from warehouse.lake import Lake
from warehouse.screens import read_screen

SCREEN = SimulatorSettings(
    batches=1, plates_per_batch=2, wells_per_plate=3, phenotypes=1, compounds_per_phenotype=1, doses=(2.0,),
    dmso_wells=2, positive_wells=0, fields=2, field_px=128, cells_per_field=6,
)  # fmt: skip
CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
SETTINGS = CropSettings(crop=32)
REPOSITORY = Path(__file__).parent.parent


class Count:
    """An extractor that looks at nothing: what is wanted of it is where cells lie."""

    name = "count"
    version = "1"
    weights: str | None = None
    feature_names = ("one",)
    dim = 1

    def __init__(self, channels: tuple[str, ...]) -> None:
        self.channels = channels
        self.parameters: dict[str, object] = {}

    def extract(self, samples: list[FieldSample]) -> list[np.ndarray]:
        return [np.ones((len(sample.cells), 1), np.float32) for sample in samples]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A screen of two plates, and a lake that knows its cells."""
    base = tmp_path_factory.mktemp("fields")
    folder = simulate_screen(base / "screen", SCREEN).folder
    with Lake.create(base / "lake") as lake:
        screen = read_screen(folder / "manifest.csv", layout=folder / "layout.csv")
        reports = ingest_screen(lake, screen, Count(CHANNELS))
    assert [report.outcome for report in reports] == ["added", "added"]
    return base


@pytest.fixture
def lake(made):
    with Lake.open(made / "lake", read_only=True) as opened:
        yield opened


@pytest.fixture
def known(lake) -> KnownCells:
    return known_cells(lake)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A lake of twelve single-cell pictures of 20 × 24 pixels on one plate; Mito is black, and RNA in one picture."""
    base = tmp_path_factory.mktemp("pictures")
    rng, rows = np.random.default_rng(5), []
    for number in range(12):
        pixels = rng.gamma(2, 400, (3, 20, 24)).astype(np.uint16)
        pixels[2], pixels[1] = 0, 900 if number == 7 else pixels[1]
        np.save(base / f"{number}.npy", pixels)
        paths, planes = (
            {f"{what}_{name}": of(plane) for plane, name in enumerate(("DNA", "RNA", "Mito"))}
            for what, of in (("path", lambda _, number=number: f"{number}.npy"), ("plane", int))
        )
        rows.append(
            {
                "plate": "P1",
                "well": f"A0{number % 3 + 1}",
                "field": "1",
                "cell": str(number),
                **paths,
                **planes,
            }
        )
    pl.DataFrame(rows).write_csv(base / "manifest.csv")
    with Lake.create(base / "lake") as lake:
        ingest_screen(lake, read_screen(base / "manifest.csv"), Count(("DNA", "RNA", "Mito")))
    return base


def from_lake(rows: pl.DataFrame) -> list[PlateImage]:
    return images_and_digests(rows, CHANNELS)[0]


def everything(opened: CropStore) -> np.ndarray:
    return opened.gather(np.arange(len(opened)))


def by_hand(lake: Lake, known: KnownCells, settings: CropSettings) -> np.ndarray:
    """Cut one cell at a time, as a reader of the contract would."""
    found, light = [], {}
    for cell in known.rows.iter_rows(named=True):
        key = cell["source"], cell["batch"], cell["plate"]
        images = from_lake(images_of(lake, key, known.channels, is_crops=known.is_crops))
        if key not in light and settings.illumination and not known.is_crops:
            light[key] = illumination_of(fields_for_illumination(images, known.channels))
        of_cell = [image for image in images if (image.well, image.field) == (cell["well"], cell["field"])]
        image = next(i for i in of_cell if not known.is_crops or i.cell == cell["cell"])
        row = pl.DataFrame([{name: cell[name] for name in ("cell", "x_px", "y_px")}])
        pixels = read_field(image.files, known.channels)
        sample = FieldSample(pixels, known.channels, row, None, is_crop=known.is_crops)
        found.append(prepare(sample, settings, light.get(key))[0])
    return np.array(found)


# -------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    "settings", [SETTINGS, CropSettings(crop=40, size=24, dtype="uint16", clip=(1, 99), illumination=False)]
)
def test_pixels_are_those_that_extraction_makes_byte_for_byte(lake, known, tmp_path, settings):
    opened = CropStore.open_or_cut(tmp_path / "models" / "crops", lake, known, settings)
    assert len(opened) == len(known.rows) > 30
    assert opened.rows.equals(known.rows)
    assert opened.channels == CHANNELS
    pixels = everything(opened)
    assert pixels.dtype == settings.dtype
    some = replace(known, rows=known.rows.gather_every(4))
    np.testing.assert_array_equal(pixels[::4], by_hand(lake, some, settings))
    assert opened.left_out == {}
    assert opened.constant == dict.fromkeys(CHANNELS, 0)


def test_pixels_of_single_cell_pictures(pictures, tmp_path):
    with Lake.open(pictures / "lake", read_only=True) as lake:
        known = known_cells(lake, channels=("DNA", "RNA"))
        assert known.is_crops
        settings = CropSettings(size=16)
        opened = CropStore.open_or_cut(tmp_path, lake, known, settings)
        assert opened.rows.equals(known.rows)
        np.testing.assert_array_equal(everything(opened), by_hand(lake, known, settings))


def test_masked_pixels_are_those_of_segmenting_again(lake, known, tmp_path):
    some = replace(known, rows=known.rows.gather_every(2))  # not all cells of a field
    settings = CropSettings(crop=48, illumination=False, masked=True)
    opened = CropStore.open_or_cut(tmp_path, lake, some, settings)
    pixels, at = everything(opened), 0
    for (source, batch, plate, well, field), cells in some.rows.group_by(
        "source", "batch", "plate", "well", "field", maintain_order=True
    ):
        images = from_lake(images_of(lake, (source, batch, plate)))
        image = next(i for i in images if (i.well, i.field) == (well, field))
        whole = read_field(image.files, CHANNELS)
        table, masks = segment(whole[0], whole[2])
        every = prepare(FieldSample(whole, CHANNELS, table, masks, is_crop=False), settings)
        wanted = every[[table["cell"].to_list().index(cell) for cell in cells["cell"]]]
        np.testing.assert_array_equal(pixels[at : at + len(cells)], wanted)
        at += len(cells)
    assert at == len(pixels)
    assert (pixels == 0).mean() > 0.2


def test_masked_cells_that_are_not_found_again_are_named(lake, known, tmp_path):
    moved = known.rows.with_columns(
        pl.when(pl.int_range(pl.len()) == 2).then(1.25).otherwise("x_px").alias("x_px")
    )
    settings = CropSettings(crop=32, illumination=False, masked=True)
    row = known.rows.row(2, named=True)
    where = f"field {row['plate']} {row['well']} {row['field']}: the lake has cell {row['cell']} at x 1.2, y"
    with pytest.raises(TrainingError, match=f"{where}.* cells found now it is at x {row['x_px']:.1f}"):
        CropStore.open_or_cut(tmp_path, lake, replace(known, rows=moved), settings)
    renamed = known.rows.with_columns(cell=pl.lit("700")).head(1)
    with pytest.raises(TrainingError, match=r"cell 700 at .* cells found now none has that name"):
        CropStore.open_or_cut(tmp_path, lake, replace(known, rows=renamed), settings)
    assert list(tmp_path.iterdir()) == []


def test_masks_need_the_channels_that_cells_were_found_by(lake, tmp_path):
    known = known_cells(lake, channels=("DNA", "Mito"))
    with pytest.raises(
        TrainingError, match=r"cells of 'count' were found by channel 'RNA', which is not among DNA, Mito"
    ):
        CropStore.open_or_cut(tmp_path, lake, known, CropSettings(crop=32, masked=True))


def test_images_of_the_lake_are_those_of_the_manifest(lake, known, made):
    manifest = read_screen(made / "screen" / "manifest.csv").manifest
    for key in known.rows.select("source", "batch", "plate").unique().iter_rows():
        assert from_lake(images_of(lake, key)) == gathered(manifest.filter(pl.col("plate") == key[2]))


# -------------------------------------------------------------------------------------------- reading


def test_gather_takes_any_rows_in_any_order(lake, known, tmp_path):
    opened = CropStore.open_or_cut(tmp_path, lake, known, SETTINGS)
    pixels = everything(opened)
    rows = np.random.default_rng(0).integers(0, len(opened), 90)
    np.testing.assert_array_equal(opened.gather(rows), pixels[rows])
    assert opened.gather(np.array([], int)).shape == (0, 5, 32, 32)
    with pytest.raises(IndexError, match=f"rows 0 to {len(opened)} of a store of {len(opened)} crops"):
        opened.gather(np.array([0, len(opened)]))
    with pytest.raises(IndexError, match="rows -1 to 0"):
        opened.gather(np.array([0, -1]))


def test_a_store_travels_without_its_pixels(lake, known, tmp_path):
    opened = CropStore.open_or_cut(tmp_path, lake, known, CropSettings(crop=64))
    sent = pickle.dumps(opened)
    assert len(sent) < 0.1 * everything(opened).nbytes
    np.testing.assert_array_equal(everything(pickle.loads(sent)), everything(opened))


DESCRIPTORS = """
import pickle, resource, sys
from pathlib import Path
import numpy as np
from extractors.training import store
from extractors.training.crops import CropSettings
from extractors.training.parts import Part
from warehouse.known_cells import KnownCells
import polars as pl

folder, parts = Path(sys.argv[1]), []
for number in range(120):
    (folder / str(number)).mkdir()
    np.save(folder / str(number) / "pixels.npy", np.full((2, 1, 4, 4), number, np.uint8))
    parts.append(Part(folder / str(number), 2, (0,), (1,), (0,), ()))
store._MOST_MAPS = 20
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
known = KnownCells(None, ("DNA",), True, pl.DataFrame({"cell": ["1"] * 240}), {})
opened = store.CropStore(known, CropSettings(size=4), parts, [2] * 120)
for each in (opened, pickle.loads(pickle.dumps(opened))):
    rows = np.random.default_rng(0).integers(0, 240, 2000)
    assert (each.gather(rows)[:, 0, 3, 3] == rows // 2).all()
print("read")
"""


def test_more_plates_than_a_process_can_hold_files_are_read(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", DESCRIPTORS, str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, "read\n"), run.stderr


def test_many_threads_read_more_plates_than_are_mapped(lake, known, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_MOST_MAPS", 1)
    opened = CropStore.open_or_cut(tmp_path, lake, known, SETTINGS)
    pixels = everything(opened)
    asked = [np.random.default_rng(seed).integers(0, len(opened), 16) for seed in range(200)]
    with ThreadPoolExecutor(4) as executor:
        for rows, found in zip(asked, executor.map(opened.gather, asked), strict=True):
            np.testing.assert_array_equal(found, pixels[rows])


def test_crops_that_change_while_they_are_read_are_not_taken(lake, known, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_MOST_MAPS", 1)
    opened = CropStore.open_or_cut(tmp_path, lake, known, SETTINGS)
    file = opened._files[1]
    os.utime(file, ns=(0, 0))
    opened.gather(np.array([0]))  # of the other plate
    with pytest.raises(TrainingError, match=f"{file}: another process changed it meanwhile: try again"):
        everything(opened)
    file.write_bytes(file.read_bytes()[:-200])
    opened = CropStore.open_or_cut(tmp_path, lake, known, SETTINGS)
    with pytest.raises(TrainingError, match=f"{file} is damaged, it is shorter than its crops: remove its"):
        everything(opened)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_statistics_are_those_of_the_pixels(lake, known, tmp_path, dtype, monkeypatch):
    opened = CropStore.open_or_cut(tmp_path, lake, known, CropSettings(crop=32, dtype=dtype))
    scaled = everything(opened) / np.iinfo(dtype).max
    for rows in (None, np.array([3, 30, 4])):
        chosen = scaled if rows is None else scaled[rows]
        mean, spread = opened.statistics(rows)
        np.testing.assert_allclose(mean, chosen.mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(spread, chosen.std(axis=(0, 2, 3)), rtol=1e-9)
    monkeypatch.setattr(store, "_MOST_FOR_STATISTICS", 3)
    mean, _ = opened.statistics(np.arange(5))
    np.testing.assert_allclose(mean, scaled[[0, 2, 4]].mean(axis=(0, 2, 3)), rtol=1e-12)


# ------------------------------------------------------------------------------------ parts and kills


def test_what_is_there_is_not_cut_again(lake, known, tmp_path, monkeypatch):
    told = []
    first = CropStore.open_or_cut(tmp_path, lake, known, SETTINGS, progress=lambda *said: told.append(said))
    plates = [f"SYNTH-B1-P{number}" for number in (1, 2)]
    count = (
        known.rows.group_by("plate", "well", "field")
        .len()
        .group_by("plate")
        .len()
        .sort("plate")["len"]
        .to_list()
    )
    assert told == [(plate, i + 1, n) for plate, n in zip(plates, count, strict=True) for i in range(n)]
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(store, "cut", None)
    told.clear()
    again = CropStore.open_or_cut(tmp_path, lake, known, SETTINGS, progress=lambda *said: told.append(said))
    assert told == [(plate, n, n) for plate, n in zip(plates, count, strict=True)]
    assert again.digest == first.digest
    one = known_cells(lake, where="plate = 'SYNTH-B1-P2'")
    part = CropStore.open_or_cut(tmp_path, lake, one, SETTINGS)
    assert part.digest != first.digest
    np.testing.assert_array_equal(everything(part), everything(first)[known.rows["plate"] == plates[1]])


def test_the_name_of_a_part_says_all_that_decides_its_pixels(lake, known):
    (jobs, lengths) = store._jobs(lake, known, SETTINGS)
    job = jobs[0]
    assert lengths == [len(job.cells) for job in jobs]
    changed = [
        replace(job, settings=replace(SETTINGS, clip=(1.0, 99.0))),
        replace(job, settings=replace(SETTINGS, masked=True)),
        replace(job, known=replace(known, channels=CHANNELS[::-1])),
        replace(job, cells=job.cells.head(-1)),
        replace(job, cells=job.cells.with_columns(pl.col("x_px") + 1e-9)),
        replace(job, images=job.images.with_columns(digests=job.images["digests"].reverse())),
        replace(job, images=job.images.with_columns(planes=pl.lit([1] * 5, pl.List(pl.Int32)))),
        replace(job, light=job.light.head(1)),
        jobs[1],
    ]
    assert len({job.name, *(other.name for other in changed)}) == 10
    relabelled = replace(job, cells=job.cells.with_columns(treatment=pl.lit("other")))
    assert relabelled.name == job.name  # labels decide no pixel
    moved = replace(job, images=job.images.with_columns(paths=job.images["paths"].reverse()))
    assert moved.name == job.name  # nor does the folder that images lie in


KILLED = """
import os, signal, sys
from pathlib import Path
from extractors.training import parts, store
from extractors.training.crops import CropSettings
from warehouse.known_cells import known_cells
from warehouse.lake import Lake

def progress(plate, done, total):
    if plate.endswith("P2") and done == total - 1:
        print("there", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

with Lake.open(sys.argv[1], read_only=True) as lake:
    store.CropStore.open_or_cut(Path(sys.argv[2]), lake, known_cells(lake), CropSettings(crop=32), progress=progress)
"""


def test_after_a_kill_the_plate_that_it_was_at_is_cut_again(lake, known, made, tmp_path, monkeypatch):
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(made / "lake"), str(tmp_path / "crops")],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (-signal.SIGKILL, "there\n")
    names = sorted(path.name for path in (tmp_path / "crops").iterdir())
    jobs, _ = store._jobs(lake, known, SETTINGS)
    assert [name for name in names if not name.startswith(".")] == [jobs[0].name]
    assert len(names) == 2  # and what was half written of the second plate
    left = tmp_path / "crops" / names[0] / "pixels.npy"
    assert names[0].startswith(f".{jobs[1].name}-")
    monkeypatch.setattr(parts, "_YOUNG_SECONDS", -1)
    before = (tmp_path / "crops" / jobs[0].name / "pixels.npy").stat()
    opened = CropStore.open_or_cut(tmp_path / "crops", lake, known, SETTINGS)
    assert not left.exists()
    assert sorted(path.name for path in (tmp_path / "crops").iterdir()) == sorted(job.name for job in jobs)
    assert (tmp_path / "crops" / jobs[0].name / "pixels.npy").stat().st_mtime_ns == before.st_mtime_ns
    fresh = CropStore.open_or_cut(tmp_path / "fresh", lake, known, SETTINGS)
    np.testing.assert_array_equal(everything(opened), everything(fresh))
    assert opened.digest == fresh.digest


def test_what_another_process_is_writing_is_left_alone(lake, known, tmp_path, monkeypatch):
    import fcntl

    job = store._jobs(lake, known, SETTINGS)[0][0]
    other = tmp_path / f".{job.name}-other"
    other.mkdir(parents=True)
    with (other / "pixels.npy").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        monkeypatch.setattr(parts, "_YOUNG_SECONDS", -1)
        parts.cut(tmp_path, job)
        assert other.exists()
    monkeypatch.setattr(parts, "_YOUNG_SECONDS", 60)
    parts._tidy(tmp_path, job.name)
    assert other.exists()  # it may be about to take its lock
    os.utime(other / "pixels.npy", (time.time() - 61,) * 2)
    parts._tidy(tmp_path, job.name)
    assert not other.exists()


def test_of_two_processes_at_one_plate_the_first_is_kept(lake, known, tmp_path):
    job = store._jobs(lake, known, SETTINGS)[0][0]

    def another(count: int) -> None:
        if not (tmp_path / job.name).exists():
            parts.cut(tmp_path, job)

    part = parts.cut(tmp_path, job, advance=another)
    assert [path.name for path in tmp_path.iterdir()] == [job.name]
    assert part == parts.read_part(tmp_path / job.name)


# ------------------------------------------------------------------------------ images that do not do


@pytest.fixture
def screen(made, tmp_path):
    """The folder of the lake's images, which a test may damage."""
    folder = made / "screen"
    shutil.copytree(folder, tmp_path / "screen")
    yield folder
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "screen", folder)


def test_images_that_are_gone_are_counted_and_taken_up_when_they_are_back(lake, screen, tmp_path):
    known = known_cells(lake)
    row = known.rows.row(-1, named=True)
    image = next(
        i
        for i in from_lake(images_of(lake, (row["source"], row["batch"], row["plate"])))
        if (i.well, i.field) == (row["well"], row["field"])
    )
    path = image.files["Mito"][0]
    path.rename(path.with_suffix(".away"))
    settings = replace(SETTINGS, illumination=False)
    part = CropStore.open_or_cut(tmp_path / "crops", lake, known, settings)
    is_there = ~(
        (pl.col("plate") == row["plate"])
        & (pl.col("well") == row["well"])
        & (pl.col("field") == row["field"])
    )
    assert part.rows.equals(known.rows.filter(is_there))
    assert part.left_out == {
        f"image that cannot be used (1 images, first: {path}: cannot be read (No such file or directory): expected a "
        "file)": len(known.rows) - len(part.rows)
    }
    path.with_suffix(".away").rename(path)
    back = CropStore.open_or_cut(tmp_path / "crops", lake, known, settings)
    assert (len(back), back.left_out) == (len(known.rows), {})
    assert back.digest != part.digest
    np.testing.assert_array_equal(
        everything(part), everything(back)[known.rows.select(is_there.alias("x"))["x"]]
    )


def test_images_on_s3_are_fetched_and_named_by_where_they_are(lake, tmp_path, monkeypatch):
    known = known_cells(lake, where="plate = 'SYNTH-B1-P1'")
    settings = replace(SETTINGS, illumination=False)
    wanted = everything(CropStore.open_or_cut(tmp_path / "here", lake, known, settings))

    def elsewhere(*arguments):
        for key, rows in images_of_plates(*arguments):
            yield key, rows.with_columns(pl.col("paths").list.eval("s3://bucket" + pl.element()))

    def fetch(names, folder: Path) -> None:
        for name in [*names][:-1]:  # the last one is not there
            local = name.removeprefix("s3://bucket")
            target = folder / f"bucket{local}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(local, target)

    monkeypatch.setattr(store, "images_of_plates", elsewhere)
    monkeypatch.setattr("warehouse.places.fetch", fetch)
    opened = CropStore.open_or_cut(tmp_path / "there", lake, known, settings)
    assert re.search(r"1 images, first: s3://bucket/.*\.tiff?: cannot be read", next(iter(opened.left_out)))
    kept = known.rows.join(opened.rows, on=["well", "field", "cell"], how="left", coalesce=False)[
        "well_right"
    ]
    np.testing.assert_array_equal(everything(opened), wanted[kept.is_not_null()])
    assert 0 < len(opened) == len(wanted) - sum(opened.left_out.values())


def test_a_file_that_is_not_the_one_that_came_in_is_not_used(lake, screen, tmp_path):
    known = known_cells(lake, where="plate = 'SYNTH-B1-P1'")
    key = known.rows.select("source", "batch", "plate").row(0)
    images = from_lake(images_of(lake, key))
    path, other = (image.files["DNA"][0] for image in images[:2])
    shutil.copy(other, path)
    opened = CropStore.open_or_cut(tmp_path / "crops", lake, known, replace(SETTINGS, illumination=False))
    assert len(opened) < len(known.rows)
    assert f"first: {path}: is not the file that came in: ingest the plate again" in next(
        iter(opened.left_out)
    )


def test_a_plate_without_any_image_stops_everything(lake, screen, tmp_path):
    known = known_cells(lake)
    shutil.rmtree(screen / "images" / "SYNTH-B1-P2")
    settings = replace(SETTINGS, illumination=False)
    message = r"'SYNTH-B1-P2': none of its \d+ images can be used \(first: .*No such file.*\): is the folder mounted\?"
    with pytest.raises(TrainingError, match=message):
        CropStore.open_or_cut(tmp_path / "crops", lake, known, settings)
    assert len(list((tmp_path / "crops").iterdir())) == 1  # the first plate is whole


def test_a_plate_whose_images_are_there_is_not_said_to_be_away(lake, known, screen, tmp_path, monkeypatch):
    def refuse(*_: object) -> np.ndarray:
        message = "no nucleus is found"
        raise ImageError(message)

    settings = replace(SETTINGS, illumination=False)
    with monkeypatch.context() as patch:
        patch.setattr(parts, "prepare", refuse)
        message = r"can be used \(first: no nucleus is found\): leave the plate out with --where"
        with pytest.raises(TrainingError, match=message):
            CropStore.open_or_cut(tmp_path / "crops", lake, known, settings)
    for path in (screen / "images" / "SYNTH-B1-P1").rglob("*.tif*"):
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(TrainingError, match=r"came in: ingest the plate again\): leave the plate out"):
        CropStore.open_or_cut(tmp_path / "crops", lake, known, settings)


def test_a_channel_without_contrast_is_named(pictures, tmp_path):
    with Lake.open(pictures / "lake", read_only=True) as lake:
        with pytest.raises(TrainingError, match="channel 'Mito' is constant in all 12 crops"):
            CropStore.open_or_cut(tmp_path / "crops", lake, known_cells(lake), CropSettings(size=16))
        known = known_cells(lake, channels=("RNA", "DNA"))
        opened = CropStore.open_or_cut(tmp_path / "crops", lake, known, CropSettings(size=16))
    assert opened.constant == {"RNA": 1, "DNA": 0}


def test_crops_that_do_not_fit_on_the_disk_are_not_begun(lake, known, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: free)
    size = len(known.rows) * 5 * 64 * 64 / 1e9
    message = f"crops of {len(known.rows)} cells take {size:.1f} GB, and .* has 0.0 GB left: choose cells with --where"
    with pytest.raises(TrainingError, match=message):
        CropStore.open_or_cut(tmp_path / "crops", lake, known, CropSettings(crop=64))


def test_a_full_disk_leaves_nothing_half(lake, known, tmp_path, monkeypatch):
    def full(file) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts.os, "fsync", full)
    message = r"crops of plate 'SYNTH-B1-P1' cannot be written to .*: No space left on device"
    with pytest.raises(TrainingError, match=message):
        CropStore.open_or_cut(tmp_path, lake, known, SETTINGS)
    assert list(tmp_path.iterdir()) == []
