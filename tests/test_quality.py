"""Quality as data: measures against loops and CellProfiler's own numbers, flags by hand, views with and without."""

import csv
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile
from builders import commit, layout, new_lake, plate, profiles, wide
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from test_pipeline import PLATES, SCREEN, Statistics, screen_of

import cli
from extractors.base import FieldSample
from extractors.images import read_field
from extractors.pipeline import ingest_screen
from extractors.quality import focus, measured, saturation
from extractors.segment import segment
from extractors.simulator import simulate_screen
from extractors.simulator.settings import CHANNELS
from warehouse import layouts, quality, recipes, resources, status
from warehouse.correct import correct
from warehouse.errors import QualityError, UnknownNameError
from warehouse.lake import Lake
from warehouse.sqltext import statements

REPOSITORY = Path(__file__).resolve().parent.parent
SITE = "cell_painting_site/BR00116991/A01-1"
BBBC = "bbbc021/fields/Week2_24381"


# --------------------------------------------------------------------------------------- pixels


def naive_focus(image):
    """The definition in `focus`, frequency by frequency."""
    height, width = image.shape
    spectrum = np.fft.fft2(image.astype(np.float64) - image.mean())
    last = min(height, width) // 8 - 1
    rings = np.zeros(last + 1)
    for i in range(height):
        for j in range(width):
            # A frequency past the middle is negative: -1 stands last, and counts at 0.
            down, right = min(i, height - 1 - i), min(j, width - 1 - j)
            ring = int(np.sqrt(down * down + right * right)) + 1
            if 2 <= ring <= last:
                rings[ring] += abs(spectrum[i, j]) ** 2
    return np.polyfit(np.log(np.arange(2, last + 1)), np.log(rings[2:]), 1)[0]


