"""A picture's profile is what ingestion made of the same pixels, corrected as wells of the lake; or why not."""

import dataclasses
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile
import timm
import torch
from builders import commit, new_lake, random_plate, wide
from safetensors.torch import save_file

from extractors import pipeline, registry
from extractors.cellprofiler import Settings
from extractors.image_query import profile_of_images
from extractors.pipeline import PipelineSettings, ingest_screen
from extractors.remake import remade
from extractors.segment import SegmentSettings
from extractors.simulator import SimulatorSettings, simulate_screen
from warehouse import feature_sets, fits, profiles, recipes
from warehouse.correct import correct
from warehouse.embeddings import to_column, to_matrix
from warehouse.errors import ImageError, RecipeError, SearchError, UnknownNameError, WellhouseError
from warehouse.lake import Lake
from warehouse.on_the_spot import corrected, plate_named
from warehouse.profiles import FittedRecipe
from warehouse.screens import read_screen
from warehouse.sqltext import relation
from warehouse.steps import STEPS
from warehouse.steps.base import Wells
from warehouse.steps.harmony import Harmony, known_batches

DIM = 6
SET = wide(DIM)
ONE, TWO, THREE = ("s", "b1", "p1"), ("s", "b1", "p2"), ("s", "b2", "p3")

# ---------------------------------------------------------------------------------------- correcting on the spot


def counted(key, seed):
    """A plate whose wells differ in their number of cells."""
    data = random_plate(key, seed, dim=DIM, controls=8, treatments=8, shift=seed % 7)
    counts = np.random.default_rng(seed).integers(20, 200, len(data.wells))
    return replace(data, wells=data.wells.with_columns(cell_count=pl.Series(counts, dtype=pl.Int32)))


@pytest.fixture(scope="module")
def wells_lake(tmp_path_factory):
    with new_lake(tmp_path_factory.mktemp("wells") / "lake") as made:
        for seed, key in enumerate((ONE, TWO, THREE), start=1):
            commit(made, counted(key, seed), SET)
        yield made


def raw_and_stored(
    lake: Lake, recipe: str, feature_set: str = "wide"
) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """Wells of the lake: their keys and counts, the profile that came in, and the one in the recipe's table."""
    tables = [relation(feature_set, "wells", name) for name in ("none", recipe)]
    frame = lake.frame(
        "SELECT raw.source, raw.batch, raw.plate, raw.well, raw.cell_count, raw.embedding, done.embedding AS corrected "
        f"FROM {tables[0]} AS raw JOIN {tables[1]} AS done USING (source, batch, plate, well) ORDER BY ALL"
    )
    matrices = [to_matrix(frame[name], len(frame[name][0])) for name in ("embedding", "corrected")]
    return frame.drop("embedding", "corrected"), matrices[0], matrices[1]


#: Every step is in one of them.
RECIPES = {
    "filters": "drop_missing+impute+frequency+variance+mad_variation(threshold=1e-6)+mad_robustize(on=controls)"
    "+outliers+noise(cutoff=50)+blocklist+correlation+sphering(lambda=0.01)",
    "by well": "well_position+cell_count+standardize+pca",
    "batches": "robustize+center+coral",
    "efaar": "efaar_tvn",
    "ranks": "standardize+inverse_normal",
    "whole": "standardize(scope=all)+sphering",
    "harmony": "harmony",
}


def test_every_step_is_in_a_recipe():
    found = {step.name for text in RECIPES.values() for step in recipes.parse(text).steps}
    assert found == {step.name for step in STEPS}


@pytest.fixture(scope="module")
def made(wells_lake):
    """The recipes, as the lake holds them."""
    target = feature_sets.find(wells_lake, "wide")
    return {
        name: profiles.find_recipe(wells_lake, target, correct(wells_lake, "wide", text).recipe)
        for name, text in RECIPES.items()
    }


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "harmony"])
def test_a_well_of_the_lake_comes_out_as_it_stands_there(wells_lake, made, name):
    ids, raw, expected = raw_and_stored(wells_lake, made[name].name)
    assert len(ids) == 48
    assert expected.shape[1] < DIM or not np.allclose(expected, raw, atol=0.1)
    before = wells_lake.snapshot()
    if name != "by well":
        for key in (ONE, TWO, THREE):
            rows = (ids["plate"] == key[2]).to_numpy()
            found = corrected(wells_lake, SET, made[name], raw[rows], key)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected[rows], rtol=1e-5, atol=1e-5)
    # One alone, by what is known of it: nothing of the others is looked at.
    for row in (0, 17, 47):
        *key, well, count = ids.row(row)
        alone = corrected(wells_lake, SET, made[name], raw[row], tuple(key), well=well, cell_counts=[count])
        np.testing.assert_allclose(alone, expected[[row]], rtol=1e-5, atol=1e-5)
    assert wells_lake.snapshot() == before


