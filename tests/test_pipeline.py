"""From a tiny simulated screen to the lake: every count balances, every fault is named, every number can be redone."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile

from extractors import embedding, registry
from extractors.base import Extractor, FieldSample
from extractors.pipeline import PipelineSettings, PlateReport, ingest_screen
from extractors.simulator import SimulatorSettings, simulate_screen
from warehouse import spool, status
from warehouse.embeddings import to_matrix
from warehouse.errors import ImageError, ProfileError, ScreenError, UnknownNameError
from warehouse.lake import Lake
from warehouse.screens import Screen, read_screen
from warehouse.spool import Spool

SCREEN = SimulatorSettings(
    batches=1, plates_per_batch=2, wells_per_plate=6, phenotypes=2, compounds_per_phenotype=2, doses=(2.0,),
    dmso_wells=3, positive_wells=1, fields=2, field_px=128, cells_per_field=6,
)  # fmt: skip
PLATES = ("SYNTH-B1-P1", "SYNTH-B1-P2")


class Statistics:
    """An extractor quick enough to be called dozens of times: mean and spread of each channel in a cell's mask."""

    name = "statistics"
    version = "1"
    weights: str | None = None

    def __init__(
        self, channels: tuple[str, ...], bad: float | None = None, refuse_above: float | None = None
    ) -> None:
        self.channels = channels
        self.feature_names = tuple(f"{what}_{channel}" for channel in channels for what in ("mean", "spread"))
        self.dim = len(self.feature_names)
        self.parameters: dict[str, object] = {}
        self.seen: list[int] = []
        self.bad, self.refuse_above = bad, refuse_above

    def extract(self, samples: list[FieldSample]) -> list[np.ndarray]:
        self.seen.append(len(samples))
        found = []
        for sample in samples:
            if self.refuse_above is not None and sample.pixels.max() > self.refuse_above:
                message = f"pixels range to {sample.pixels.max()}: expected at most {self.refuse_above:g}"
                raise ImageError(message)
            rows = np.empty((len(sample.cells), self.dim), np.float32)
            for i in range(len(rows)):
                inside = slice(None) if sample.masks is None else sample.masks.cells == i + 1
                values = sample.pixels[:, inside].reshape(len(self.channels), -1).astype(np.float64)
                rows[i] = np.stack([values.mean(axis=1), values.std(axis=1)], axis=1).ravel()
            if self.bad is not None and len(rows):
                rows[0, 3] = self.bad
            found.append(rows)
        return found


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    return simulate_screen(tmp_path_factory.mktemp("simulated") / "screen", SCREEN).folder


@pytest.fixture
def folder(simulated, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(simulated, tmp_path / "screen"))


@pytest.fixture
def lake(tmp_path):
    with Lake.create(tmp_path / "lake") as made:
        yield made


def screen_of(folder: Path, plates: tuple[str, ...] = PLATES[:1]) -> Screen:
    names = {name: folder / f"{name}.csv" for name in ("layout", "annotations")}
    return read_screen(folder / "manifest.csv", **names).only(plates)


def image(folder: Path, number: int, channel: str = "DNA", plate: str = PLATES[0]) -> Path:
    """The file of one channel of a plate's field, by its number in the manifest."""
    rows = pl.read_csv(folder / "manifest.csv", infer_schema=False).filter(pl.col("plate") == plate)
    return folder / rows[f"path_{channel}"][number]


def content(lake: Lake, feature_set: str) -> dict[str, list[tuple]]:
    """What a plate's commit wrote, without run and time."""
    tables = {
        name: f"SELECT * FROM {feature_set}.{name} ORDER BY ALL" for name in ("cells", "fields", "wells")
    }
    tables["rejections"] = "SELECT * EXCLUDE (feature_set) FROM main.rejections ORDER BY ALL"
    tables["loads"] = "SELECT * EXCLUDE (run, loaded_at, feature_set) FROM main.plate_loads ORDER BY ALL"
    return {name: lake.frame(query).rows() for name, query in tables.items()}


def rejections(lake: Lake) -> dict[tuple[str, str, str | None], str]:
    rows = lake.frame("SELECT well, field, cell, reason FROM main.rejections").rows()
    found = {(well, field, cell): reason for well, field, cell, reason in rows}
    assert len(found) == len(rows)
    return found