@pytest.mark.parametrize("shape", [(32, 32), (41, 64), (64, 41), (57, 57), (96, 80)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_focus_against_a_loop(shape, dtype):
    rng = np.random.default_rng(sum(shape))
    image = ndimage.gaussian_filter(rng.uniform(0, 200, shape), 1.0).astype(dtype)
    assert focus(image) == pytest.approx(naive_focus(image), abs=1e-4)


def test_focus_is_that_of_cellprofiler(data_dir):
    """CellProfiler's own output of the same site: ImageQuality_PowerLogLogSlope of the images as they came."""
    with (data_dir / "cellprofiler/cpg0043-segmentation/BR00116991-A01-1/Image.csv").open() as file:
        row = next(csv.DictReader(file))
    for channel in ("DNA", "ER", "RNA", "AGP", "Mito"):
        image = tifffile.imread(data_dir / SITE / row[f"FileName_Orig{channel}"])
        known = float(row[f"ImageQuality_PowerLogLogSlope_Orig{channel}"])
        assert focus(image) == pytest.approx(known, abs=2e-5), channel
        assert saturation(image) == 0.0  # PercentMaximal there is the one brightest pixel


def test_focus_of_what_has_none():
    assert focus(np.full((64, 64), 7, np.uint16)) is None
    assert focus(np.random.default_rng(0).integers(0, 9, (31, 64)).astype(np.uint8)) is None
    assert focus(np.random.default_rng(0).integers(0, 9, (32, 64)).astype(np.uint8)) is not None


def test_focus_knows_neither_gain_nor_offset():
    image = np.random.default_rng(1).integers(0, 4000, (64, 64)).astype(np.uint16)
    assert focus(image * 8 + 300) == pytest.approx(focus(image), abs=1e-4)


def blurred(image, sd):
    """As a camera would write it."""
    return np.rint(ndimage.gaussian_filter(image.astype(float), sd)).astype(image.dtype)


def test_blurred_simulated_images_have_lower_slopes(tmp_path):
    settings = replace(SCREEN, plates_per_batch=1, phenotypes=1, fields=1, field_px=256, cells_per_field=20)
    folder = simulate_screen(tmp_path / "screen", settings).folder
    rows = pl.read_csv(folder / "manifest.csv", infer_schema=False).head(3)
    for row in rows.iter_rows(named=True):
        pixels = read_field({name: (folder / row[f"path_{name}"], None) for name in CHANNELS}, CHANNELS)
        for image in pixels:
            slopes = [focus(blurred(image, sd)) for sd in (0, 1, 2, 3)]
            assert slopes == sorted(slopes, reverse=True)
            assert slopes[0] - slopes[-1] > 1


def test_real_fields_out_of_focus_are_flagged_and_those_in_focus_are_not(data_dir):
    """BBBC021's site 3 of this well is out of focus, as a look at it shows; sites 1 and 2 are in focus."""
    limit = -2.5
    found = {}
    for path in sorted((data_dir / BBBC).glob("*.tif")):
        site, wave = re.search(r"_(s\d)_(w\d)", path.name).groups()
        found[site, wave] = focus(tifffile.imread(path))
    assert {key for key, value in found.items() if value < limit} == {("s3", "w1"), ("s3", "w2")}
    for path in (data_dir / SITE).glob("*.tiff"):
        image = tifffile.imread(path)
        slopes = [focus(blurred(image, sd)) for sd in (0, 1, 2, 3)]
        assert slopes == sorted(slopes, reverse=True)
        assert slopes[0] > limit > slopes[3]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([[255, 0, 3, 255]], "uint8", 0.5),
        ([[254, 0, 3, 254]], "uint8", 0.0),
        ([[4095, 4095, 4095, 9]], "uint16", 0.75),  # a 12-bit camera
        ([[4096, 4095, 4095, 9]], "uint16", 0.0),
        ([[65535, 4095, 4095, 9]], "uint16", 0.25),
        ([[65520, 16, 16, 65520]], "uint16", 0.5),  # 12 bits, written into the high ones
        ([[1.0, 1.0, 0.5, 0.1]], "float32", None),
        ([[0, 0, 0, 0]], "uint16", 0.0),
    ],
)
def test_saturation_counted_by_hand(values, dtype, expected):
    assert saturation(np.array(values, dtype)) == expected


def test_a_field_and_a_crop():
    pixels = np.zeros((2, 64, 64), np.uint8)
    pixels[0, 20:40, 20:40] = 255
    table, masks = segment(pixels[0])
    sample = FieldSample(pixels, ("DNA", "Actin"), table, masks, is_crop=False)
    found = measured(sample).quality
    assert found.cell_count == len(table) == 1
    assert found.foreground == sum(label > 0 for label in masks.cells.ravel()) / 64**2
    assert found.saturation == (400 / 4096, 0.0)
    assert found.focus[0] == pytest.approx(naive_focus(pixels[0]), abs=1e-4)
    assert found.focus[1] is None
    crop = replace(sample, masks=None, is_crop=True)
    assert measured(crop) is crop


# --------------------------------------------------------------------------------------- flags by hand

KEY = ("s", "b", "p1")
RECIPE = recipes.parse("standardize(on=all)")
TINY2 = replace(wide(2, "fine"), entry_level="field")
CHANNEL_NAMES = ["DNA", "Actin"]
#: well, field, focus, saturation, foreground, cells segmented; then the flags that follow from the defaults.
FIELDS = [
    ("A01", "1", [-2.0, -1.5], [0.0, 0.0], 0.4, 90, []),
    ("A01", "2", [-2.51, -1.5], [0.0, 0.0], 0.4, 80, ["focus DNA low"]),
    ("A02", "1", [-2.5, None], [0.005, 0.006], 0.4, 70, ["focus Actin missing", "saturation Actin high"]),
    ("A02", "2", [-3.0, -3.0], [None, None], 0.4, 60, ["focus Actin low", "focus DNA low"]),
    ("A03", "1", [-1.0, -1.0], [0.0, 0.0], 0.0, 0, ["cell_count low", "foreground low"]),
    ("A04", "1", [-1.0, -1.0], [0.0, 0.0], 0.01, 1, []),
]
#: Wells with a profile: A01, A02, A04 and A05, which has no layout; A06 is in the layout and has no data.
WELLS = {"A01": (1.0, 2.0), "A02": (3.0, 4.0), "A04": (5.0, 6.0), "A05": (7.0, 8.0)}
PLAN = [("A01", "DMSO", None, "negative"), ("A02", "taxol", 1.0, "none"), ("A03", "taxol", 1.0, "none"),
        ("A04", "taxol", 1.0, "none"), ("A06", "taxol", 3.0, "none")]  # fmt: skip


