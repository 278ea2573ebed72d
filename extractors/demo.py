"""The demonstration: a small synthetic screen from pixels to nearest treatments, with nothing but public verbs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from time import monotonic

import polars as pl

from extractors import pipeline, registry
from extractors.simulator import CHANNELS, SimulatorSettings, simulate_screen
from warehouse import nearest
from warehouse.correct import correct
from warehouse.errors import LakeError
from warehouse.evaluation import as_frame, evaluate
from warehouse.lake import Lake
from warehouse.query import sql
from warehouse.screens import read_screen

#: Enough pixels for the network to see a cell, few enough for two cores and four minutes.
TRANSFER = {"size": 128, "crop": 64}
RECIPE = "center+sphering"
QUERY = """
SELECT moa[1] AS moa, count(*) AS treatments, sum(well_count) AS wells, sum(cell_count) AS cells
FROM transfer.treatments WHERE control_type = 'none'
GROUP BY ALL ORDER BY moa LIMIT 5
""".strip()

Show = Callable[[str, pl.DataFrame | None], None]
Bars = Callable[[str], AbstractContextManager[Callable[[str, int, int], None]]]


def demo(folder: Path, show: Show, bars: Bars, settings: SimulatorSettings | None = None) -> Path:
    """Simulate a screen, take it through the whole path, and show each answer.

    Args:
        folder: for the screen and the lake. A screen that is there is used again, and its plates are then
            recognised as in.
        show: is given a text and, at times, a table.
        bars: makes a progress bar for a unit (`images`).
        settings: of the simulator.

    Returns:
        The lake's folder.

    Raises:
        LakeError: the folder holds something else.
    """
    started = monotonic()
    settings = settings or SimulatorSettings(split_compounds=True)
    screen_folder, lake_folder = folder / "screen", folder / "wellhouse.lake"
    if screen_folder.exists() and not (screen_folder / "manifest.csv").is_file():
        message = f"{screen_folder} holds no complete screen: remove it, or name another folder"
        raise LakeError(message)
    if not screen_folder.exists():
        show(
            f"1. Simulating a screen, {', '.join(CHANNELS)}, into {screen_folder} (synthetic: no real cells)",
            None,
        )
        with bars("fields") as progress:
            simulate_screen(screen_folder, settings, lambda done, total: progress("simulating", done, total))
    else:
        show(f"1. Using the screen that is in {screen_folder}", None)
    screen = read_screen(
        screen_folder / "manifest.csv",
        layout=screen_folder / "layout.csv",
        annotations=screen_folder / "annotations.csv",
    )
    with Lake.create(lake_folder) as lake:
        show(
            f"\n2. Ingesting it plate by plate into {lake_folder}, with ImageNet features of each cell", None
        )
        with bars("images") as progress:
            extractor = registry.create("transfer", CHANNELS, dict(TRANSFER))
            reports = pipeline.ingest_screen(lake, screen, extractor, progress=progress)
        show("", pl.DataFrame(reports).drop("source", "batch", "reason"))
        for recipe in ("center", RECIPE):
            report = correct(lake, "transfer", recipe)
            show(f"\n3. Corrected {report.wells} wells with {report.steps} ({report.outcome})", None)
        nearest.build(lake, "transfer", recipe=RECIPE)
        query = _strongest(lake)
        answer = nearest.nearest(lake, query, "transfer", recipe=RECIPE, k=5, not_same_compound=True)
        columns = ("rank", "similarity", "treatment", "moa", "well_count")
        own = lake.value("SELECT moa[1] FROM main.treatment_annotations WHERE treatment = ?", [query])
        show(
            f"\n4. What looks like {query} ({own}), its own compound left out?",
            answer.neighbours.select(columns),
        )
        show("\n5. How often has the nearest treatment the same mechanism?", None)
        scores = [
            as_frame(evaluate(lake, ["transfer"], ["nsc", "nsb", "map"], recipe=recipe))
            for recipe in ("none", "center", RECIPE)
        ]
        show("", pl.concat(scores).drop("feature_set", "labels", "snapshot"))
        show(f"\n6. The same tables in SQL:\n\n{QUERY}\n", sql(lake, QUERY))
    minutes, seconds = divmod(round(monotonic() - started), 60)
    show(
        f"\nDone in {minutes} min {seconds} s. The lake is {lake_folder}; look on with\n"
        f"  wellhouse status --lake {lake_folder}\n"
        f'  wellhouse nearest "{query}" --feature-set transfer --recipe "{RECIPE}" --lake {lake_folder}',
        None,
    )
    return lake_folder


def _strongest(lake: Lake) -> str:
    """Choose the treatment to ask about: the top dose of the first annotated compound that is no control."""
    return str(
        lake.value(
            "SELECT treatment FROM transfer.treatments WHERE control_type = 'none' AND moa IS NOT NULL "
            "ORDER BY compound, concentration DESC LIMIT 1"
        )
    )
