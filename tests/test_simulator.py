import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile
from scipy import ndimage

from extractors.simulator import (
    CHANNELS,
    PHENOTYPES,
    SimulatedScreen,
    SimulatorSettings,
    profile_model,
    simulate_profiles,
    simulate_screen,
    simulated_annotations,
    simulated_layout,
)
from extractors.simulator.cells import draw_cells, make_cell
from extractors.simulator.layout import compounds, plan_wells, plate_name, used_positions, well_name
from extractors.simulator.optics import OFFSET, plate_optics
from extractors.simulator.phenotypes import UNTREATED, hill, parameters_at
from extractors.simulator.screen import simulate_field
from warehouse.errors import ScreenError

SMALL = SimulatorSettings(
    seed=7, wells_per_plate=18, fields=2, field_px=192, cells_per_field=6, phenotypes=3, dmso_wells=4,
    positive_wells=1,
)  # fmt: skip
WELL = ["source", "batch", "plate", "well"]


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> SimulatedScreen:
    return simulate_screen(tmp_path_factory.mktemp("screen") / "small", SMALL)


def read(path: Path) -> pl.DataFrame:
    return pl.read_csv(path, schema_overrides={"field": pl.String})


# ---------------------------------------------------------------------------------------------- layout


def test_hill_at_hand_worked_points():
    assert hill(1.0, 1.0) == pytest.approx(0.5)
    assert hill(4.0, 1.0, slope=1.5) == pytest.approx(8 / 9)
    assert hill(0.25, 1.0, slope=1.5) == pytest.approx(1 / 9)


def test_wells_are_named_as_the_contract_says():
    assert [well_name(*at) for at in ((1, 1), (7, 11), (26, 0), (31, 47))] == ["B02", "H12", "AA01", "AF48"]
    assert used_positions(SimulatorSettings())[0] == (1, 2)
    assert used_positions(SimulatorSettings())[-1] == (6, 9)


@pytest.mark.parametrize(("plate_format", "wells"), [(96, 96), (384, 384), (1536, 1536), (384, 50)])
def test_used_wells_are_different_and_on_the_plate(plate_format, wells):
    settings = SimulatorSettings(plate_format=plate_format, wells_per_plate=wells)
    used = used_positions(settings)
    rows, columns = {96: (8, 12), 384: (16, 24), 1536: (32, 48)}[plate_format]
    assert len(used) == len(set(used)) == wells
    assert all(0 <= row < rows and 0 <= column < columns for row, column in used)


def test_default_layout_holds_every_treatment_in_every_batch():
    settings = SimulatorSettings()
    layout = simulated_layout(settings)
    assert layout.height == 2 * 2 * 48
    assert layout.select(WELL).is_unique().all()
    controls = layout.group_by("plate", "control_type").len().sort("plate", "control_type")
    assert controls.filter(pl.col("control_type") == "negative")["len"].to_list() == [8] * 4
    assert controls.filter(pl.col("control_type") == "positive")["len"].to_list() == [2] * 4
    treated = layout.filter(pl.col("control_type") == "none")
    batches = treated.group_by("compound", "concentration").agg(pl.col("batch").n_unique())
    assert batches.height == settings.treatments == 72
    assert batches["batch"].to_list() == [2] * 72
    assert set(treated["unit"]) == {"uM"}
    vehicle = layout.filter(pl.col("control_type") == "negative")
    assert set(vehicle["compound"]) == {"DMSO"}
    assert vehicle["concentration"].null_count() == vehicle.height


def test_treatments_that_fit_are_on_every_plate_at_other_places():
    layout = simulated_layout(replace(SMALL, plates_per_batch=3, wells_per_plate=30))
    treated = layout.filter(pl.col("control_type") == "none")
    assert (treated.group_by("compound", "concentration").agg(pl.col("plate").n_unique())["plate"] == 6).all()
    by_plate = [part["compound"].to_list() for part in layout.partition_by("plate", maintain_order=True)]
    assert len({tuple(column) for column in by_plate}) == 6


def test_a_batch_does_not_depend_on_the_number_of_batches():
    one, three = simulated_layout(replace(SMALL, batches=1)), simulated_layout(replace(SMALL, batches=3))
    assert three.head(one.height).equals(one)