def quality_frame(rows=FIELDS):
    return pl.DataFrame(
        [(well, name, CHANNEL_NAMES, *measures) for well, name, *measures, _ in rows],
        schema={"well": pl.String, "field": pl.String, "channels": pl.List(pl.String), "focus": pl.List(pl.Float64),
                "saturation": pl.List(pl.Float64), "foreground": pl.Float64, "cell_count": pl.Int32},
        orient="row",
    )  # fmt: skip


def field_rows(rows=FIELDS):
    """Rows of `<feature set>.fields`: those with cells; of A05 there is a field without image measures."""
    counted = [(well, name, count) for well, name, _, _, _, count, _ in rows if count] + [("A05", "1", 5)]
    frame = profiles({str(i): (1.0, 1.0) for i in range(len(counted))})
    ids = pl.DataFrame(
        counted, schema={"well": pl.String, "field": pl.String, "cell_count": pl.Int32}, orient="row"
    )
    return ids.with_columns(frame["embedding"])


def plate_data(key=KEY, content="h1", rows=FIELDS, plan=PLAN, images=6):
    wells = profiles(WELLS).with_columns(cell_count=pl.Series([170, 130, 1, 5], dtype=pl.Int32))
    data = plate(key, {}, content, layout(key, plan) if plan else None, images_seen=images)
    return replace(data, wells=wells, fields=field_rows(rows), quality=quality_frame(rows))


@pytest.fixture
def lake(tmp_path):
    with new_lake(tmp_path / "lake") as made:
        commit(made, plate_data(), TINY2)
        yield made


def field_flags(lake, name="fine"):
    rows = lake.frame(f"SELECT well, field, flags, is_flagged FROM {name}.field_flags ORDER BY ALL").rows()
    assert all(is_flagged == bool(flags) for _, _, flags, is_flagged in rows)
    return {(well, field): flags for well, field, flags, _ in rows}


def well_flags(lake, name="fine"):
    return {well: flags for well, flags in lake.frame(f"SELECT well, flags FROM {name}.well_flags").rows()}


def test_field_flags_by_hand(lake):
    assert field_flags(lake) == {(well, name): flags for well, name, *_, flags in FIELDS} | {("A05", "1"): []}
    row = lake.frame("SELECT * FROM fine.field_flags WHERE well = 'A02' AND field = '1'").row(0, named=True)
    assert row == {
        "source": "s", "batch": "b", "plate": "p1", "well": "A02", "field": "1", "cell_count": 70, "foreground": 0.4,
        "channels": CHANNEL_NAMES, "focus": [-2.5, None], "saturation": [0.005, 0.006],
        "flags": ["focus Actin missing", "saturation Actin high"], "is_flagged": True,
    }  # fmt: skip
    without = lake.frame(
        "SELECT cell_count, foreground, channels, focus FROM fine.field_flags WHERE well = 'A05'"
    )
    assert without.rows() == [(5, None, None, None)]