def test_after_harmony_a_well_lies_near_itself(wells_lake, made):
    # The wells of the fit have Harmony's own result; one that comes later is mapped onto it.
    ids, raw, expected = raw_and_stored(wells_lake, made["harmony"].name)
    rows = (ids["plate"] == "p2").to_numpy()
    together = corrected(wells_lake, SET, made["harmony"], raw[rows], TWO)
    for row in (0, 15):
        alone = corrected(wells_lake, SET, made["harmony"], raw[rows][row], TWO)
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-6, atol=1e-6)
    assert np.median(np.linalg.norm(together - expected[rows], axis=1)) < 0.02
    assert np.median(np.linalg.norm(raw - expected, axis=1)) > 0.2


@pytest.mark.parametrize("name", ["whole", "none"])
def test_a_recipe_fitted_on_the_whole_set_needs_no_plate(wells_lake, made, name):
    fitted = made.get(name) or profiles.find_recipe(wells_lake, SET, "none")
    _, raw, expected = raw_and_stored(wells_lake, fitted.name)
    np.testing.assert_allclose(corrected(wells_lake, SET, fitted, raw), expected, rtol=1e-5, atol=1e-5)


def test_plates_that_came_after_the_fit(tmp_path):
    recipe, new = "mad_robustize+sphering", ("s", "b3", "p5")
    with new_lake(tmp_path / "lake") as lake:
        for seed, key in enumerate((ONE, THREE), start=1):
            commit(lake, counted(key, seed), SET)
        for text in (recipe, "harmony"):
            correct(lake, "wide", text)
        commit(lake, counted(new, 9), SET)
        fitted = profiles.find_recipe(lake, SET, recipe)
        with pytest.raises(UnknownNameError, match=r"'s/b3/p5'. Did you mean 's/b2/p3'\?"):
            corrected(lake, SET, fitted, np.ones(DIM), new)
        for text in (recipe, "harmony"):
            correct(lake, "wide", text)
        # Its own fit corrects it, and no other's.
        ids, raw, expected = raw_and_stored(lake, fitted.name)
        rows = (ids["plate"] == "p5").to_numpy()
        found = corrected(lake, SET, fitted, raw[rows], new)
        np.testing.assert_allclose(found, expected[rows], rtol=1e-5, atol=1e-5)
        assert np.abs(corrected(lake, SET, fitted, raw[rows], THREE) - expected[rows]).max() > 0.1
        lake.connection.execute("DELETE FROM main.recipe_fits WHERE plate = 'p3'")
        with pytest.raises(
            RecipeError, match=r"mad_robustize has no stored fit for plate 's/b2/p3'.*--refit"
        ):
            corrected(lake, SET, fitted, raw[0], THREE)
        # Harmony made the correction of the new batch of its wells together, and did not keep it.
        fitted = profiles.find_recipe(lake, SET, "harmony")
        with pytest.raises(RecipeError, match=r"batch 's/b3' came after harmony was fitted.*--refit"):
            corrected(lake, SET, fitted, np.ones(DIM), new)
        assert corrected(lake, SET, fitted, np.ones(DIM), THREE).shape == (1, DIM)


@pytest.mark.parametrize(
    ("by", "batches"),
    [("source", [("s",), ("t",)]), ("batch", [("s", "b1"), ("s", "b2"), ("t", "b1")]), ("plate", [])],
)
def test_a_fit_of_harmony_knows_its_batches(by, batches):
    rng = np.random.default_rng(1)
    keys = [key for key in (ONE, THREE, ("t", "b1", "p1")) for _ in range(20)]
    rows = pl.DataFrame(keys, schema=["source", "batch", "plate"], orient="row")
    fit, _ = Harmony(by=by).fit_transform(rng.normal(size=(len(rows), DIM)), Wells(rows))
    assert known_batches(fit) == batches