def by_hand(
    lake: Lake, feature_set: str, dim: int, field_operator: str, weighted: bool
) -> dict[str, np.ndarray]:
    """Wells from the committed cells, with loops."""
    cells = lake.frame(f"SELECT well, field, embedding FROM {feature_set}.cells")
    matrix = to_matrix(cells["embedding"], dim).astype(np.float64)
    wells: dict[str, dict[str, list[np.ndarray]]] = {}
    for (well, field), vector in zip(cells.select("well", "field").iter_rows(), matrix, strict=True):
        wells.setdefault(well, {}).setdefault(field, []).append(vector)
    found = {}
    for well, fields in wells.items():
        operator = np.median if field_operator == "median" else np.mean
        profiles = [operator(np.array(vectors), axis=0) for vectors in fields.values()]
        shares = [len(vectors) if weighted else 1 for vectors in fields.values()]
        found[well] = np.average(profiles, axis=0, weights=shares)
    return found


def check_balance(lake: Lake, report: PlateReport, feature_set: str) -> None:
    load = lake.frame("SELECT * FROM main.plate_loads WHERE plate = ?", [report.plate]).row(0, named=True)
    assert load["images_seen"] == load["images_in"] + load["images_rejected"]
    assert load["cells_seen"] == load["cells_in"] + load["cells_rejected"]
    assert (
        load["wells_in_layout"]
        == load["wells_in"] - load["wells_without_layout"] + load["wells_without_data"]
    )
    for name in ("images_in", "images_rejected", "cells_in", "cells_rejected", "wells_in"):
        assert load[name] == getattr(report, name), name
    for table, count in (("cells", report.cells_in), ("wells", report.wells_in)):
        assert (
            lake.value(f"SELECT count(*) FROM {feature_set}.{table} WHERE plate = ?", [report.plate]) == count
        )
    reasons = lake.frame(
        "SELECT cell, count(*) FROM main.rejections WHERE plate = ? GROUP BY ALL", [report.plate]
    )
    of_images = reasons.filter(pl.col("cell").is_null())[:, 1].sum()
    assert (of_images, reasons[:, 1].sum() - of_images) == (report.images_rejected, report.cells_rejected)
    assert status.faults(lake) == {}


# ------------------------------------------------------------------------------------------ end to end


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "plates", "thin"),
    [("transfer", {"size": 64, "crop": 64}, PLATES, 0), ("cellprofiler", {}, PLATES[:1], 3)],
)
def test_screen_comes_in_whole(lake, simulated, name, settings, plates, thin):
    """Real extractors from files to wells; which cells they are of is known from the simulator.

    Of three cells crowded by others the cytoplasm is too thin to have a texture: they are rejected, by name.
    """
    extractor = registry.create(name, ("DNA", "RNA"), settings)
    told: list[tuple[str, int, int]] = []
    reports = ingest_screen(
        lake, screen_of(simulated, plates), extractor, progress=lambda *each: told.append(each)
    )
    assert [report.outcome for report in reports] == ["added"] * len(plates)
    truth = pl.read_csv(simulated / "truth.csv", infer_schema=False)
    for report in reports:
        assert (report.images_in, report.images_rejected, report.cells_rejected, report.wells_in) == (
            12,
            0,
            thin,
            6,
        )
        drawn = truth.filter(pl.col("plate") == report.plate).height
        assert 0.4 * drawn < report.cells_in <= drawn  # those that the border cuts are left out
        check_balance(lake, report, name)
        assert (report.plate, 12, 12) in told
    assert all("Cytoplasm_Texture" in reason for reason in rejections(lake).values())
    wells = lake.frame(f"SELECT * FROM {name}.wells WHERE plate = ? ORDER BY well", [PLATES[0]])
    expected = by_hand_of_plate(lake, name, extractor.dim)
    np.testing.assert_allclose(
        to_matrix(wells["embedding"], extractor.dim),
        [expected[well] for well in wells["well"]],
        rtol=1e-5,
        atol=1e-6,
    )
    again = ingest_screen(lake, screen_of(simulated, plates), extractor)
    assert [replace(report, outcome="added") for report in again] == reports
    assert {report.outcome for report in again} == {"unchanged"}
    stored = lake.frame("SELECT * FROM main.feature_sets").row(0, named=True)
    assert (stored["extractor"], stored["dim"], stored["weights"]) == (name, extractor.dim, extractor.weights)
    assert tuple(stored["feature_names"]) == extractor.feature_names