def test_annotations_name_the_phenotype_and_some_targets():
    table = simulated_annotations(SMALL)
    moa = table.filter(pl.col("kind") == "moa")
    assert dict(moa.select("compound", "label").iter_rows()) == {
        "synthol-01": "large-nuclei", "synthol-02": "large-nuclei", "synthol-03": "small-cells",
        "synthol-04": "small-cells", "synthol-05": "round-cells", "synthol-06": "round-cells",
        "synthol-positive": "mitotic-arrest",
    }  # fmt: skip
    target = table.filter(pl.col("kind") == "target")
    assert dict(target.select("compound", "label").iter_rows()) == {
        "synthol-01": "SYNGENE1", "synthol-02": "SYNGENE1",
        "synthol-05": "SYNGENE2", "synthol-06": "SYNGENE2",
    }  # fmt: skip
    assert table["concentration"].null_count() == table.height


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": 0}, "setting batches is 0: give 1 or more"),
        ({"seed": -3}, "setting seed is -3: give 0 or more"),
        ({"phenotypes": 99}, f"setting phenotypes is 99: give {len(PHENOTYPES)} or less"),
        ({"illumination": 1.0}, r"setting illumination is 1\.0: give 0\.95 or less"),
        ({"dtype": "float64"}, "setting dtype is 'float64': give one of uint16, uint8"),
        ({"plate_format": 97}, "setting plate_format is 97: give one of 96, 384, 1536"),
        ({"doses": (2.0, 1.0)}, r"setting doses is \(2\.0, 1\.0\): give different values above 0 uM, rising"),
        ({"doses": (0.0, 1.0)}, r"setting doses is \(0\.0, 1\.0\)"),
        ({"wells_per_plate": 97}, "setting wells_per_plate is 97, but the plate has 96"),
        ({"plates_per_batch": 1}, "72 treatments do not fit into the 38 wells"),
    ],
)
def test_settings_that_cannot_be_simulated_are_refused(change, message):
    with pytest.raises(ScreenError, match=message):
        SimulatorSettings(**change)


# ------------------------------------------------------------------------------------------ the screen


def test_files_and_tables_are_complete(screen):
    manifest, layout = read(screen.manifest), read(screen.layout)
    assert manifest.columns == [*WELL, "field", *(f"path_{channel}" for channel in CHANNELS)]
    assert layout.columns == [*WELL, "compound", "concentration", "unit", "control_type"]
    assert manifest.height == 2 * 2 * 18 * 2
    assert layout.height == 2 * 2 * 18
    assert manifest.join(layout, on=WELL, how="anti").is_empty()
    paths = manifest.select(pl.concat_list(pl.col("^path_.*$")).explode()).to_series().to_list()
    assert len(set(paths)) == manifest.height * 5
    assert sorted(paths) == sorted(
        path.relative_to(screen.folder).as_posix() for path in screen.folder.rglob("*.tif")
    )
    assert sorted(path.name for path in screen.folder.glob("*.*")) == [
        "annotations.csv", "layout.csv", "manifest.csv", "truth.csv",
    ]  # fmt: skip
    assert read(screen.annotations).columns == ["compound", "concentration", "unit", "kind", "label"]
    truth = read(screen.truth)
    assert truth.join(manifest, on=[*WELL, "field"], how="anti").is_empty()
    assert truth.height / manifest.height == pytest.approx(SMALL.cells_per_field, rel=0.25)


def test_everything_says_that_it_is_synthetic(screen):
    layout = read(screen.layout)
    assert set(layout["source"]) == {"synthetic"}
    assert layout["plate"].str.starts_with("SYNTH-").all()
    assert layout.filter(pl.col("control_type") != "negative")["compound"].str.starts_with("synthol-").all()


def test_images_are_lzw_tiffs_of_the_stated_type(screen):
    row = read(screen.manifest).row(5, named=True)
    for channel in CHANNELS:
        with tifffile.TiffFile(screen.folder / row[f"path_{channel}"]) as file:
            assert file.pages[0].compression == tifffile.COMPRESSION.LZW
            assert file.asarray().shape == (192, 192)
            assert file.asarray().dtype == np.uint16