def test_fits_of_a_plate_are_read_only_where_they_are_asked_for(wells_lake, made):
    name = made["batches"].name
    short = fits.stored(wells_lake, "wide", name, [ONE], [], 3)
    long = fits.stored(wells_lake, "wide", name, [ONE], [], 3, with_own=True)
    of = [{(fit.step_index, fit.batch, fit.plate) for fit in found} for found in (short, long)]
    assert of[0] == {(i, None, None) for i in range(3)} | {(1, "b1", None), (2, "b1", None)}
    assert of[1] == of[0] | {(0, "b1", "p1")}


@pytest.mark.parametrize(
    ("text", "plate", "error", "message"),
    [
        ("sphering+standardize", None, RecipeError, r"step standardize is fitted for each plate.*--plate SOURCE"),
        ("center", None, RecipeError, r"step center is fitted for each batch.*--plate"),
        ("inverse_normal(scope=plate)", ONE, RecipeError, r"ranks the wells of a plate among each other.*scope=all"),
        ("harmony", None, RecipeError, r"step harmony is fitted for each batch.*--plate"),
        ("harmony(by=plate)", ONE, RecipeError, r"step harmony\(by=plate\) corrects each later plate by its own wells"),
        ("well_position", ONE, RecipeError, r"step well_position takes out where a well lies.*give well='A01'"),
        ("none", ("s", "b1", "p9"), UnknownNameError, r"'s/b1/p9'. Did you mean 's/b1/p[12]'"),
        ("whole", ("s", "b1", "p9"), UnknownNameError, r"'s/b1/p9'. Did you mean 's/b1/p[12]'\?.*s/b2/p3"),
        ("by well", ONE, RecipeError, r"step cell_count .* not given: give their cell_counts"),
    ],
)  # fmt: skip
def test_what_one_profile_cannot_be_corrected_for_is_refused(wells_lake, made, text, plate, error, message):
    fitted = made.get(text) or FittedRecipe("none", text, SET.feature_names)
    with pytest.raises(error, match=message):
        corrected(wells_lake, SET, fitted, np.ones(DIM), plate, well="A01" if text in RECIPES else None)


def test_a_profile_of_another_length_or_level_is_refused(wells_lake, made):
    whole = made["whole"]
    with pytest.raises(
        RecipeError, match=r"shape \(2, 3\) are none of feature set 'wide', which has 6 features"
    ):
        corrected(wells_lake, SET, whole, np.ones((2, 3)), ONE)
    with pytest.raises(RecipeError, match="corrects wells, and these are fields: aggregate them first"):
        corrected(wells_lake, SET, whole, np.ones(DIM), ONE, level="field")
    counts = [7, 8]
    for name in ("by well", "whole"):
        with pytest.raises(
            RecipeError, match=r"^1 profiles of feature set 'wide' came with 2 cell_counts: give one"
        ):
            corrected(wells_lake, SET, made[name], np.ones(DIM), ONE, well="A01", cell_counts=counts)
    with pytest.raises(RecipeError, match="feature 'f2' is inf"):
        corrected(wells_lake, SET, whole, np.array([1, np.inf, 1, 1, 1, 1]), ONE)


def test_a_plate_is_found_by_its_text(wells_lake, made):
    assert plate_named(wells_lake, SET, made["whole"], "s/b2/p3") == THREE
    assert plate_named(wells_lake, SET, made["whole"], "p2") == TWO
    with pytest.raises(
        UnknownNameError, match=r"plate of feature set 'wide' under recipe 'standardize.*'s/b3/p3'. Did"
    ):
        plate_named(wells_lake, SET, made["whole"], "s/b3/p3")


