"""The contract that every extractor of the registry keeps, on small real images (simulated, segmented)."""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
from trained import settings_for_test

from extractors import registry
from extractors.base import CELL_GEOMETRY, Extractor, FieldSample, Masks, SettingError
from extractors.crops import cut_crops
from extractors.images import read_field
from extractors.registry import Entry
from extractors.segment import segment
from extractors.simulator import SimulatorSettings, simulate_screen
from warehouse.errors import UnknownNameError

#: Two channels are enough for the contract, and a quarter of the work of five.
CHANNELS = ("DNA", "RNA")
SCREEN = SimulatorSettings(
    batches=1, plates_per_batch=1, wells_per_plate=4, phenotypes=1, compounds_per_phenotype=1, doses=(2.0,),
    dmso_wells=3, positive_wells=0, field_px=128, cells_per_field=4,
)  # fmt: skip
#: Settings that keep this file quick; an extractor that is not here runs with its own defaults.
QUICK: dict[str, dict[str, object]] = {
    "transfer": {"size": 32, "crop": 64},
    "imagenet_efficientnet": {"model": "tf_efficientnet_lite0", "weights": "package", "size": 32, "crop": 64},
}
#: Settings of how the work is done, which must not change a number.
WORK: dict[str, list[dict[str, object]]] = {
    entry.name: [{"batch_size": 3, "device": "cpu"}] for entry in registry.ALL if entry.trains
} | {
    "transfer": [{"batch_size": 3, "device": "cpu"}],
    "imagenet_efficientnet": [{"batch_size": 3, "device": "cpu"}],
}
#: A setting that exists, with one letter wrong.
MISSPELT = {entry.name: ("modell", "model") for entry in registry.ALL if entry.trains} | {
    "transfer": ("sise", "size"),
    "imagenet_efficientnet": ("layer", "layers"),
    "cellprofiler": ("granularty", "granularity"),
}


def quick(name: str) -> dict[str, object]:
    """Settings of an extractor that keep this file quick; a trained one has a small model of its own."""
    return settings_for_test(name) if registry.entry(name).trains else QUICK.get(name, {})


@dataclass
class Case:
    entry: Entry
    extractor: Extractor
    samples: list[FieldSample]
    outputs: list[np.ndarray]


def _as_crops(fields: list[FieldSample]) -> list[FieldSample]:
    crops = []
    for sample in fields:
        cells = sample.cells
        for name, pixels in zip(
            cells["cell"],
            cut_crops(sample.pixels, cells["x_px"].to_numpy(), cells["y_px"].to_numpy(), 64),
            strict=True,
        ):
            row = {"cell": [name]} | {column: [None] for column in CELL_GEOMETRY if column != "cell"}
            crops.append(
                FieldSample(pixels, CHANNELS, pl.DataFrame(row, schema=dict(CELL_GEOMETRY)), None, True)
            )
    return crops[:4]


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> list[FieldSample]:
    """Four fields, of which the third is empty: its cells, and their masks, were taken out."""
    screen = simulate_screen(tmp_path_factory.mktemp("screen") / "s", SCREEN)
    samples = []
    for row in pl.read_csv(screen.manifest, infer_schema=False).iter_rows(named=True):
        files = {channel: (screen.folder / row[f"path_{channel}"], None) for channel in CHANNELS}
        pixels = read_field(files, CHANNELS)
        cells, masks = segment(pixels[0], pixels[1])
        samples.append(FieldSample(pixels, CHANNELS, cells, masks, is_crop=False))
    nothing = np.zeros_like(samples[2].masks.nuclei)
    samples[2] = replace(samples[2], cells=samples[2].cells.clear(), masks=Masks(nothing, nothing))
    assert [len(sample.cells) > 0 for sample in samples] == [True, True, False, True]
    return samples


@pytest.fixture(scope="module", params=[(entry, kind) for entry in registry.ALL for kind in ("fields", "crops")],
                ids=lambda each: f"{each[0].name}-{each[1]}")  # fmt: skip
def case(request, fields) -> Case:
    entry, kind = request.param
    samples = fields if kind == "fields" else _as_crops(fields)
    extractor = registry.create(entry.name, CHANNELS, quick(entry.name))
    return Case(entry, extractor, samples, extractor.extract(samples))


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_one_finite_float32_row_a_cell(case):
    assert len(case.outputs) == len(case.samples)
    for sample, matrix in zip(case.samples, case.outputs, strict=True):
        assert matrix.dtype == np.float32
        assert matrix.shape == (len(sample.cells), case.extractor.dim)
        assert np.isfinite(matrix).all()


def test_cells_differ(case):
    """A method that gives every cell the same numbers keeps every other rule of this file."""
    rows = np.concatenate(case.outputs)
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_an_image_without_cells_gives_no_row(case, fields):
    (matrix,) = case.extractor.extract([fields[2]])
    assert matrix.shape == (0, case.extractor.dim)
    assert matrix.dtype == np.float32
    assert case.extractor.extract([]) == []