def by_hand_of_plate(lake: Lake, feature_set: str, dim: int) -> dict[str, np.ndarray]:
    lake.connection.execute(f"CREATE SCHEMA IF NOT EXISTS one; CREATE OR REPLACE VIEW one.cells AS "
                            f"SELECT * FROM {feature_set}.cells WHERE plate = '{PLATES[0]}'")  # fmt: skip
    try:
        return by_hand(lake, "one", dim, "median", weighted=False)
    finally:
        lake.connection.execute("DROP VIEW one.cells; DROP SCHEMA one")


@pytest.mark.parametrize("field_operator", ["median", "mean"])
@pytest.mark.parametrize("well_operator", ["mean", "weighted_mean"])
def test_fields_and_wells_are_those_of_the_committed_cells(lake, simulated, field_operator, well_operator):
    settings = PipelineSettings(field_operator=field_operator, well_operator=well_operator)
    extractor = Statistics(("DNA", "RNA"))
    ingest_screen(lake, screen_of(simulated), extractor, settings=settings)
    expected = by_hand(lake, "statistics", 4, field_operator, well_operator == "weighted_mean")
    wells = lake.frame("SELECT * FROM statistics.wells")
    assert set(wells["well"]) == set(expected)
    np.testing.assert_allclose(
        to_matrix(wells["embedding"], 4), [expected[well] for well in wells["well"]], rtol=1e-6
    )
    counts = (
        "SELECT well, count(DISTINCT field)::INTEGER, count(*)::INTEGER FROM statistics.cells "
        "GROUP BY well ORDER BY well"
    )
    assert wells.sort("well").select("well", "field_count", "cell_count").rows() == lake.frame(counts).rows()
    fields = lake.frame("SELECT * FROM statistics.fields ORDER BY well, field")
    cells = lake.frame("SELECT well, field, embedding FROM statistics.cells")
    for row in fields.iter_rows(named=True):
        own = cells.filter((pl.col("well") == row["well"]) & (pl.col("field") == row["field"]))
        operator = np.median if field_operator == "median" else np.mean
        vectors = to_matrix(own["embedding"], 4).astype(np.float64)
        assert row["cell_count"] == len(own)
        np.testing.assert_allclose(row["embedding"], operator(vectors, axis=0), rtol=1e-6)
    unequal = fields.group_by("well").agg(pl.col("cell_count").n_unique())["cell_count"]
    assert unequal.max() > 1, "weighted and plain mean would be the same"


# ------------------------------------------------------------------------------------------ faults in images


def test_each_broken_image_is_rejected_with_its_reason_and_the_rest_is_in(lake, folder):
    clean = {
        (well, field): vector for well, field, vector in _cells_by_field(folder, lake.path.parent / "clean")
    }
    image(folder, 0, "RNA").unlink()
    truncated = image(folder, 3, "DNA")
    truncated.write_bytes(truncated.read_bytes()[:-200])
    wrong = image(folder, 5, "RNA")
    tifffile.imwrite(wrong, tifffile.imread(wrong)[:100])
    garbage = image(folder, 7, "DNA")
    garbage.write_bytes(b"\x00\x01 no image" * 40)
    manifest = pl.read_csv(folder / "manifest.csv", infer_schema=False).with_row_index("row")
    lacking = manifest.with_columns(
        pl.when(pl.col("row") == 9).then(None).otherwise(pl.col("path_RNA")).alias("path_RNA")
    )
    lacking.drop("row").write_csv(folder / "manifest.csv")
    (report,) = ingest_screen(lake, screen_of(folder), Statistics(("DNA", "RNA")))
    assert (report.outcome, report.images_in, report.images_rejected) == ("added", 7, 5)
    check_balance(lake, report, "statistics")
    place = [(well, field, None) for well, field in manifest.select("well", "field").rows()]
    found = rejections(lake)
    assert set(found) == {place[number] for number in (0, 3, 5, 7, 9)}
    assert "_RNA.tif: no such file: correct the manifest's path or fetch the image" in found[place[0]]
    assert str(truncated) in found[place[3]]
    assert "is cut short" in found[place[3]]
    assert (
        f"{wrong}: channel 'RNA' is 100 × 128 uint16, channel 'DNA' of the same field is 128 × 128"
        in found[place[5]]
    )
    assert f"{garbage}: cannot be decoded" in found[place[7]]
    assert found[place[9]].startswith("channel 'RNA' is missing: the field has AGP, DNA, ER, Mito")
    # What is in is what it was without the damage.
    for well, field, vectors in _read_cells(lake):
        assert clean[well, field] == vectors
    digests = dict(
        lake.frame(
            "SELECT well || '/' || field, digests[list_position(channels, 'RNA')] FROM main.fields"
        ).rows()
    )
    assert digests[f"{place[0][0]}/{place[0][1]}"] is None
    assert sum(digest is None for digest in digests.values()) == 2