def test_a_field_is_the_same_whenever_it_is_simulated(screen):
    plan = plan_wells(SMALL)[-1]
    pixels, cells = simulate_field(SMALL, plan, 1, plate_optics(SMALL, plan.batch, plan.plate))
    stem = screen.folder / "images" / plate_name(plan.batch, plan.plate) / f"{plan.well}_f2"
    written = [tifffile.imread(stem.with_name(f"{stem.name}_{channel}.tif")) for channel in CHANNELS]
    assert np.array_equal(pixels, np.stack(written))
    truth = read(screen.truth).filter(
        (pl.col("plate") == "SYNTH-B2-P2") & (pl.col("well") == plan.well) & (pl.col("field") == "2")
    )
    assert truth.height == len(cells)


def test_same_seed_same_bytes_and_other_seed_other_pixels(tmp_path):
    tiny = replace(
        SMALL, batches=1, plates_per_batch=1, wells_per_plate=8, phenotypes=1, doses=(8.0,), fields=1,
        dmso_wells=2, field_px=64, cells_per_field=2,
    )  # fmt: skip
    first = simulate_screen(tmp_path / "a", tiny)
    second = simulate_screen(tmp_path / "b", tiny)
    other = simulate_screen(tmp_path / "c", replace(tiny, seed=8))
    names = sorted(path.relative_to(first.folder) for path in first.folder.rglob("*.*"))
    assert len(names) == 8 * 5 + 4
    assert all((first.folder / name).read_bytes() == (second.folder / name).read_bytes() for name in names)
    images = [name for name in names if name.suffix == ".tif"]
    assert not any(
        (first.folder / name).read_bytes() == (other.folder / name).read_bytes() for name in images
    )


def test_dna_is_bright_where_the_truth_says_and_dark_elsewhere(screen):
    manifest, truth = read(screen.manifest), read(screen.truth)
    rows, columns = np.mgrid[:192, :192]
    for row in manifest.filter(pl.col("plate") == "SYNTH-B1-P1").iter_rows(named=True):
        cells = truth.filter(pl.all_horizontal(pl.col(name) == row[name] for name in (*WELL, "field")))
        dna = ndimage.gaussian_filter(tifffile.imread(screen.folder / row["path_DNA"]).astype(float), 1)
        far = np.ones(dna.shape, bool)
        for x, y in cells.select("x_px", "y_px").iter_rows():
            far &= np.hypot(columns - x, rows - y) > 45
        if not far.any() or cells.is_empty():
            continue
        dark, spread = np.median(dna[far]), dna[far].std()
        at = dna[cells["y_px"].round().cast(int).clip(0, 191), cells["x_px"].round().cast(int).clip(0, 191)]
        assert (at > 2 * dark).all(), row
        assert spread < 0.1 * dark, row


def test_large_nuclei_are_measured_large_in_the_written_images(screen):
    table = read(screen.manifest).join(read(screen.layout), on=WELL)
    moa = read(screen.annotations).filter(pl.col("kind") == "moa").select("compound", "label")
    table = table.join(moa, on="compound", how="left")
    areas = {}
    for name, chosen in (
        ("DMSO", pl.col("compound") == "DMSO"),
        ("low", (pl.col("label") == "large-nuclei") & (pl.col("concentration") == 0.5)),
        ("high", (pl.col("label") == "large-nuclei") & (pl.col("concentration") == 8.0)),
    ):
        sizes = []
        for path in table.filter(chosen)["path_DNA"]:
            dna = ndimage.gaussian_filter(tifffile.imread(screen.folder / path).astype(float), 1)
            labels, _ = ndimage.label(dna > 2 * np.median(dna))
            sizes.extend(np.bincount(labels.ravel())[1:])
        areas[name] = np.median(sizes)
    assert areas["high"] > 1.5 * areas["DMSO"]
    assert areas["DMSO"] < areas["low"] < areas["high"]