def test_well_flags_by_hand(lake):
    columns = "well, has_layout, has_profile, field_count, flagged_field_count, cell_count, flags, is_flagged"
    assert lake.frame(f"SELECT {columns} FROM fine.well_flags ORDER BY well").rows() == [
        ("A01", True, True, 2, 1, 170, [], False),  # half is not more than half
        ("A02", True, True, 2, 2, 130,
         ["focus Actin low", "focus Actin missing", "focus DNA low", "saturation Actin high"], True),
        ("A03", True, False, 1, 1, 0, ["cell_count low", "foreground low", "no profile"], True),
        ("A04", True, True, 1, 0, 1, [], False),
        ("A05", False, True, 1, 0, 5, [], False),
        ("A06", True, False, None, None, None, ["no profile"], True),
    ]  # fmt: skip


def test_plate_flags_by_hand(lake):
    own = "SELECT flag, affected FROM fine.plate_flags ORDER BY flag"
    assert lake.frame(own).rows() == [
        ("wells flagged", 1),  # of four with a profile: 25 %
        ("wells without data", 2),
        ("wells without layout", 1),
    ]
    shared = "SELECT flag, affected, feature_sets FROM main.plate_flags WHERE plate = 'p1' ORDER BY flag"
    assert lake.frame(shared).rows() == [
        ("wells without data", 2, ["fine"]),
        ("wells without layout", 1, ["fine"]),
    ]
    commit(lake, plate_data(("s", "b", "p2"), plan=None), TINY2)
    commit(lake, plate_data(("s", "b", "p3"), plan=PLAN[1:]), TINY2)
    flags = "SELECT plate, flag, affected FROM fine.plate_flags WHERE plate > 'p1' AND flag LIKE 'no %' ORDER BY ALL"
    assert lake.frame(flags).rows() == [
        ("p2", "no layout", None), ("p2", "no negative controls", None), ("p3", "no negative controls", None),
    ]  # fmt: skip


def test_treatments_without_labels_count_where_there_are_labels(lake):
    query = "SELECT affected FROM {}.plate_flags WHERE flag = 'treatments without labels'"
    assert lake.frame(query.format("main")).is_empty()
    lake.transaction(
        lambda c: (
            c.execute("INSERT INTO main.annotations VALUES ('taxol', 3.0, 'uM', 'moa', 'stabilizer')")
            and None
        )
    )
    for schema in ("main", "fine"):
        assert lake.frame(query.format(schema)).rows() == [(1,)]  # taxol@1uM; controls need none


def test_views_with_and_without_flagged_wells(lake):
    profile = "SELECT well, embedding FROM fine.{} ORDER BY well"
    everything = lake.frame(profile.format("well_profiles")).rows()
    assert everything == [(well, list(vector)) for well, vector in WELLS.items()]
    assert lake.frame(profile.format("well_profiles_passing")).rows() == [
        r for r in everything if r[0] != "A02"
    ]
    means = "SELECT treatment, well_count, embedding FROM fine.{} ORDER BY treatment"
    assert lake.frame(means.format("treatments")).rows() == [
        ("DMSO", 1, [1.0, 2.0]), ("taxol@1uM", 2, [4.0, 5.0]),
    ]  # fmt: skip
    assert lake.frame(means.format("treatments_passing")).rows() == [
        ("DMSO", 1, [1.0, 2.0]), ("taxol@1uM", 1, [5.0, 6.0]),
    ]  # fmt: skip


def test_recipes_have_views_without_flagged_wells_and_share_the_flags(lake):
    commit(lake, plate_data(("s", "b", "p2")), TINY2)
    correct(lake, "fine", RECIPE.text)
    views = set(lake.frame("SELECT view_name FROM duckdb_views() WHERE schema_name = 'fine'")["view_name"])
    assert {f"well_profiles_passing__{RECIPE.slug}", f"treatments_passing__{RECIPE.slug}"} <= views
    assert not {name for name in views if "flags__" in name}
    passing = "SELECT plate, well FROM fine.well_profiles_passing{} ORDER BY ALL"
    found = lake.frame(passing.format(f"__{RECIPE.slug}")).rows()
    assert (
        found
        == lake.frame(passing.format("")).rows()
        == [(p, w) for p in ("p1", "p2") for w in WELLS if w != "A02"]
    )
    assert well_flags(lake)["A06"] == ["no profile"]  # of the wells that came in, not of the recipe's


