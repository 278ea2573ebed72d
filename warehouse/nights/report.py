"""The report of a night: one page for people, one document for machines."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from warehouse.errors import LakeError
from warehouse.nights.night import Night


def document(night: Night) -> dict[str, object]:
    """Give the report as plain values."""
    return {
        "lake": night.lake.address,
        "run": night.run.run,
        "config": str(night.config.path),
        "started_at": night.run.started_at.isoformat(),
        "finished_at": None if night.finished_at is None else night.finished_at.isoformat(),
        "takes_up_night_of": None if night.cut_short is None else night.cut_short.isoformat(),
        "is_good": night.is_good,
        "snapshot_before": night.snapshot_before,
        "snapshot_after": night.snapshot_after,
        "counts": night.counts,
        "plates_unchanged": night.plan.done,
        "steps": [asdict(result) for result in night.results],
        "waiting": [asdict(one) for one in night.waiting],
        "quarantine": [
            {
                "feature_set": one.feature_set,
                "plate": "/".join(one.key),
                "reason": one.reason,
                "tries": one.tries,
            }
            for one in night.in_quarantine
        ],
    }


def headline(night: Night) -> str:
    """Say in one line how the night went."""
    counts = {
        name.removeprefix("plates_"): count for name, count in night.counts.items() if "plates_" in name
    }
    counts["quarantined"] = counts.pop("failed", 0)
    told = [f"{count} plates {name}" for name, count in counts.items() if count]
    told = told or ["nothing new"]
    told += [f"{night.plan.done} in already"] if night.plan.done else []
    told += [f"{len(night.waiting)} still arriving"] if night.waiting else []
    told += [f"{len(night.in_quarantine)} in quarantine"] if night.in_quarantine else []
    failed = [result for result in night.results if result.outcome in ("failed", "fault")]
    told += [f"{len(failed)} FAILED: see below"] if failed else []
    return ", ".join(told)


def markdown(night: Night) -> str:
    """Write the report as a page."""
    lines = [
        f"# Night of {night.run.started_at:%Y-%m-%d %H:%M} UTC",
        "",
        headline(night) + ".",
        "",
        f"- lake: {night.lake.address}, snapshot {night.snapshot_before} before, {night.snapshot_after} after",
        f"- configuration: {night.config.path}",
        f"- run: {night.run.run}",
    ]
    if night.cut_short is not None:
        lines.append(f"- takes up the night of {night.cut_short:%Y-%m-%d %H:%M} UTC, which did not end")
    numbers = {name: count for name, count in night.counts.items() if not name.startswith("plates_")}
    if numbers:
        lines.append(
            "- " + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in numbers.items())
        )
    steps = [
        (result.step, result.item, result.outcome, result.detail or "", f"{result.seconds:.1f}")
        for result in night.results
        if result.outcome != "unchanged"
    ]
    lines += _table("Steps", ("step", "item", "outcome", "detail", "seconds"), steps)
    waiting = [(one.input, one.item, one.waits_for) for one in night.waiting]
    lines += _table("Still arriving", ("input", "plate", "waits for"), waiting)
    held = [(one.feature_set, "/".join(one.key), str(one.tries), one.reason) for one in night.in_quarantine]
    lines += _table("In quarantine", ("feature set", "plate", "tries", "reason"), held)
    if held:
        lines += ["", "Mend the files and the next night takes them in, or say `wellhouse retry PLATE`."]
    return "\n".join(lines) + "\n"


def save(night: Night) -> Path:
    """Write the page into the folder of reports, whole or not at all, and return its path.

    Raises:
        LakeError: the folder cannot be written.
    """
    folder = Path(night.config.reports) if night.config.reports else night.lake.folder / "reports"
    path = folder / f"{night.run.started_at:%Y-%m-%dT%H%M%S}_{night.run.run[:8]}.md"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        beside.write_text(markdown(night), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        message = f"the report cannot be written to {folder}: {error.strerror}; name another with reports = …"
        raise LakeError(message) from error
    return path


def _table(title: str, names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Write rows as a table of Markdown; a page has none where there is no row."""
    if not rows:
        return []
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in [list(names), ["---"] * len(names), *cells]]
    return ["", f"## {title}", "", *lines]