def test_effect_rises_with_dose(screen):
    with_dose = read(screen.truth).join(read(screen.layout), on=WELL)
    treated = with_dose.filter(pl.col("control_type") == "none")
    means = (
        treated.group_by("compound", "concentration")
        .agg(pl.col("effect").mean())
        .sort("compound", "concentration")
    )
    for part in means.partition_by("compound"):
        low, middle, high = part["effect"].to_list()
        assert low + 0.2 < middle < high - 0.1
    assert with_dose.filter(pl.col("control_type") == "negative")["effect"].max() == 0.0


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(
        ScreenError, match=rf"into {re.escape(str(tmp_path))}: it holds files already; give an empty folder"
    ):
        simulate_screen(tmp_path, SMALL)
    with pytest.raises(ScreenError, match=r"note\.txt: it is a file; give an empty folder"):
        simulate_screen(tmp_path / "note.txt", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_an_interrupted_run_has_no_manifest_and_is_not_continued(tmp_path):
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_screen(tmp_path / "screen", SMALL, progress=stop)
    assert seen == [(1, 144), (2, 144)]
    assert list((tmp_path / "screen").rglob("*.tif"))
    assert not (tmp_path / "screen" / "manifest.csv").exists()
    with pytest.raises(ScreenError, match="holds files already"):
        simulate_screen(tmp_path / "screen", SMALL)


def test_a_lethal_dose_leaves_images_without_cells(tmp_path):
    settings = SimulatorSettings(
        batches=1, plates_per_batch=1, wells_per_plate=28, compounds_per_phenotype=1, doses=(2.0, 8.0),
        dmso_wells=3, positive_wells=1, field_px=96, cells_per_field=4, lethal_top_dose=True,
    )  # fmt: skip
    written = simulate_screen(tmp_path / "screen", settings)
    lethal = read(written.layout).filter(
        (pl.col("compound") == "synthol-12") & (pl.col("concentration") == 8.0)
    )
    assert lethal.height == 1
    assert read(written.truth).join(lethal, on=WELL, how="semi").is_empty()
    row = read(written.manifest).join(lethal, on=WELL, how="semi").row(0, named=True)
    dna = ndimage.gaussian_filter(tifffile.imread(tmp_path / "screen" / row["path_DNA"]).astype(float), 2)
    assert dna.max() < 1.3 * np.median(dna)


# ------------------------------------------------------------------------------------------ phenotypes


def nuclear_area(image):
    return float((image[0] > 500).sum())


def cell_area(image):
    return float((image[2] > 60).sum())


def elongation(image):
    values = np.linalg.eigvalsh(np.cov(np.argwhere(image[2] > 60).T))
    return float(np.sqrt(values[1] / values[0]))


def roundness(image):
    mask = image[2] > 60
    points = np.argwhere(mask)
    reach = np.linalg.norm(points - points.mean(axis=0), axis=1).max()
    return float(mask.sum() / (np.pi * reach**2))


def nucleus_count(image):
    return float(ndimage.label(ndimage.gaussian_filter(image[0], 0.7) > 900)[1])


def dna_brightness(image):
    return float(np.percentile(image[0][image[0] > 500], 75))


def dna_texture(image):
    inside = ndimage.binary_erosion(image[0] > 500, iterations=2)
    return float(image[0][inside].std() / image[0][inside].mean()) if inside.sum() > 9 else 0.0


def total(channel):
    return lambda image: float(image[CHANNELS.index(channel)].sum())


def nucleolus_count(image):
    rna = image[2]
    peak = (rna == ndimage.maximum_filter(rna, 3)) & (image[0] > 500)
    return float((peak & (rna > 1000)).sum())


def actin_contrast(image):
    inside = ndimage.binary_erosion(image[2] > 60, iterations=6)
    sharp = image[3] - ndimage.gaussian_filter(image[3], 3)
    return float(sharp[inside].std())


def golgi_spread(image):
    inside = ndimage.binary_erosion(image[2] > 60, iterations=5)
    agp = np.where(inside, image[3], 0)
    brightest = np.argwhere(agp >= np.partition(agp.ravel(), -30)[-30])
    return float(brightest.std(axis=0).mean())


def mito_patches(image):
    mito = image[4][image[2] > 60]
    return float(mito.std() / mito.mean())


#: Phenotype, what is measured, least ratio of full effect to untreated (below 1: largest).
EXPECTED = [
    ("large-nuclei", nuclear_area, 1.6),
    ("small-cells", cell_area, 0.7),
    ("round-cells", roundness, 1.35),
    ("elongated-cells", elongation, 1.6),
    ("multinucleated", nucleus_count, 1.5),
    ("condensed-chromatin", dna_brightness, 1.7),
    ("condensed-chromatin", dna_texture, 1.7),
    ("er-stress", total("ER"), 2.0),
    ("nucleolar-fragmentation", nucleolus_count, 1.5),
    ("stress-fibres", actin_contrast, 2.5),
    ("golgi-dispersal", golgi_spread, 2.0),
    ("mito-fragmentation", mito_patches, 1.2),
    ("mitotic-arrest", dna_brightness, 1.3),
    ("mito-loss", total("Mito"), 0.5),
]


def mean_measure(phenotype, effect, measure):
    values = []
    for cell in range(60):
        rng = np.random.default_rng([11, cell])
        shape = make_cell(rng, 80.0, 80.0, parameters_at(phenotype, effect), effect)
        values.append(measure(draw_cells(rng, [shape], 160)))
    return float(np.mean(values))


@pytest.mark.parametrize(("name", "measure", "ratio"), EXPECTED)
def test_phenotypes_change_what_they_say_and_more_at_a_higher_effect(name, measure, ratio):
    phenotype = next(phenotype for phenotype in PHENOTYPES if phenotype.name == name)
    none, half, full = (mean_measure(phenotype, effect, measure) for effect in (0.0, 0.5, 1.0))
    if ratio > 1:
        assert full / none >= ratio
        assert none < half < full
    else:
        assert full / none <= ratio
        assert none > half > full


def test_a_toxic_compound_leaves_fewer_cells():
    plan = next(plan for plan in plan_wells(SMALL) if plan.compound and plan.control_type == "none")
    toxic = replace(
        plan.compound, phenotype=next(p for p in PHENOTYPES if p.name == "toxic"), half_effect=1.0
    )
    optics = plate_optics(SMALL, 0, 0)
    counts = [
        sum(
            len(simulate_field(SMALL, replace(plan, compound=compound, concentration=dose), field, optics)[1])
            for field in range(12)
        )
        for compound, dose in ((None, None), (toxic, 1.0), (toxic, 50.0))
    ]
    assert counts[2] < 0.45 * counts[0]
    assert counts[2] < counts[1] < counts[0]


def test_every_phenotype_changes_a_known_parameter_and_is_tested():
    assert len(PHENOTYPES) >= 12
    assert len({phenotype.name for phenotype in PHENOTYPES}) == len(PHENOTYPES)
    for phenotype in PHENOTYPES:
        assert parameters_at(phenotype, 0.0) == UNTREATED
        changed = parameters_at(phenotype, 1.0)
        for name, value in phenotype.at_full_effect.items():
            assert getattr(changed, name) == pytest.approx(value)
            assert value != getattr(UNTREATED, name)
    assert {name for name, _, _ in EXPECTED} | {"toxic"} == {phenotype.name for phenotype in PHENOTYPES}


def test_compounds_of_one_phenotype_are_alike_but_not_the_same():
    first, second = compounds(SMALL)[:2]
    assert first.phenotype is second.phenotype
    one, two = (parameters_at(c.phenotype, 1.0, c.quirk).nucleus_radius for c in (first, second))
    assert one != two
    assert one == pytest.approx(17.5, rel=0.15)
    assert two == pytest.approx(17.5, rel=0.15)


# -------------------------------------------------------------------------------------------- optics


def empty_fields(**change):
    settings = replace(SMALL, cells_per_field=0, field_px=128, **change)
    optics = plate_optics(settings, 0, 0)
    plan = plan_wells(settings)[0]
    return np.mean([simulate_field(settings, plan, field, optics)[0] for field in range(40)], axis=0) - OFFSET


def test_light_falls_to_the_corners_by_the_stated_share():
    mean = empty_fields(batch_strength=0.0, illumination=0.5)
    middle = mean[:, 48:80, 48:80].mean(axis=(1, 2))
    ends = (slice(8), slice(-8, None))
    corners = np.stack([mean[:, rows, columns].mean(axis=(1, 2)) for rows in ends for columns in ends])
    assert (corners.max(axis=0) < 0.8 * middle).all()
    assert ((corners.min(axis=0) > 0.45 * middle) & (corners.min(axis=0) < 0.68 * middle)).all()
    flat = empty_fields(batch_strength=0.0, illumination=0.0)
    assert flat[:, :8, :8].mean() == pytest.approx(flat[:, 48:80, 48:80].mean(), rel=0.02)


def test_noise_has_the_stated_variance():
    settings = replace(SMALL, cells_per_field=0, illumination=0.0, batch_strength=0.0)
    pixels, _ = simulate_field(settings, plan_wells(settings)[0], 0, plate_optics(settings, 0, 0))
    # The medium's glow of 60 photo-electrons, read noise 6, and rounding to whole counts.
    assert pixels.var(axis=(1, 2)) == pytest.approx(60 + 36 + 1 / 12, rel=0.05)
    silent, _ = simulate_field(
        replace(settings, noise=0), plan_wells(settings)[0], 0, plate_optics(settings, 0, 0)
    )
    assert set(silent.ravel()) == {180}


def test_eight_bit_images_hold_sixteen_electrons_a_grey_level():
    plan = plan_wells(SMALL)[0]
    optics = plate_optics(SMALL, 0, 0)
    deep, _ = simulate_field(SMALL, plan, 0, optics)
    flat, _ = simulate_field(replace(SMALL, dtype="uint8"), plan, 0, optics)
    assert flat.dtype == np.uint8
    assert np.abs(flat - np.minimum(deep / 16.0, 255)).max() <= 0.54


def share_of_nearest_from_same_batch(x, batch):
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return float((batch[distance.argmin(axis=1)] == batch).mean())


@pytest.mark.parametrize(("strength", "least", "most"), [(0.0, 0.2, 0.8), (2.0, 1.0, 1.0)])
def test_batches_separate_only_where_they_are_meant_to(strength, least, most):
    settings = replace(SMALL, batch_strength=strength, dmso_wells=10, wells_per_plate=21, fields=1)
    values, batches = [], []
    for plan in plan_wells(settings):
        if plan.control_type == "negative":
            pixels, _ = simulate_field(settings, plan, 0, plate_optics(settings, plan.batch, plan.plate))
            values.append([*pixels.mean(axis=(1, 2)), *np.median(pixels, axis=(1, 2))])
            batches.append(plan.batch)
    assert least <= share_of_nearest_from_same_batch(np.array(values), np.array(batches)) <= most


# ------------------------------------------------------------------------------------------- profiles


def test_profiles_have_one_row_a_well_and_repeat():
    x, wells = simulate_profiles(SMALL, 32)
    again, _ = simulate_profiles(SMALL, 32)
    other, _ = simulate_profiles(replace(SMALL, seed=8), 32)
    assert x.shape == (72, 32)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert np.array_equal(x, again)
    assert not np.isclose(x, other).all(axis=1).any()
    assert wells.columns == [*WELL, "compound", "concentration", "unit", "control_type", "moa"]
    assert wells.drop("moa").equals(simulated_layout(SMALL))
    assert wells.filter(pl.col("moa").is_null())["compound"].unique().to_list() == ["DMSO"]


def test_profiles_without_noise_follow_the_model_exactly():
    settings = replace(SMALL, noise=0, batch_strength=0)
    x, wells = simulate_profiles(settings, 16, nuisance_strength=0)
    model = profile_model(settings, 16)
    for row, profile, plan in zip(wells.iter_rows(named=True), x, plan_wells(settings), strict=True):
        if row["compound"] == "DMSO":
            expected = np.zeros(16)
        else:
            expected = plan.effect * model.effects[model.names.index(row["compound"])]
        assert profile == pytest.approx(expected, abs=1e-6), row


def test_the_batch_effect_of_profiles_is_linear_and_known():
    model = profile_model(replace(SMALL, batch_strength=2.0), 16)
    assert model.through_batch(np.zeros((1, 16)), 1)[0] == pytest.approx(model.shift[1])
    matrix = np.diag(model.gain[1]) + model.right[1] @ model.left[1]
    true = np.random.default_rng(3).standard_normal((20, 16))
    seen = model.through_batch(true, 1)
    undone = np.linalg.solve(matrix.T, (seen - model.shift[1]).T).T
    assert undone == pytest.approx(true, abs=1e-9)
    still = profile_model(replace(SMALL, batch_strength=0.0), 16)
    assert still.through_batch(true, 1) == pytest.approx(true)


@pytest.mark.parametrize(("strength", "least", "most"), [(0.0, 0.3, 0.7), (2.0, 1.0, 1.0)])
def test_uncorrected_profiles_separate_by_batch(strength, least, most):
    settings = SimulatorSettings(seed=3, batch_strength=strength)
    x, wells = simulate_profiles(settings, 48)
    is_vehicle = (wells["control_type"] == "negative").to_numpy()
    batch = wells["batch"].to_numpy()[is_vehicle]
    assert least <= share_of_nearest_from_same_batch(x[is_vehicle].astype(float), batch) <= most


def test_profiles_need_a_feature():
    with pytest.raises(ScreenError, match="at least 1 feature, but dim is 0"):
        simulate_profiles(SMALL, 0)