PASSING = ["well_profiles_passing", "treatments_passing"]


@pytest.mark.parametrize("name", ["field_flags", "well_flags", "plate_flags", *PASSING])
def test_grain(lake, name):
    commit(lake, plate_data(("s", "b", "p2")), TINY2)
    path = next(path for path in resources.files("sql", "feature_set") if path.stem.endswith(f"_{name}"))
    keys = re.search(r"one row per \(([^)]+)\)", path.read_text(encoding="utf-8"))[1]
    total, distinct = lake.frame(f"SELECT count(*), count(DISTINCT row({keys})) FROM fine.{name}").row(0)
    assert total == distinct > 1


# --------------------------------------------------------------------------------------- limits


def test_limits_change_flags_at_once_and_nothing_else(lake):
    stored = lake.frame("FROM main.field_quality ORDER BY ALL").rows()
    assert quality.set_limits(lake, [("focus", "lower", -2.0), ("focus", "upper", -1.2)])
    found = field_flags(lake)
    assert found["A01", "1"] == []
    assert found["A02", "1"] == ["focus Actin missing", "focus DNA low", "saturation Actin high"]
    assert found["A04", "1"] == ["focus Actin high", "focus DNA high"]
    assert quality.set_limits(lake, [(name, bound, None) for name in ("focus", "saturation", "foreground", "cell_count")
                                     for bound in quality.BOUNDS])  # fmt: skip
    assert set(map(tuple, field_flags(lake).values())) == {()}
    assert lake.frame("FROM main.field_quality ORDER BY ALL").rows() == stored
    runs = lake.frame("SELECT settings FROM main.runs WHERE command = 'quality' ORDER BY started_at")[
        "settings"
    ]
    assert json.loads(runs[0]) == {"focus.lower": -2.0, "focus.upper": -1.2}


def test_limits_of_wells_and_plates(lake):
    quality.set_limits(lake, [("flagged_fields", "upper", 0.4), ("well_cell_count", "lower", 5),
                              ("well_cell_count", "upper", 150), ("flagged_wells", "upper", 0.8)])  # fmt: skip
    assert well_flags(lake)["A01"] == ["focus DNA low", "well_cell_count high"]
    assert well_flags(lake)["A04"] == ["well_cell_count low"]
    assert well_flags(lake)["A05"] == []
    assert "wells flagged" not in lake.frame("SELECT flag FROM fine.plate_flags")["flag"]
    quality.set_limits(lake, [("flagged_wells", "upper", 0.74)])
    assert ("wells flagged", 3) in lake.frame("SELECT flag, affected FROM fine.plate_flags").rows()


