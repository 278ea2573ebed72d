"""The night itself: a plain list of steps, each of which does only what is not done yet."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import duckdb

from warehouse import feature_sets, quarantine
from warehouse import nearest as search
from warehouse.correct import correct
from warehouse.errors import LakeUnavailableError, WellhouseError
from warehouse.evaluation import Evaluation, evaluate, scored
from warehouse.lake import Lake, now
from warehouse.nights.config import After, NightConfig
from warehouse.nights.labels import label, relabel
from warehouse.nights.plan import Plan, Waiting, make_plan
from warehouse.nights.take import FailedReport, Progress, Takers, put_failed, take
from warehouse.quarantine import Quarantined
from warehouse.runs import Run, counts_of
from warehouse.status import faults
from warehouse.upkeep.compact import CompactSettings, compact
from warehouse.upkeep.verify import verify


@dataclass(frozen=True)
class StepResult:
    """What one step did with one item: a plate, or a feature set with its recipe."""

    step: str
    item: str
    outcome: str
    detail: str | None
    seconds: float


@dataclass
class Night:
    """A night while it goes on, and its report when it is over.

    Attributes:
        lake: that it works on.
        config: that it follows.
        takers: by kind of job.
        plan: what was found.
        run: of the ledger.
        cut_short: the start of an earlier night that never ended, or None; its plates are in.
        snapshot_before: of the lake when it began.
        results: step by step.
        counts: of all plates.
        finished_at: None while it goes on.
    """

    lake: Lake
    config: NightConfig
    takers: Takers
    plan: Plan
    run: Run
    cut_short: datetime | None
    snapshot_before: int
    progress: Progress | None = None
    results: list[StepResult] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    in_quarantine: list[Quarantined] = field(default_factory=list)
    snapshot_after: int = 0
    finished_at: datetime | None = None

    @property
    def waiting(self) -> list[Waiting]:
        """Plates that still arrive."""
        return self.plan.waiting

    @property
    def is_good(self) -> bool:
        """Whether everything that was ready went in, every step worked, and every check passed."""
        return all(result.outcome not in ("failed", "quarantined", "fault") for result in self.results)

    @property
    def did_something(self) -> bool:
        """Whether the lake, or an index beside it, is another now."""
        return any(result.outcome not in ("unchanged", "passed") for result in self.results)


def nightly(lake: Lake, config: NightConfig, takers: Takers, progress: Progress | None = None) -> Night:
    """Do a night: take in what is new, and bring everything that rests on it up to date.

    Nothing is done twice: a plate that is in with the same files is not read again, and each later step asks the
    lake whether its result is of the profiles as they are now. So a night that was killed is taken up by the next
    call where it stopped, and a night in which nothing came leaves the lake as it was.

    Args:
        lake: open for writing.
        config: what to look for.
        takers: by kind of job.
        progress: told the plate, what is done of it and what there is.

    Raises:
        LakeUnavailableError: catalog or storage went away; what was done until then is kept.
        WellhouseError: a place of the configuration cannot be listed; nothing was done.
    """
    snapshot = lake.snapshot()
    plan = make_plan(lake, config)
    run = Run("nightly", {"config": str(config.path), "inputs": [one.name for one in config.inputs]})
    night = Night(lake, config, takers, plan, run, _cut_short(lake), snapshot, progress)
    for _, step in STEPS:
        for result in step(night):
            night.results.append(result)
            if result.outcome not in (
                "unchanged",
                "passed",
                "added",
                "replaced",
                "relabelled",
                "quarantined",
            ):
                _record(lake, run, len(night.results), result)
    run.finish(lake, night.counts, "done" if night.is_good else "failed")
    night.in_quarantine = quarantine.read(lake)
    night.snapshot_after, night.finished_at = lake.snapshot(), now()
    return night


def _cut_short(lake: Lake) -> datetime | None:
    """Find the last night that has begun and not ended: it was killed, or goes on elsewhere."""
    row = lake.connection.execute(
        "SELECT started_at, finished_at FROM main.runs WHERE command = 'nightly' ORDER BY started_at DESC LIMIT 1"
    ).fetchone()
    return row[0] if row is not None and row[1] is None else None


def _record(lake: Lake, run: Run, position: int, result: StepResult) -> None:
    """Write a step that did something, or failed, into the lake; plates write their own history as they go in."""

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        run.record(lake)
        connection.execute(
            "INSERT INTO main.night_steps VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                run.run,
                position,
                result.step,
                result.item,
                result.outcome,
                result.detail,
                result.seconds,
                now(),
            ],
        )

    lake.transaction(work)


def _ingest(night: Night) -> Iterator[StepResult]:
    reports = []
    for name, reason in night.plan.failed.items():
        yield StepResult("look", name, "failed", reason, 0.0)
    for feature_set, key in night.plan.mended:
        quarantine.let_go(night.lake, feature_set, key)
    for broken, fault in night.plan.broken:
        made = [FailedReport(*key, fault) for key in broken.arrivals]
        put_failed(night.lake, night.run, broken.job, made, broken.arrivals)
        reports += made
        yield from _plates(made, time.perf_counter())
    for number, one in enumerate(night.plan.takes):
        began = time.perf_counter()
        listener = None if night.progress is None else _Within(night.progress, number, len(night.plan.takes))
        made = take(night.lake, night.takers, one.job, night.run, one.arrivals, listener)
        reports += made
        yield from _plates(made, began)
    night.counts = counts_of(reports)


@dataclass(frozen=True)
class _Within:
    """Tells how far the night is while one of its manifests or files is at hand."""

    listener: Progress
    number: int
    total: int

    def __call__(self, plate: str, done: int, total: int) -> None:
        ends = self.number + 1 if done == total else self.number
        self.listener(f"{plate} {done}/{total}" if total > 1 else plate, ends, self.total)


def _plates(reports: Iterable[object], began: float) -> Iterator[StepResult]:
    listed = list(reports)
    seconds = (time.perf_counter() - began) / max(len(listed), 1)
    for report in listed:
        values = vars(report)
        outcome = "quarantined" if values["outcome"] == "failed" else values["outcome"]
        item = "/".join(values[part] for part in ("source", "batch", "plate"))
        yield StepResult("ingest", item, outcome, values["reason"], seconds)


def _label(night: Night) -> Iterator[StepResult]:
    """Layouts and annotations are read once each, however many inputs name them."""
    labels = {one.job.annotations: one.job for one in night.config.inputs if one.job.annotations is not None}
    for step, places, work in (("layout", night.plan.layouts, relabel), ("labels", labels, label)):
        for place, job in places.items():
            began = time.perf_counter()
            try:
                count = work(night.lake, night.run, job)
                outcome, detail = ("updated", str(count)) if count else ("unchanged", None)
            except LakeUnavailableError:
                raise
            except (WellhouseError, OSError) as error:
                outcome, detail = "failed", " ".join(str(error).split())
            yield StepResult(step, place, outcome, detail, time.perf_counter() - began)


def _each(
    night: Night,
    step: str,
    items: Iterable[tuple[After, str]],
    work: Callable[[After, str], tuple[str, str | None]],
) -> Iterator[StepResult]:
    """Do one thing for feature sets and recipes; what stops one stops no other."""
    present = set(feature_sets.names(night.lake))
    for after, recipe in items:
        if after.feature_set not in present:
            continue
        began = time.perf_counter()
        try:
            outcome, detail = work(after, recipe)
        except LakeUnavailableError:
            raise
        except (WellhouseError, OSError, MemoryError) as error:
            outcome, detail = "failed", " ".join(f"{error or type(error).__name__}".split())
        yield StepResult(step, f"{after.feature_set} {recipe}", outcome, detail, time.perf_counter() - began)


def _correct(night: Night) -> Iterator[StepResult]:
    def work(after: After, recipe: str) -> tuple[str, str | None]:
        report = correct(night.lake, after.feature_set, recipe, run=night.run)
        left_out = "; ".join(report.plates_left_out)
        told = f"{report.plates} plates, {report.wells} wells" + (
            f"; left out: {left_out}" if left_out else ""
        )
        return report.outcome, told

    chosen = [(after, recipe) for after in night.config.after for recipe in after.recipes if recipe != "none"]
    yield from _each(night, "correct", chosen, work)


def _index(night: Night) -> Iterator[StepResult]:
    def work(after: After, recipe: str) -> tuple[str, str | None]:
        report = search.build(night.lake, after.feature_set, recipe=recipe, level=after.level)
        detail = f"{report.vectors} {after.level}s" + (
            f", {report.added} added" if report.outcome == "updated" else ""
        )
        return report.outcome, detail if report.outcome != "unchanged" else None

    yield from _each(
        night, "index", [(one, recipe) for one in night.config.after for recipe in one.index], work
    )


def _evaluate(night: Night) -> Iterator[StepResult]:
    def work(after: After, recipe: str) -> tuple[str, str | None]:
        names = [
            name
            for name in after.metrics
            if not scored(night.lake, after.feature_set, name, recipe=recipe, labels=after.labels)
        ]
        if not names:
            return "unchanged", None
        made = evaluate(
            night.lake, [after.feature_set], names, recipe=recipe, labels=after.labels, run=night.run
        )
        return "scored", ", ".join(map(_score, made))

    yield from _each(
        night, "evaluate", [(one, recipe) for one in night.config.after for recipe in one.evaluate], work
    )


def _score(made: Evaluation) -> str:
    if made.failure is not None:
        return f"not scored: {made.failure}"
    return f"{made.asked.text} {made.score.value:.4f} (n = {made.score.n})"


def _compact(night: Night) -> Iterator[StepResult]:
    if not night.config.compact or not night.did_something:
        return
    began = time.perf_counter()
    made = compact(night.lake, CompactSettings(keep=timedelta(days=night.config.keep_days)))
    told = f"{made.files_before} files to {made.files_after}, "
    told += f"{made.snapshots_before} snapshots to {made.snapshots_after}"
    yield StepResult("compact", "lake", "compacted", told, time.perf_counter() - began)


def _check(night: Night) -> Iterator[StepResult]:
    began = time.perf_counter()
    for name, rows in faults(night.lake).items():
        yield StepResult("check", name, "fault", f"{len(rows)} rows, such as {rows.row(0, named=True)}", 0.0)
    if night.config.verify != "none":
        found = verify(night.lake, quick=night.config.verify == "quick")
        for fault in found.faults:
            yield StepResult("check", fault.where, "fault", f"{fault.kind}: {fault.detail}", 0.0)
    yield StepResult("check", "all checks", "passed", None, time.perf_counter() - began)


#: The steps of a night, in their order.
STEPS: tuple[tuple[str, Callable[[Night], Iterator[StepResult]]], ...] = (
    ("ingest", _ingest),
    ("label", _label),
    ("correct", _correct),
    ("index", _index),
    ("evaluate", _evaluate),
    ("compact", _compact),
    ("check", _check),
)
