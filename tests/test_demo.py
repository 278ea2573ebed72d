"""The demonstration, on a screen of a few wells."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from extractors.demo import demo
from extractors.simulator import SimulatorSettings
from warehouse.errors import LakeError
from warehouse.lake import Lake
from warehouse.status import status

SMALL = SimulatorSettings(
    plates_per_batch=1,
    wells_per_plate=20,
    phenotypes=4,
    doses=(8.0,),
    dmso_wells=6,
    positive_wells=1,
    field_px=128,
    cells_per_field=4,
    split_compounds=True,
)


class Shown:
    """What a person would see."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.tables: list[pl.DataFrame] = []
        self.done: dict[str, tuple[int, int]] = {}

    def show(self, text: str, table: pl.DataFrame | None = None) -> None:
        self.texts.append(text)
        if table is not None:
            self.tables.append(table)

    @contextmanager
    def bars(self, unit: str) -> Iterator[object]:
        def progress(name: str, done: int, total: int) -> None:
            self.done[name] = (done, total)

        yield progress


@pytest.mark.slow
def test_whole_path_and_again(tmp_path: Path) -> None:
    first = Shown()
    lake_folder = demo(tmp_path, first.show, first.bars, SMALL)
    assert first.done["SYNTH-B1-P1"] == (20, 20)
    assert first.done["SYNTH-B2-P1"] == (20, 20)
    plates, neighbours, scores = first.tables[:3]
    assert plates["outcome"].to_list() == ["added", "added"]
    assert neighbours["similarity"].is_sorted(descending=True)
    assert set(scores["metric"]) == {"nsc", "nsb", "map"}
    assert str(lake_folder) in first.texts[-1]
    with Lake.open(lake_folder, read_only=True) as lake:
        state = status(lake)
        assert state.faults == {}
        assert state.shared["plates"] == 2
        assert set(state.recipes["plates_waiting"]) == {0}

    again = Shown()
    demo(tmp_path, again.show, again.bars, SMALL)
    assert again.tables[0]["outcome"].to_list() == ["unchanged", "unchanged"]
    assert again.tables[1].equals(neighbours)


def test_folder_with_something_else(tmp_path: Path) -> None:
    (tmp_path / "screen").mkdir()
    (tmp_path / "screen" / "thesis.doc").write_text("mine")
    shown = Shown()
    with pytest.raises(
        LakeError, match=r"screen holds no complete screen: remove it, or name another folder"
    ):
        demo(tmp_path, shown.show, shown.bars, SMALL)