def test_a_name_of_two_plates_is_refused(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        for key in (("s", "b1", "p"), ("t", "b1", "p")):
            commit(lake, counted(key, 1), SET)
        with pytest.raises(RecipeError, match="2 plates are named 'p': give one of s/b1/p, t/b1/p"):
            plate_named(lake, SET, profiles.find_recipe(lake, SET, "none"), "p")


def test_a_recipe_of_fields_is_given_fields(tmp_path):
    rng = np.random.default_rng(3)
    target = replace(SET, name="imaged", entry_level="field")
    with new_lake(tmp_path / "lake") as lake:
        data = counted(ONE, 1)
        ids = pl.DataFrame(
            {"well": [w for w in data.wells["well"] for _ in "123"], "field": ["1", "2", "3"] * 16}
        )
        matrix = rng.normal(size=(48, DIM)).astype(np.float32)
        fields = ids.with_columns(pl.lit(7, dtype=pl.Int32).alias("cell_count"), to_column(matrix))
        commit(lake, replace(data, fields=fields), target)
        correct(lake, "imaged", "fields:sphering(lambda=0.1)")
        fitted = profiles.find_recipe(lake, target, "fields:sphering(lambda=0.1)")
        _, _, expected = raw_and_stored(lake, fitted.name, "imaged")
        found = corrected(lake, target, fitted, matrix, level="field")
        of_wells = found.astype(float).reshape(16, 3, DIM).mean(axis=1)
        np.testing.assert_allclose(of_wells, expected, rtol=1e-5, atol=1e-5)
        with pytest.raises(
            RecipeError, match=r"corrects fields, and these are wells: give the profiles of the fields"
        ):
            corrected(lake, target, fitted, matrix[:1])


# ------------------------------------------------------------------------------------------------ from pictures

SCREEN = SimulatorSettings(
    batches=1, plates_per_batch=1, wells_per_plate=4, phenotypes=1, compounds_per_phenotype=1, doses=(2.0,),
    dmso_wells=2, positive_wells=1, fields=2, field_px=128, cells_per_field=6,
)  # fmt: skip
#: A network small enough to be called often, its weights drawn by lot.
DEEP: dict[str, object] = {"model": "test_resnet", "size": 32, "crop": 48, "device": "cpu"}
#: The network rounds a cell otherwise where others are embedded with it; a field is taken in alone here.
ONE_AT_A_TIME = PipelineSettings(images_at_once=1)
NEAR = {"deep": 1e-5, "deep_crops": 1e-5, "measured": 1e-6, "measured_crops": 1e-6}
#: Of the measurements only the quickest.
QUICK: dict[str, object] = {
    field.name: field.name == "intensity" for field in dataclasses.fields(Settings) if field.default in (True, False)
}  # fmt: skip
THREE_OF = ("DNA", "RNA", "AGP")


@dataclass(frozen=True)
class Pictured:
    lake: Lake
    folder: Path
    fields: pl.DataFrame  # of the manifest
    crops: pl.DataFrame
    plate: tuple[str, str, str]
    weights: Path

    def profile(self, feature_set: str, images, **options):
        """The uncorrected profile of images; the network's weights are not where they are looked for."""
        settings = {"weights": str(self.weights)} if feature_set.startswith("deep") else {}
        return profile_of_images(self.lake, feature_set, "none", images, settings=settings, **options)

    def of_field(self, row: int, channels: tuple[str, ...] = THREE_OF) -> list[str]:
        """What is typed for one field."""
        return [f"{channel}={self.folder / self.fields[f'path_{channel}'][row]}" for channel in channels]


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """A lake of four feature sets: whole fields and crops cut from them, by a network and by measurements."""
    folder = simulate_screen(tmp_path_factory.mktemp("pictured") / "screen", SCREEN).folder
    manifest = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    manifest = manifest.filter(pl.col("well").rank("dense") <= 2)
    manifest.write_csv(folder / "manifest.csv")
    with new_lake(folder.parent / "lake") as lake:
        screen = read_screen(folder / "manifest.csv", channels=list(THREE_OF))
        weights = folder / "weights.safetensors"
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
        deep = registry.create("transfer", THREE_OF, DEEP | {"weights": str(weights)})
        quick = registry.create("cellprofiler", THREE_OF, QUICK)
        ingest_screen(lake, screen, deep, feature_set="deep", settings=ONE_AT_A_TIME)
        settings = PipelineSettings(field_operator="mean", well_operator="weighted_mean")
        ingest_screen(lake, screen, quick, feature_set="measured", settings=settings)
        crops = cut(lake, folder, manifest)
        crops.write_csv(folder / "crops.csv")
        screen = read_screen(folder / "crops.csv", channels=list(THREE_OF))
        for name, extractor in (("deep_crops", deep), ("measured_crops", quick)):
            ingest_screen(lake, screen, extractor, feature_set=name, settings=ONE_AT_A_TIME)
        plate = lake.frame("SELECT source, batch, plate FROM main.plate_loads LIMIT 1").row(0)
        yield Pictured(lake, folder, manifest, crops, plate, weights)


def cut(lake: Lake, folder: Path, manifest: pl.DataFrame) -> pl.DataFrame:
    """Save two cells of each field as crops, whose planes are in another order than the channels."""
    found = lake.frame("SELECT well, field, cell, x_px, y_px FROM deep.cells ORDER BY ALL")
    rows = []
    for row in manifest.iter_rows(named=True):
        pixels = np.stack([tifffile.imread(folder / row[f"path_{channel}"]) for channel in THREE_OF[::-1]])
        cells = found.filter((pl.col("well") == row["well"]) & (pl.col("field") == row["field"]))
        for cell, x, y in cells.select("cell", "x_px", "y_px").head(2).iter_rows():
            left, top = (int(np.clip(at - 30, 0, 128 - 60)) for at in (x, y))
            path = folder / f"{row['well']}_{row['field']}_{cell}.npy"
            np.save(path, pixels[:, top : top + 60, left : left + 60])
            ids = {name: row.get(name) for name in ("source", "batch", "plate", "well", "field")}
            rows.append(
                ids
                | {"cell": cell}
                | {f"path_{channel}": path.name for channel in THREE_OF}
                | {f"plane_{channel}": 2 - number for number, channel in enumerate(THREE_OF)}
            )
    return pl.DataFrame(rows)


def wells_of(lake: Lake, feature_set: str) -> dict[str, np.ndarray]:
    frame = lake.frame(f"SELECT well, embedding FROM {feature_set}.wells ORDER BY well")
    return dict(zip(frame["well"], to_matrix(frame["embedding"], len(frame["embedding"][0])), strict=True))


def field_of(lake: Lake, feature_set: str, well: str, field: str) -> np.ndarray:
    query = f"SELECT embedding FROM {feature_set}.fields WHERE well = ? AND field = ?"
    return lake.frame(query, [well, field])["embedding"][0].to_numpy()


@pytest.mark.parametrize("feature_set", ["deep", "measured"])
def test_the_fields_of_a_well_give_its_profile(pictured, feature_set):
    committed = wells_of(pictured.lake, feature_set)
    assert len(committed) == 2
    well = list(committed)[1]
    rows = [row for row, name in enumerate(pictured.fields["well"]) if name == well]
    images = [image for row in rows for image in pictured.of_field(row)]
    found = pictured.profile(feature_set, images)
    np.testing.assert_allclose(found.raw, committed[well], rtol=1e-6, atol=NEAR[feature_set])
    np.testing.assert_array_equal(found.vector, found.raw)
    query = f"SELECT field_count, cell_count FROM {feature_set}.wells WHERE well = ?"
    assert (found.fields, found.cells) == pictured.lake.frame(query, [well]).row(0)
    one = pictured.profile(feature_set, images[:3])
    expected = field_of(pictured.lake, feature_set, well, pictured.fields["field"][rows[0]])
    np.testing.assert_allclose(one.raw, expected, rtol=1e-6, atol=1e-6)
    assert one.fields == 1
    assert np.abs(one.raw - committed[well]).max() > 1e-3


@pytest.mark.parametrize("feature_set", ["deep_crops", "measured_crops"])
def test_the_crops_of_a_well_give_its_profile(pictured, feature_set):
    well, committed = list(wells_of(pictured.lake, feature_set).items())[1]
    crops = pictured.crops.filter(pl.col("well") == well)
    images, names = [pictured.folder / name for name in crops["path_DNA"]], crops["field"].to_list()
    found = pictured.profile(feature_set, images, field_names=names)
    np.testing.assert_allclose(found.raw, committed, rtol=1e-6, atol=NEAR[feature_set])
    assert (found.cells, found.fields) == (len(images), 2)
    assert "each picture was taken as one cell" in found.notes[0]
    one = pictured.profile(
        feature_set, [image for image, name in zip(images, names, strict=True) if name == names[0]]
    )
    expected = field_of(pictured.lake, feature_set, well, names[0])
    np.testing.assert_allclose(one.raw, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("recipe", ["standardize(on=all)", "fields:standardize(on=all)"])
def test_a_corrected_picture_is_the_row_of_the_recipe(pictured, recipe):
    name = correct(pictured.lake, "measured", recipe).recipe
    table = profiles.read(pictured.lake, "measured", recipe=name, level="well")
    well = table.rows["well"][1]
    rows = [row for row, of in enumerate(pictured.fields["well"]) if of == well]
    images = [image for row in rows for image in pictured.of_field(row)]
    before = pictured.lake.snapshot()
    found = profile_of_images(pictured.lake, "measured", recipe, images, plate=pictured.plate, name="mine")
    np.testing.assert_allclose(found.vector, table.matrix[1], rtol=1e-5, atol=1e-5)
    assert (found.name, found.plate) == ("mine", pictured.plate)
    assert pictured.lake.snapshot() == before
    with pytest.raises(RecipeError, match=r"step standardize is fitted for each plate.*--plate"):
        profile_of_images(pictured.lake, "measured", recipe, images)


def test_a_file_of_all_channels_is_read_by_its_planes(pictured, tmp_path):
    paths = [image.partition("=")[2] for image in pictured.of_field(0)]
    apart = pictured.profile("measured", pictured.of_field(0))
    planes = np.stack([tifffile.imread(path) for path in paths])
    tifffile.imwrite(tmp_path / "stack.ome.tif", planes, metadata={"axes": "CYX"}, photometric="minisblack")
    stacked = pictured.profile("measured", [tmp_path / "stack.ome.tif"])
    np.testing.assert_array_equal(stacked.raw, apart.raw)
    tifffile.imwrite(
        tmp_path / "more.tif", np.concatenate([planes[::-1], planes[:1]]), photometric="minisblack"
    )
    with pytest.raises(
        ImageError, match=r"holds more planes than DNA, RNA, AGP: say which they are, as in DNA=.*:0"
    ):
        pictured.profile("measured", [tmp_path / "more.tif"])
    named = [f"{channel}={tmp_path / 'more.tif'}:{2 - i}" for i, channel in enumerate(THREE_OF)]
    np.testing.assert_array_equal(pictured.profile("measured", named).raw, apart.raw)
    lower = [image.replace("DNA=", "dna=") for image in pictured.of_field(0)]
    np.testing.assert_array_equal(pictured.profile("measured", lower).raw, apart.raw)


def test_a_field_without_cells_is_left_out_and_told(pictured, tmp_path):
    tifffile.imwrite(tmp_path / "dark.tif", np.full((3, 128, 128), 100, np.uint16), photometric="minisblack")
    dark = [f"{channel}={tmp_path / 'dark.tif'}:{plane}" for plane, channel in enumerate(THREE_OF)]
    one = pictured.profile("measured", pictured.of_field(0))
    both = pictured.profile("measured", [*pictured.of_field(0), *dark])
    np.testing.assert_array_equal(both.raw, one.raw)
    assert both.notes == ("1 of 2 fields without a cell left out (first: field 2)",)
    with pytest.raises(
        SearchError, match=r"dark.tif: no cell was found in channel 'DNA'.*'measured' .*whole field"
    ):
        pictured.profile("measured", dark)
    np.save(tmp_path / "dark.npy", np.full((3, 60, 60), 100, np.uint16))
    with pytest.raises(
        SearchError, match=r"dark.npy: none of its 1 cells can be used \(first: feature .* is nan\)"
    ):
        pictured.profile("measured_crops", [tmp_path / "dark.npy"])


def wrong(pictured: Pictured, folder: Path) -> dict[str, tuple[list[Path | str], type[WellhouseError], str]]:
    """What a person may give by mistake, and a part of what is said."""
    good = pictured.of_field(0)
    path = Path(good[0].partition("=")[2])
    (folder / "empty.tif").touch()
    (folder / "text.tif").write_text("no image at all")
    (folder / "notes.txt").write_text("no image at all")
    tifffile.imwrite(folder / "small.tif", np.ones((64, 64), np.uint16))
    tifffile.imwrite(folder / "rgb.tif", np.ones((64, 64, 3), np.uint8), photometric="rgb")
    return {
        "nothing": ([], ImageError, "no picture: give each channel of feature set 'measured' a file, DNA=FILE"),
        "channel missing": (good[:2], ImageError, r"channel 'AGP' is missing: give each .* DNA=FILE RNA=FILE AGP=FILE"),
        "channel unknown": ([*good, f"RNAs={path}"], UnknownNameError, r"channel 'RNAs'. Did you mean 'RNA'\?"),
        "channel twice": ([*good, good[0]], ImageError, r"different numbers of files \(DNA 2, RNA 1, AGP 1\)"),
        "file twice": ([good[0], good[1], f"AGP={path}"], ImageError, "is given twice, for DNA and for AGP: give each"),
        "again": ([*good, *good], ImageError, "is given twice, for DNA and for DNA: give each file once"),
        "one channel": ([path], ImageError, r"does not hold 3 channels: give each channel"),
        "mixed": ([*good, path], ImageError, r"comes without a channel, and others with one"),
        "no file": ([*good[:2], "AGP=away.tif"], ImageError, "away.tif: no such file: correct the path of the picture"),
        "folder": ([folder], ImageError, "is a folder: name its image files one by one"),
        "empty": ([*good[:2], f"AGP={folder}/empty.tif"], ImageError, r"empty.tif: is empty \(0 bytes\)"),
        "text": ([*good[:2], f"AGP={folder}/text.tif"], ImageError, "text.tif: cannot be decoded"),
        "text alone": ([folder / "text.tif"], ImageError, "text.tif: cannot be decoded"),
        "kind": ([folder / "notes.txt"], ImageError, "unknown image type '.txt': expected one of .tif"),
        "size": ([*good[:2], f"AGP={folder}/small.tif"], ImageError, "channel 'AGP' is 64 × 64 uint16, channel 'DNA'"),
        "colour": ([*good[:2], f"AGP={folder}/rgb.tif"], ImageError, r"rgb.tif: holds 3 planes \(RGB or several"),
        "plane": ([*good[:2], f"AGP={folder}/small.tif:4"], ImageError, "plane 4 is out of range: expected 0 to 0"),
        "bucket": (["s3://bucket/a.tif"], ImageError, "must be on this machine: copy it here first"),
    }  # fmt: skip


def test_wrong_pictures_are_refused_in_one_sentence(pictured, tmp_path):
    for name, (images, error, message) in wrong(pictured, tmp_path).items():
        with pytest.raises(error) as raised:
            pictured.profile("measured", images)
        assert re.search(message, str(raised.value)), f"{name}: {raised.value}"
        assert "\n" not in str(raised.value), name


def test_names_of_fields_that_do_not_fit_are_refused(pictured):
    images = [*pictured.of_field(0), *pictured.of_field(1)]
    for names, told in ((["1"], "1"), (["1", "1"], "2")):
        with pytest.raises(
            ImageError, match=f"2 pictures have {told} names of fields.*: give each field another"
        ):
            pictured.profile("measured", images, field_names=names)


# ------------------------------------------------------------------------------------------------ the extractor


@pytest.mark.parametrize("is_crops", [False, True])
@pytest.mark.parametrize("name", ["transfer", "cellprofiler"])
def test_an_extractor_is_made_again_from_what_is_recorded(name, is_crops):
    extractor = registry.create(name, THREE_OF, {"transfer": {"size": 64}, "cellprofiler": QUICK}[name])
    segmented = PipelineSettings(segmentation=SegmentSettings(min_area_px=50), well_operator="median")
    settings = PipelineSettings(well_operator="median") if is_crops else replace(segmented, dna_channel="DNA")
    target = pipeline.feature_set_of("any", extractor, settings, is_crops)
    again, extraction = remade(target)
    assert pipeline.feature_set_of("any", again, extraction, is_crops).identity() == target.identity()
    assert extraction.well_operator == "median"
    assert extraction.segmentation == settings.segmentation


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("measured", {"version": "0+cp_measure.0.1"}, r"with version 0\+cp_measure.0.1, and here it has 1\+cp_measure"),
        ("deep", {"weights": "ab" * 32}, r"weights abababababababab…, and here it has [0-9a-f]{16}….*weights=FILE"),
        ("deep", {"version": "0"}, r"with version 0, and here it has 1: .*ingest the screen again"),
        ("deep", {"extractor": "import"}, r"was imported: no extractor here made it"),
        ("deep", {"extractor": "vit"}, r"by extractor 'vit', which is not here \(there is cellprofiler, transfer, "),
        ("deep", {"parameters": {"model": "resnet"}}, r"[0-9a-f]{16}…, which cannot be had: unknown timm model"),
        ("deep", {"parameters": {"sizes": 3}}, r"cannot be had: unknown setting of transfer 'sizes'"),
        ("deep", {"feature_names": ("a", "b", "c", "d")}, r"feature_names 4 names \(a, b, c, …\), and here it has 2"),
        ("measured", {"segmentation": {"min_area": 3}}, r"cannot be had: .*unexpected keyword argument 'min_area'"),
        ("measured", {"segmentation": {}}, r"with segmentation.smoothing_px None, and here it has 1.0"),
    ],
)  # fmt: skip
def test_another_extractor_is_refused_by_what_differs(pictured, name, change, message):
    target = feature_sets.find(pictured.lake, name)
    if "segmentation" in change:
        change = {"parameters": target.parameters | change}
    elif "parameters" in change:
        change = {"parameters": target.parameters | change["parameters"]}
    settings = {"weights": str(pictured.weights)} if name == "deep" and "model" not in str(change) else {}
    with pytest.raises(SearchError, match=message):
        remade(replace(target, **change), settings)


