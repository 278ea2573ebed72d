"""Names of wells and treatments: hand-worked values, the edges of each plate format, and round trips."""

import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warehouse.errors import ScreenError
from warehouse.wells import (
    FORMATS,
    check_on_plate,
    column_expression,
    normalise,
    normalise_unit,
    position,
    row_expression,
    treatment_expression,
    treatment_name,
    unit_expression,
    well_expression,
    well_name,
)

SPELLINGS = [
    ("B2", "B02", (2, 2)),
    ("b02", "B02", (2, 2)),
    ("B002", "B02", (2, 2)),
    (" h12 ", "H12", (8, 12)),
    ("P24", "P24", (16, 24)),
    ("Z1", "Z01", (26, 1)),
    ("AA01", "AA01", (27, 1)),
    ("aa1", "AA01", (27, 1)),
    ("AF48", "AF48", (32, 48)),
]
JUNK = ["", "B", "02", "2B", "B-02", "B 02", "B02x", "BBB02", "B0002", "ı1", "B٢", "r02c03", "B2.0"]
BEYOND = ["AG01", "BA01", "A00", "A0", "A49", "ZZ9", "AF049"]


@pytest.mark.parametrize(("text", "normal", "where"), SPELLINGS)
def test_spellings_of_a_well(text: str, normal: str, where: tuple[int, int]) -> None:
    assert normalise(text) == normal
    assert position(text) == where


@pytest.mark.parametrize("text", JUNK)
def test_junk_is_no_well(text: str) -> None:
    with pytest.raises(ScreenError, match=f"^{re.escape(repr(text))} is not a well"):
        normalise(text)


@pytest.mark.parametrize("text", BEYOND)
def test_beyond_the_largest_plate(text: str) -> None:
    with pytest.raises(
        ScreenError, match=rf"^well '{text}' is off the largest plate, 1536 wells \(rows A–AF"
    ):
        normalise(text)


@given(st.integers(1, 32), st.integers(1, 48))
def test_position_and_name_undo_each_other(row: int, column: int) -> None:
    name = well_name(row, column)
    assert position(name) == (row, column)
    assert normalise(name) == name
    assert normalise(name.lower()) == name
    assert normalise(re.sub(r"(?<=[A-Z])0", "", name)) == name


def test_names_are_unique_on_a_1536_plate() -> None:
    assert len({well_name(row, column) for row in range(1, 33) for column in range(1, 49)}) == 1536


@pytest.mark.parametrize(("row", "column"), [(0, 1), (1, 0), (33, 1), (1, 49), (-1, 5)])
def test_a_position_off_every_plate(row: int, column: int) -> None:
    with pytest.raises(ScreenError, match=f"row {row}, column {column} lies off a 1536-well plate"):
        well_name(row, column)


@pytest.mark.parametrize("size", sorted(FORMATS))
def test_the_corner_of_each_format(size: int) -> None:
    rows, columns = FORMATS[size]
    assert rows * columns == size
    check_on_plate(well_name(rows, columns), size)
    if size < 1536:
        for row, column in ((rows + 1, columns), (rows, columns + 1)):
            well = well_name(row, column)
            with pytest.raises(ScreenError, match=f"well '{well}' is off a {size}-well plate"):
                check_on_plate(well, size)


def test_off_the_plate_names_well_file_and_size() -> None:
    expected = (
        "layout.csv, row 7: well 'Q1' is off a 384-well plate (rows A–P, columns 1–24). "
        "Correct the well or the plate size."
    )
    with pytest.raises(ScreenError, match=f"^{re.escape(expected)}$"):
        check_on_plate("Q1", 384, "layout.csv, row 7")


def test_without_a_size_a_1536_plate_is_accepted_and_no_more() -> None:
    check_on_plate("AF48", None)
    with pytest.raises(ScreenError, match=r"a\.csv: well 'AG1' is off the largest plate, 1536 wells"):
        check_on_plate("AG1", None, "a.csv")