def _read_cells(lake: Lake):
    rows = lake.frame("SELECT well, field, embedding FROM statistics.cells ORDER BY well, field, cell::INT")
    return [
        (well, field, part["embedding"].to_list())
        for (well, field), part in rows.group_by("well", "field", maintain_order=True)
    ]


def _cells_by_field(folder: Path, path: Path):
    with Lake.create(path) as lake:
        ingest_screen(lake, screen_of(folder), Statistics(("DNA", "RNA")))
        return _read_cells(lake)


def test_image_that_the_extractor_refuses_is_rejected_and_the_rest_is_in(lake, folder):
    """CellProfiler refuses pixels above the camera's maximum: one hot image must not end the night."""
    hot = image(folder, 4, "RNA")
    pixels = tifffile.imread(hot)
    pixels[5, 5] = 60_000
    tifffile.imwrite(hot, pixels)
    extractor = Statistics(("DNA", "RNA"), refuse_above=50_000)
    settings = PipelineSettings(images_at_once=12)
    (report,) = ingest_screen(lake, screen_of(folder), extractor, settings=settings)
    assert (report.images_in, report.images_rejected) == (11, 1)
    ((place, reason),) = rejections(lake).items()
    assert place[2] is None
    assert reason == "pixels range to 60000: expected at most 50000"
    check_balance(lake, report, "statistics")
    assert extractor.seen == [12] + [1] * 12


def test_plate_without_one_usable_image_is_refused_and_the_others_go_in(lake, folder):
    for path in (folder / "images" / PLATES[0]).glob("*_DNA.tif"):
        path.write_bytes(b"")
    first, second = ingest_screen(lake, screen_of(folder, PLATES), Statistics(("DNA", "RNA")))
    assert first.outcome == "failed"
    assert f"plate '{PLATES[0]}': nothing of 12 can be used (first: well " in first.reason
    assert (second.images_in, second.images_rejected, second.wells_in) == (12, 0, 6)
    check_balance(lake, second, "statistics")
    assert lake.value("SELECT count(*) FROM main.plate_loads") == 1


def test_fields_and_wells_without_cells_give_no_row_and_are_counted(lake, folder):
    rows = pl.read_csv(folder / "manifest.csv", infer_schema=False).filter(pl.col("plate") == PLATES[0])
    empty = rows["well"][0]
    noise = np.random.default_rng(0).normal(120, 5, (128, 128)).astype(np.uint16)
    for number, well in enumerate(rows["well"]):
        if well == empty:
            tifffile.imwrite(image(folder, number), noise)
    (report,) = ingest_screen(lake, screen_of(folder), Statistics(("DNA", "RNA")))
    assert (report.images_in, report.images_rejected, report.wells_in) == (12, 0, 5)
    check_balance(lake, report, "statistics")
    for table in ("cells", "fields", "wells"):
        assert lake.value(f"SELECT count(*) FROM statistics.{table} WHERE well = ?", [empty]) == 0
    assert lake.value("SELECT wells_without_data FROM main.plate_loads") == 1
    assert lake.value("SELECT count(*) FROM main.fields WHERE well = ?", [empty]) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_cells_without_a_finite_feature_are_rejected_by_its_name(lake, simulated, bad):
    """The first cell of each field has a bad 4th feature."""
    (report,) = ingest_screen(lake, screen_of(simulated), Statistics(("DNA", "RNA"), bad=bad))
    found = rejections(lake)
    assert report.cells_rejected == len(found) == 12
    assert {cell for _, _, cell in found} == {"1"}
    assert set(found.values()) == {f"feature spread_RNA is {bad}"}
    check_balance(lake, report, "statistics")
    bad_rows = "SELECT count(*) FROM statistics.cells WHERE NOT isfinite(list_sum(embedding)) OR cell = '1'"
    assert lake.value(bad_rows) == 0


# ------------------------------------------------------------------------------------------ again and again


@dataclass
class Again:
    report: PlateReport
    seen: list[int]