def test_an_imported_feature_set_is_refused_before_a_picture_is_read(wells_lake):
    for recipe, images in (("none", ["absent.tif"]), ("none", []), ("never fitted", ["DNA=absent.tif"])):
        with pytest.raises(SearchError, match=r"^feature set 'wide' was imported: no extractor can make its"):
            profile_of_images(wells_lake, "wide", recipe, images)


def test_settings_that_change_a_number_are_refused(pictured):
    target, weights = feature_sets.find(pictured.lake, "deep"), str(pictured.weights)
    assert remade(target, {"batch_size": 2, "device": "cpu", "weights": weights})[0].batch_size == 2
    with pytest.raises(SearchError, match="with size 32, and here it has 64"):
        remade(target, {"size": 64, "weights": weights})
    with pytest.raises(SearchError, match=r"SHA-256 [0-9a-f]{16}…, which cannot be had: .*give weights=FILE"):
        remade(target)
    with pytest.raises(SearchError, match=r"weights nowhere\.pth: there is no such file"):
        remade(target, {"weights": "nowhere.pth"})


def test_weights_of_the_package_need_not_be_named(monkeypatch):
    made = registry.create("imagenet_efficientnet", THREE_OF[:1], {"preset": "small", "size": 32})
    target = pipeline.feature_set_of("baseline", made, PipelineSettings(dna_channel="DNA"), is_crops=False)
    again, extraction = remade(target)
    assert (
        pipeline.feature_set_of("baseline", again, extraction, is_crops=False).identity() == target.identity()
    )
    with pytest.raises(SearchError, match=r"weights nowhere\.pth: there is no such file"):
        remade(target, {"weights": "nowhere.pth"})

    def away(*_: object, **__: object) -> None:
        raise OSError(101, "no network")

    monkeypatch.setattr(timm, "create_model", away)
    for other in (
        {"weights": "ab" * 32},
        {"parameters": target.parameters | {"model": "tf_efficientnet_b0"}},
    ):
        with pytest.raises(
            SearchError, match=r"cannot be had from the hub \(.*no network\): give weights=FILE"
        ):
            remade(replace(target, **other))


def test_channels_without_the_default_nuclei_channel_are_no_hindrance():
    # A default that names a channel: images of whole fields need not have it.
    made = registry.create("cellprofiler", ("Hoechst", "Actin"), QUICK)
    settings = PipelineSettings(dna_channel="Hoechst", cell_channel="Actin")
    target = pipeline.feature_set_of("other", made, settings, is_crops=False)
    again, _ = remade(target)
    assert again.parameters == made.parameters
