"""Trying plates in quarantine again."""

from typing import Any

from warehouse import quarantine
from warehouse.errors import WellhouseError
from warehouse.lake import Lake
from warehouse.nights.jobs import from_dict
from warehouse.nights.take import Progress, Takers, file_key, take
from warehouse.quarantine import Quarantined
from warehouse.runs import Run, counts_of, outcome_of


def retry(lake: Lake, plate: str | None, takers: Takers, progress: Progress | None = None) -> list[Any]:
    """Try one plate in quarantine again, or all of them, as they were tried before.

    Args:
        lake: open for writing.
        plate: its name (it may be in quarantine for several feature sets); None for all.
        takers: by kind of job.
        progress: told the plate, what is done of it and what there is.

    Returns:
        One report a plate; one that failed again stays in quarantine with its new reason.

    Raises:
        UnknownNameError: no such plate is in quarantine.
        LakeUnavailableError: catalog or storage are gone.
    """
    held = quarantine.read(lake, plate)
    run = Run("retry", {"plate": plate, "plates": [one.key[2] for one in held]})
    reports = []
    for one in held:
        reports += _again(lake, one, takers, run, progress)
    run.finish(lake, counts_of(reports), outcome_of(reports))
    return reports


def _again(lake: Lake, one: Quarantined, takers: Takers, run: Run, progress: Progress | None) -> list[Any]:
    if not one.job:
        message = (
            f"plate {one.key[2]!r} was put into quarantine without the way to try it again: ingest it anew"
        )
        raise WellhouseError(message)
    job = from_dict(one.job, f"the quarantine of plate {one.key[2]!r}")
    # The hash that failed stands for the files as they were then; the next night looks at them anew.
    arrivals = {}
    if one.arrival is not None:
        arrivals = {file_key(job.path): one.arrival.partition("/")[0], one.key: one.arrival}
    return take(lake, takers, job, run, arrivals, progress)