def test_a_limit_that_is_so_already_makes_no_snapshot(lake):
    before = lake.snapshot()
    assert not quality.set_limits(lake, [("focus", "lower", -2.5)])
    assert lake.snapshot() == before


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("focus", QualityError, "'focus' is no limit: write MEASURE.lower=NUMBER"),
        ("focus=-2", QualityError, "'focus=-2' is no limit"),
        ("focus.lower=", QualityError, "'focus.lower=' is no limit"),
        ("focus.lower=blurred", QualityError, "focus.lower='blurred' is no number: give one, or `none`"),
        ("focus.lower=nan", QualityError, "focus.lower='nan' is no number"),
        ("focus.lower=-inf", QualityError, "focus.lower='-inf' is no number"),
        ("focus.lowest=1", UnknownNameError, "unknown bound of 'focus' 'lowest'. Did you mean 'lower'?"),
        ("focsu.lower=1", UnknownNameError, "unknown measure 'focsu'. Did you mean 'focus'?"),
        ("saturation.upper=5", QualityError, "saturation.upper=5: give a share from 0 to 1 (0.05 is 5 %)"),
        ("foreground.lower=-1", QualityError, "foreground.lower=-1: give a share"),
        ("flagged_fields.lower=0.1", QualityError, "flagged_fields has no lower limit"),
        ("focus.upper=-2.6", QualityError, "focus: the lower limit -2.5 would lie above the upper -2.6"),
    ],
)  # fmt: skip
def test_wrong_limits_are_refused_and_nothing_changes(lake, text, error, message):
    before = quality.limits(lake).rows()
    with pytest.raises(error, match=re.escape(message)):
        quality.set_limits(lake, [("cell_count", "lower", 9.0), quality.parse_limit(text)])
    assert quality.limits(lake).rows() == before


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["focus", "cell_count"]))
def test_limits_are_read_as_written(value, measure):
    assert quality.parse_limit(f"{measure}.lower={value!r}") == (measure, "lower", value)
    assert quality.parse_limit(f" {measure}.upper = none ") == (measure, "upper", None)


# --------------------------------------------------------------------------------------- commits