def again(lake: Lake, folder: Path, **settings) -> Again:
    extractor = Statistics(("DNA", "RNA"))
    (report,) = ingest_screen(lake, screen_of(folder), extractor, **settings)
    return Again(report, extractor.seen)


def test_same_again_is_unchanged_without_asking_the_extractor(lake, folder):
    first = again(lake, folder)
    assert sum(first.seen) == 12
    before, snapshot = content(lake, "statistics"), lake.snapshot()
    second = again(lake, folder)
    assert second.seen == []
    assert second.report == replace(first.report, outcome="unchanged")
    assert (content(lake, "statistics"), lake.snapshot()) == (before, snapshot)


def test_moved_images_are_the_same_images(lake, folder):
    first = again(lake, folder)
    moved = folder.rename(folder.with_name("moved"))
    assert again(lake, moved).report == replace(first.report, outcome="unchanged")


def test_one_changed_pixel_replaces_the_plate_and_only_that_field(lake, folder):
    again(lake, folder)
    before = {place: vectors for *place, vectors in map(list, _read_cells(lake)) for place in [tuple(place)]}
    path = image(folder, 2, "RNA")
    pixels = tifffile.imread(path)
    # Inside a cell, so that its mean must change.
    x, y = lake.frame(
        "SELECT x_px, y_px FROM statistics.cells WHERE well || '/' || field = ? LIMIT 1",
        ["/".join(pl.read_csv(folder / "manifest.csv", infer_schema=False).select("well", "field").row(2))],
    ).row(0)
    pixels[round(y), round(x)] += 1
    tifffile.imwrite(path, pixels)
    second = again(lake, folder)
    assert (second.report.outcome, sum(second.seen)) == ("replaced", 12)
    check_balance(lake, second.report, "statistics")
    after = {(well, field): vectors for well, field, vectors in _read_cells(lake)}
    changed = [place for place in before if before[place] != after[place]]
    assert changed == [
        pl.read_csv(folder / "manifest.csv", infer_schema=False).select("well", "field").row(2)
    ]
    assert lake.value("SELECT count(*) FROM main.plate_loads") == 1
    assert lake.value("SELECT count(*) FROM main.fields") == 12


def test_image_that_arrives_later_replaces_the_plate(lake, folder):
    path = image(folder, 1, "DNA")
    data = path.read_bytes()
    path.unlink()
    assert again(lake, folder).report.images_rejected == 1
    path.write_bytes(data)
    second = again(lake, folder)
    assert (second.report.outcome, second.report.images_rejected) == ("replaced", 0)
    assert rejections(lake) == {}


def test_changed_layout_alone_relabels_without_asking_the_extractor(lake, folder):
    again(lake, folder)
    cells = content(lake, "statistics")["cells"]
    layout = folder / "layout.csv"
    (compound,) = _compounds(layout)[:1]
    layout.write_text(layout.read_text().replace(f"{compound},", "aspirin,"))
    second = again(lake, folder)
    assert (second.report.outcome, second.seen) == ("relabelled", [])
    assert content(lake, "statistics")["cells"] == cells
    assert lake.value("SELECT count(*) FROM main.wells WHERE treatment = 'aspirin@2uM'") == 1
    assert lake.value("SELECT count(*) FROM main.wells WHERE compound = ?", [compound]) == 0
    assert again(lake, folder).report.outcome == "unchanged"


def _compounds(layout: Path) -> list[str]:
    wells = pl.read_csv(layout, infer_schema=False).filter(pl.col("plate") == PLATES[0])
    return wells.filter(pl.col("control_type") == "none")["compound"].to_list()


def test_second_extractor_on_the_same_images_keeps_one_row_an_image(lake, folder):
    again(lake, folder)
    other = again(lake, folder, feature_set="other")
    assert other.report.outcome == "added"
    assert lake.value("SELECT count(*) FROM main.fields") == 12
    assert lake.value("SELECT count(*) FROM main.plates") == 1


@pytest.mark.parametrize(("limit", "files"), [(0, 12), (400, 2)])
def test_spool_on_disk_gives_the_same_lake_as_in_memory(lake, folder, tmp_path, monkeypatch, limit, files):
    settings = PipelineSettings(images_at_once=1)
    again(lake, folder, settings=settings)
    written = []
    original = spool.pa.OSFile
    monkeypatch.setattr(
        spool.pa, "OSFile", lambda path, mode="rb": (written.append(Path(path)), original(path, mode))[1]
    )
    with Lake.create(tmp_path / "spooled") as other:
        again(other, folder, settings=replace(settings, spool_bytes=limit))
        assert content(other, "statistics") == content(lake, "statistics")
    assert len(written) >= files
    assert not any(path.exists() for path in written)