def test_a_plate_size_that_does_not_exist() -> None:
    with pytest.raises(
        ScreenError, match=r"x\.csv: no plate has 100 wells\. Use one of 6, 12, 24, 48, 96, 384, 1536"
    ):
        check_on_plate("A1", 100, "x.csv")


def test_expressions_agree_with_the_functions() -> None:
    texts = [text for text, _, _ in SPELLINGS] + JUNK + BEYOND
    frame = pl.DataFrame({"well": texts}).select(
        "well", normal=well_expression(), row=row_expression(), column=column_expression()
    )
    for text, normal, row, column in frame.iter_rows():
        try:
            expected = normalise(text)
        except ScreenError:
            assert normal is None, text
        else:
            assert normal == expected
            assert (row, column) == position(text)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("\u00b5M", "uM"), ("\u03bcM", "uM"), ("um", "uM"), ("uM", "uM"), (" µmol/L ", "uM"), ("NM", "nM"),
        ("mM", "mM"), ("µg/ml", "ug/mL"), ("MOI", "MOI"), ("M", "M"), ("%", "%"), ("", None), (None, None),
    ],
)  # fmt: skip
def test_units(text: str | None, unit: str | None) -> None:
    assert normalise_unit(text) == unit
    assert pl.DataFrame({"unit": [text]}, schema={"unit": pl.String}).select(unit_expression()).item() == unit


TREATMENTS = [
    ("taxol", 0.3, "uM", "taxol@0.3uM"),
    ("taxol", 0.1 + 0.2, "µM", "taxol@0.3uM"),
    ("taxol", 1.0, "uM", "taxol@1uM"),
    ("emetine", 3e-6, "uM", "emetine@3e-06uM"),
    ("chlorambucil", 1000.0, "um", "chlorambucil@1000uM"),
    ("taxol", 0.3, None, "taxol@0.3"),
    ("DMSO", 0.0, "uM", "DMSO"),
    ("DMSO", None, None, "DMSO"),
    ("DMSO", None, "uM", "DMSO"),
    (None, 0.3, "uM", None),
]


@pytest.mark.parametrize(("compound", "dose", "unit", "name"), TREATMENTS)
def test_names_of_treatments(
    compound: str | None, dose: float | None, unit: str | None, name: str | None
) -> None:
    assert treatment_name(compound, dose, unit) == name


def test_names_of_treatments_as_an_expression() -> None:
    schema = {"compound": pl.String, "concentration": pl.Float64, "unit": pl.String, "treatment": pl.String}
    frame = pl.DataFrame(TREATMENTS, schema=schema, orient="row")
    assert frame.select(treatment_expression())["treatment"].to_list() == frame["treatment"].to_list()
    assert (
        frame.lazy().select(treatment_expression()).collect()["treatment"].to_list()
        == frame["treatment"].to_list()
    )
    assert frame.head(0).select(treatment_expression()).schema == {"treatment": pl.String}


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6, allow_subnormal=False)), min_size=1, max_size=20))
def test_the_expression_names_as_the_function_does(doses: list[float | None]) -> None:
    columns = {"compound": ["c"] * len(doses), "concentration": doses, "unit": ["uM"] * len(doses)}
    frame = pl.DataFrame(columns, schema_overrides={"concentration": pl.Float64})
    expected = [treatment_name("c", dose, "uM") for dose in doses]
    assert frame.select(treatment_expression()).to_series().to_list() == expected


@given(st.floats(1e-9, 1e6), st.floats(1e-9, 1e6))
def test_different_doses_have_different_names(one: float, other: float) -> None:
    if abs(one - other) > 1e-9 * max(one, other):
        assert treatment_name("c", one, "uM") != treatment_name("c", other, "uM")


@pytest.mark.parametrize("dose", [-1.0, float("nan"), float("inf")])
def test_a_dose_that_is_none(dose: float) -> None:
    with pytest.raises(ScreenError, match=f"concentration {dose} is not a dose"):
        treatment_name("c", dose, "uM")