def test_same_result_twice_and_by_another_instance(case):
    again = registry.create(case.entry.name, CHANNELS, quick(case.entry.name))
    for one, other in zip(again.extract(case.samples), case.outputs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_result_does_not_depend_on_what_else_is_in_the_call(case):
    same([case.extractor.extract([sample])[0] for sample in case.samples], case.outputs)
    turned = case.extractor.extract(case.samples[::-1])[::-1]
    same(turned, case.outputs)


def test_settings_of_the_work_change_no_number_and_no_identity(case):
    for setting in WORK.get(case.entry.name, []):
        other = registry.create(case.entry.name, CHANNELS, {**quick(case.entry.name), **setting})
        assert (other.parameters, other.weights) == (case.extractor.parameters, case.extractor.weights)
        same(other.extract(case.samples), case.outputs)


def test_pixels_and_cells_are_left_as_they_were(case):
    before = [(sample.pixels.copy(), sample.cells.clone()) for sample in case.samples[:2]]
    case.extractor.extract(case.samples[:2])
    for sample, (pixels, cells) in zip(case.samples, before, strict=False):
        np.testing.assert_array_equal(sample.pixels, pixels)
        assert sample.cells.equals(cells)


def test_card_is_complete(case):
    extractor = case.extractor
    assert extractor.name == case.entry.name
    assert extractor.channels == CHANNELS
    assert isinstance(extractor.version, str)
    assert len(extractor.feature_names) == extractor.dim
    assert len(set(extractor.feature_names)) == extractor.dim
    assert extractor.weights is None or len(extractor.weights) == 64


def test_the_order_of_channels_is_in_the_names(case):
    if case.entry.trains:  # a model takes the channels that it was trained on
        wanted = r"was trained on channels DNA, RNA, and is given RNA, DNA: .* --channels DNA,RNA"
        with pytest.raises(SettingError, match=wanted):
            registry.create(case.entry.name, CHANNELS[::-1], quick(case.entry.name))
        return
    turned = registry.create(case.entry.name, CHANNELS[::-1], quick(case.entry.name))
    assert turned.channels == CHANNELS[::-1]
    assert turned.feature_names != case.extractor.feature_names


# ------------------------------------------------------------------------------------------ registry


@pytest.mark.parametrize("name", [entry.name for entry in registry.ALL])
def test_unknown_setting_offers_the_nearest(name):
    wrong, right = MISSPELT[name]
    with pytest.raises(
        UnknownNameError, match=f"unknown setting of {name} '{wrong}'. Did you mean '{right}'?"
    ):
        registry.create(name, CHANNELS, {wrong: 1})


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("transfer", {"size": "64px"}, "transfer: size is '64px': give a whole number of 1 or more"),
        ("transfer", {"size": 64.5}, "size is 64.5"),
        ("transfer", {"crop": 0}, "crop is 0"),
        ("transfer", {"batch_size": -1}, "batch_size is -1"),
        ("cellprofiler", {"texture": "no"}, "cellprofiler: texture is 'no': give true or false"),
        (
            "cellprofiler",
            {"texture_scales": 3},
            r"texture_scales is 3: give a list of whole pixels such as \[3,5,10\]",
        ),
        ("cellprofiler", {"texture_scales": [3, 0]}, r"texture_scales is \[3, 0\]"),
        ("cellprofiler", {"granularity_sampling": 0}, "granularity_sampling is 0: give a number above 0"),
        ("cellprofiler", {"maximum": "4095"}, "maximum is '4095': give a number above 0"),
        ("cellprofiler", {"maximum": True}, "maximum is True"),
    ],
)
def test_setting_of_the_wrong_kind_is_refused(name, setting, message):
    with pytest.raises(SettingError, match=message):
        registry.create(name, CHANNELS, setting)


def test_a_small_preset_changes_the_defaults_and_gives_way_to_what_is_typed():
    made = registry.create("imagenet_efficientnet", CHANNELS, {"preset": "small", "size": 32})
    assert made.parameters == {
        "model": "tf_efficientnet_lite0", "size": 32, "crop": 128, "layers": "blocks.5.0.bn2"
    }  # fmt: skip
    assert made.dim == 2 * 672
    with pytest.raises(UnknownNameError, match=r"unknown preset of cellprofiler 'small'.* Known: paper"):
        registry.create("cellprofiler", CHANNELS, {"preset": "small"})


def test_unknown_extractor_offers_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"unknown extractor 'cellprofler'\. Did you mean 'cellprofiler'\?"
    ):
        registry.create("cellprofler", CHANNELS)


def test_two_extractors_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(
        registry, "ALL", (*registry.ALL, replace(registry.ALL[0], target="extractors.other:Other"))
    )
    with pytest.raises(ValueError, match=r"two extractors share a name: .*'cellprofiler', 'cellprofiler'"):
        registry.entry("transfer")


def test_entries_are_filled_in():
    for entry in registry.ALL:
        assert entry.level in ("cell", "field")
        assert entry.target.startswith("extractors.")
        assert any(
            part.isdigit() and len(part) == 4
            for part in entry.paper.replace(";", " ").replace(",", " ").split()
        )