def test_groups_and_threads_change_nothing(lake, folder, tmp_path):
    again(lake, folder)
    with Lake.create(tmp_path / "other") as other:
        second = again(other, folder, settings=PipelineSettings(images_at_once=5, workers=4))
        assert second.seen == [5, 5, 2]
        assert content(other, "statistics") == content(lake, "statistics")


def test_spool_removes_its_folder_also_after_an_error():
    frame = pl.DataFrame({"a": list(range(100))})

    def work() -> None:
        with Spool(10) as spool:
            spool.append(frame)
            spool.append(frame.clear())
            spool.append(frame[:3])
            paths.extend(spool._files)
            assert [part["a"].to_list() for part in spool] == [list(range(100)), [0, 1, 2]]
            raise KeyboardInterrupt

    paths: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(paths) == 2
    assert not any(path.exists() for path in paths)


# ------------------------------------------------------------------------------------------ crops


def _as_crops(folder: Path, keep_fields: int = 0) -> None:
    """Write a manifest in which images are single cells, two a field; the last `keep_fields` rows stay fields."""
    manifest = pl.read_csv(folder / "manifest.csv", infer_schema=False).filter(pl.col("plate") == PLATES[0])
    crops = manifest.with_columns(cell=pl.col("field"), field=pl.lit("1"))
    fields = manifest[len(manifest) - keep_fields :].with_columns(cell=pl.lit(None, pl.String))
    pl.concat([crops[: len(manifest) - keep_fields], fields]).write_csv(folder / "manifest.csv")


def test_crops_are_one_cell_each_and_are_not_segmented(lake, folder, monkeypatch):
    _as_crops(folder)
    monkeypatch.setattr(embedding, "segment", lambda *_: pytest.fail("a crop was segmented"))
    image(folder, 3, "RNA").write_bytes(b"")
    extractor = Statistics(("RNA", "DNA"))
    (report,) = ingest_screen(lake, screen_of(folder), extractor, settings=PipelineSettings(images_at_once=3))
    assert (report.images_in, report.images_rejected, report.cells_in, report.wells_in) == (11, 1, 11, 6)
    # Two crops a field stand together, though a group is three; one of the first four cannot be read.
    assert extractor.seen == [3, 4, 4]
    check_balance_of_crops(lake)
    cells = lake.frame("SELECT * FROM statistics.cells")
    assert cells["x_px"].null_count() == cells.height
    assert lake.frame("SELECT field_count, cell_count FROM statistics.wells ORDER BY cell_count").rows() == [
        (1, 1), *[(1, 2)] * 5
    ]  # fmt: skip
    stored = lake.value("SELECT parameters FROM main.feature_sets")
    assert '"input": "crops"' in str(stored)
    assert "segmentation" not in str(stored)


def check_balance_of_crops(lake: Lake) -> None:
    ((place, reason),) = rejections(lake).items()
    assert place[2] is not None, "the rejected crop has a name"
    assert "cannot be decoded" in reason
    assert status.faults(lake) == {}


def test_crops_and_fields_in_one_manifest_are_refused(lake, folder):
    _as_crops(folder, keep_fields=2)
    snapshot = lake.snapshot()
    with pytest.raises(ScreenError, match="50 single-cell crops and 10 rows of whole fields in one manifest"):
        again(lake, folder)
    assert lake.snapshot() == snapshot