def test_an_import_without_images_has_flags_of_counts_only(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        commit(lake, replace(plate_data(images=0), quality=None), TINY2)
        assert lake.frame("FROM main.field_quality").is_empty()
        quality.set_limits(lake, [("cell_count", "lower", 60)])
        assert {key: flags for key, flags in field_flags(lake).items() if flags} == {
            ("A04", "1"): ["cell_count low"], ("A05", "1"): ["cell_count low"],
        }  # fmt: skip
        assert ("A03", "1") not in field_flags(lake)


def test_a_replaced_plate_replaces_its_measures(lake):
    rows = [("A01", "1", [-1.0, -1.0], [0.0, 0.0], 0.5, 50, []), *FIELDS[2:3]]
    assert commit(lake, plate_data(content="h2", rows=rows), TINY2) == "replaced"
    assert lake.frame("SELECT well, field, focus FROM main.field_quality ORDER BY ALL").rows() == [
        ("A01", "1", [-1.0, -1.0]), ("A02", "1", [-2.5, None]),
    ]  # fmt: skip


def test_two_feature_sets_of_the_same_images_share_the_measures(lake):
    other = replace(TINY2, name="other")
    assert commit(lake, plate_data(), other) == "added"
    assert lake.frame("SELECT count(*) FROM main.field_quality").item() == len(FIELDS)
    assert field_flags(lake, "other") == field_flags(lake)
    # Part of the plate anew: what the other feature set read stays.
    commit(lake, plate_data(content="h2", rows=FIELDS[:1]), other)
    assert lake.frame("SELECT count(*) FROM main.field_quality").item() == len(FIELDS)
    assert not {name: rows for name, rows in status.faults(lake).items() if "quality" in name}
    lake.transaction(
        lambda c: layouts.insert(c, "main.field_quality", lake.frame("FROM main.field_quality LIMIT 1"))
    )
    assert status.faults(lake)["field_quality_unique"]["times"].to_list() == [2]


def test_a_plate_that_this_feature_set_does_not_hold_is_not_in_its_flags(lake):
    commit(lake, plate_data(("s", "b", "elsewhere")), replace(TINY2, name="other"))
    for view in ("field_flags", "well_flags", "plate_flags"):
        assert set(lake.frame(f"SELECT plate FROM fine.{view}")["plate"]) == {"p1"}


def test_a_plate_without_any_profile(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        data = replace(
            plate_data(rows=FIELDS[4:5]),
            wells=profiles(WELLS).clear(),
        )
        commit(lake, replace(data, fields=field_rows([]).clear()), TINY2)
        assert lake.frame("SELECT count(*) FROM main.field_quality").item() == 1
        flag = "SELECT affected FROM main.plate_flags WHERE flag = 'wells without data'"
        assert lake.frame(flag).rows() == [(5,)]


def test_a_lake_of_schema_2_gets_table_limits_and_views(tmp_path, monkeypatch):
    files = resources.files

    def older(kind, folder=""):
        new = ("flags", "passing", "checked")
        return [
            path for path in files(kind, folder)
            if not (kind == "schema" and not folder and path.name >= "03") and not path.stem.endswith(new)
        ]  # fmt: skip

    monkeypatch.setattr(resources, "files", older)
    with Lake.create(tmp_path / "lake") as lake:
        for number in range(2):
            commit(lake, replace(plate_data(("s", "b", f"p{number}")), quality=None), TINY2)
        correct(lake, "fine", RECIPE.text)
    monkeypatch.setattr(resources, "files", files)
    with Lake.open(tmp_path / "lake") as lake:
        assert quality.limits(lake).height == 7
        assert well_flags(lake)["A06"] == ["no profile"]
        for recipe in ("", f"__{RECIPE.slug}"):
            assert lake.frame(f"SELECT count(*) FROM fine.treatments_passing{recipe}").item() == 2
        commit(lake, plate_data(("s", "b", "p2")), TINY2)
        assert lake.frame("SELECT count(*) FROM main.field_quality").item() == len(FIELDS)


# --------------------------------------------------------------------------------------- from images


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return simulate_screen(tmp_path_factory.mktemp("simulated") / "screen", SCREEN).folder


def test_ingestion_measures_every_field_that_could_be_used(simulated, tmp_path):
    folder = Path(shutil.copytree(simulated, tmp_path / "screen"))
    manifest = pl.read_csv(folder / "manifest.csv", infer_schema=False).filter(pl.col("plate") == PLATES[0])
    dna = [folder / path for path in manifest["path_DNA"]]
    dna[0].write_bytes(b"broken")
    flat = tifffile.imread(dna[1])
    tifffile.imwrite(dna[1], np.full_like(flat, 500))
    sharp = tifffile.imread(dna[2]).astype(float)
    tifffile.imwrite(dna[2], np.rint(ndimage.gaussian_filter(sharp, 4)).astype(flat.dtype))
    with new_lake(tmp_path / "lake") as lake:
        ingest_screen(lake, screen_of(folder), Statistics(CHANNELS))
        stored = lake.frame("SELECT * FROM main.field_quality")
        key = ["well", "field"]
        usable = manifest.select(key).rows()[1:]
        assert sorted(stored.select(key).rows()) == sorted(usable)
        for row in stored.iter_rows(named=True):
            at = manifest.filter(pl.col("well") == row["well"], pl.col("field") == row["field"]).row(
                0, named=True
            )
            pixels = [tifffile.imread(folder / at[f"path_{name}"]) for name in CHANNELS]
            _, masks = segment(pixels[0], pixels[2])
            assert row["channels"] == list(CHANNELS)
            assert row["focus"] == [focus(image) for image in pixels]
            assert row["saturation"] == [0.0] * 5
            assert row["foreground"] == np.mean(masks.cells > 0)
            assert row["cell_count"] == masks.cells.max()
        flags = field_flags(lake, "statistics")
        assert {"cell_count low", "focus DNA missing", "foreground low"} <= set(flags[usable[0]])
        assert "focus DNA low" in flags[usable[1]]
        counted = lake.frame("SELECT well, field, cell_count FROM statistics.fields").rows()
        assert {(w, f): n for w, f, n in counted} == {
            (r["well"], r["field"]): r["cell_count"] for r in stored.iter_rows(named=True) if r["cell_count"]
        }
        # Another extractor of the same images, and the same content again.
        ingest_screen(lake, screen_of(folder), Statistics(CHANNELS), feature_set="second")
        ingest_screen(lake, screen_of(folder), Statistics(CHANNELS))
        assert lake.frame("SELECT * FROM main.field_quality ORDER BY ALL").equals(stored.sort(pl.all()))


def test_crops_have_no_measures(tmp_path):
    from warehouse.screens import read_screen

    rng = np.random.default_rng(0)
    rows = ["source,batch,plate,well,field,cell,path_DNA"]
    for cell in range(3):
        np.save(tmp_path / f"{cell}.npy", rng.integers(0, 255, (40, 40)).astype(np.uint8))
        rows.append(f"s,b,p,A01,1,{cell},{cell}.npy")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    with new_lake(tmp_path / "lake") as lake:
        ingest_screen(lake, read_screen(tmp_path / "manifest.csv"), Statistics(("DNA",)))
        assert lake.frame("FROM main.field_quality").is_empty()
        assert field_flags(lake, "statistics") == {("A01", "1"): []}


# --------------------------------------------------------------------------------------- the command


def wellhouse(capsys, monkeypatch, *arguments):
    """The command in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["wellhouse", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, *capsys.readouterr()


def test_the_report(lake):
    found = quality.report(lake, "fine", worst=1)
    assert found.plates.rows() == [
        (
            "s",
            "b",
            "p1",
            7,
            4,
            4,
            1,
            2,
            ["wells flagged: 1", "wells without data: 2", "wells without layout: 1"],
        )
    ]
    assert ("focus DNA low", 2, 1) in found.flags.rows()
    assert ("no profile", 0, 2) in found.flags.rows()
    assert found.worst_wells.select("well", "flagged_field_count").rows() == [("A02", 2)]
    with pytest.raises(UnknownNameError, match=r"unknown feature set 'fin'\. Did you mean 'fine'\?"):
        quality.report(lake, "fin")


def test_the_page_is_true(lake):
    """Its queries run, and its table of limits is what a new lake has."""
    page = (REPOSITORY / "docs/quality.md").read_text(encoding="utf-8")
    commit(lake, plate_data(), replace(TINY2, name="transfer"))
    queries = re.search(r"```sql\n(.*?)```", page, re.DOTALL)[1]
    found = [lake.frame(query) for query in statements(queries)]
    assert [len(rows) for rows in found] == [3, 3, 1, 6, 2, 1]
    for measure, lower, upper in quality.limits(lake).iter_rows():
        row = re.search(
            rf"^\| `{measure}` \| (?:field|well|plate)[^|]*\|([^|]*)\|([^|]*)\|", page, re.MULTILINE
        )
        shown = [None if not text.strip() else float(text.strip().replace("−", "-")) for text in row.groups()]
        assert shown == [lower, upper], measure


def test_the_command(lake, tmp_path, capsys, monkeypatch):
    lake.close()
    at = ("--lake", str(tmp_path / "lake"))
    code, told, _ = wellhouse(capsys, monkeypatch, "quality", "--json", *at)
    assert (code, json.loads(told)) == (0, {
        "limits": [
            {"measure": "cell_count", "lower": 1.0, "upper": None},
            {"measure": "flagged_fields", "lower": None, "upper": 0.5},
            {"measure": "flagged_wells", "lower": None, "upper": 0.2},
            {"measure": "focus", "lower": -2.5, "upper": None},
            {"measure": "foreground", "lower": 0.01, "upper": None},
            {"measure": "saturation", "lower": None, "upper": 0.005},
            {"measure": "well_cell_count", "lower": None, "upper": None},
        ]
    })  # fmt: skip
    change = ("--set", "focus.lower=none", "--set", "cell_count.lower=2")
    code, told, _ = wellhouse(capsys, monkeypatch, "quality", "fine", *change, *at)
    assert code == 0
    assert "worst wells" in told
    assert "focus DNA low" not in told
    assert wellhouse(capsys, monkeypatch, "quality", "--set", "focus.lower=much", *at) == (
        1, "", "error: focus.lower='much' is no number: give one, or `none` for no limit\n",
    )  # fmt: skip