# ------------------------------------------------------------------------------------------ refused before work


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"dna_channel": "DAN"}, ScreenError, r"no channel 'DAN' among DNA, RNA\. Did you mean 'DNA'"),
        ({"cell_channel": "RNAA"}, ScreenError, r"no channel 'RNAA' among DNA, RNA\. Did you mean 'RNA'"),
        ({"field_operator": "meadian"}, UnknownNameError, r"'meadian'\. Did you mean 'median'"),
        ({"well_operator": "wmean"}, UnknownNameError, r"unknown well operator 'wmean'\. Did you mean '"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(lake, simulated, settings, error, message):
    extractor, snapshot = Statistics(("DNA", "RNA")), lake.snapshot()
    with pytest.raises(error, match=message):
        ingest_screen(lake, screen_of(simulated), extractor, settings=PipelineSettings(**settings))
    assert (extractor.seen, lake.snapshot()) == ([], snapshot)


def test_channels_without_dna_need_a_name(lake, simulated):
    with pytest.raises(
        ScreenError, match="no channel named DNA, DAPI, Hoechst among RNA, Mito: give --dna-channel"
    ):
        ingest_screen(lake, screen_of(simulated), Statistics(("RNA", "Mito")))


def test_other_settings_under_the_same_name_are_refused_before_any_work(lake, folder):
    again(lake, folder)
    snapshot, extractor = lake.snapshot(), Statistics(("DNA", "RNA"))
    with pytest.raises(
        ProfileError, match="feature set 'statistics' has field_operator median, this input has mean"
    ):
        ingest_screen(lake, screen_of(folder), extractor, settings=PipelineSettings(field_operator="mean"))
    other: Extractor = Statistics(("DNA", "ER"))
    with pytest.raises(ProfileError, match=r"feature set 'statistics' has "):
        ingest_screen(lake, screen_of(folder), other)
    assert (extractor.seen, lake.snapshot()) == ([], snapshot)


def test_plate_of_the_lake_in_another_batch_is_refused_before_any_work(lake, folder):
    again(lake, folder)
    for name in ("manifest", "layout"):
        path = folder / f"{name}.csv"
        path.write_text(path.read_text().replace("synthetic,SYNTH-B1,", "synthetic,other,"))
    snapshot, extractor = lake.snapshot(), Statistics(("DNA", "RNA"))
    with pytest.raises(
        ScreenError, match="is in the lake in batch 'SYNTH-B1', and comes now in batch 'other'"
    ):
        ingest_screen(lake, screen_of(folder, PLATES), extractor)
    assert (extractor.seen, lake.snapshot()) == ([], snapshot)


def test_images_that_are_out_of_reach_replace_nothing(lake, folder):
    """As on a night without the disk: one plate's folder is away, the other's is there."""
    extractor = Statistics(("DNA", "RNA"))
    ingest_screen(lake, screen_of(folder, PLATES), extractor)
    before, held = lake.snapshot(), content(lake, "statistics")
    place = image(folder, 0).parent
    place.rename(folder / "away")
    first, second = ingest_screen(lake, screen_of(folder, PLATES), extractor)
    assert (first.outcome, second.outcome) == ("failed", "unchanged")
    assert f"plate '{PLATES[0]}': 24 files of images that are in the lake are not there now" in first.reason
    assert "--replace" in first.reason
    assert (lake.snapshot(), content(lake, "statistics")) == (before, held)
    first, _ = ingest_screen(
        lake, screen_of(folder, PLATES), extractor, settings=PipelineSettings(replace=True)
    )
    assert (first.outcome, first.images_rejected, first.wells_in) == ("replaced", 12, 0)


@pytest.mark.parametrize("trouble", [OSError(5, "Input/output error"), MemoryError("12 GB")])
def test_trouble_that_passes_by_rejects_no_image(lake, folder, monkeypatch, trouble):
    """A disk that fails once is no damaged image: the plate waits, and the next run takes it in whole."""
    whole = tifffile.TiffFile
    calls = iter(range(10_000))

    def failing(*arguments, **others):
        if next(calls) == 3:
            raise trouble
        return whole(*arguments, **others)

    with monkeypatch.context() as patch:
        patch.setattr(tifffile, "TiffFile", failing)
        (report,) = ingest_screen(lake, screen_of(folder), Statistics(("DNA", "RNA")))
    assert report.outcome == "failed"
    assert str(trouble) in report.reason
    (report,) = ingest_screen(lake, screen_of(folder), Statistics(("DNA", "RNA")))
    assert (report.outcome, report.images_in, report.images_rejected) == ("added", 12, 0)


def test_channels_for_segmentation_are_found_in_any_case(lake, folder):
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    lower = {
        name: name.lower().replace("path_", "path_") for name in table.columns if name.startswith("path_")
    }
    table.rename(lower).write_csv(folder / "manifest.csv")
    ingest_screen(lake, screen_of(folder), Statistics(("dna", "rna")))
    stored = json.loads(str(lake.value("SELECT parameters FROM main.feature_sets")))
    assert stored["segmentation"]["dna_channel"] == "dna"
    assert stored["segmentation"]["cell_channel"] == "rna"
