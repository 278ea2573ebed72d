"""Taking one job in: the same way for a night, for a retry, and for a single command."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from warehouse import quarantine
from warehouse.errors import LakeUnavailableError, WellhouseError
from warehouse.lake import Lake
from warehouse.nights.jobs import ImagesJob, Job, ProfilesJob, to_dict
from warehouse.quarantine import Key
from warehouse.runs import Run
from warehouse.screens.identity import DEFAULT

Progress = Callable[[str, int, int], None]


class Taker(Protocol):
    """Takes the plates of one job in; one that cannot be taken in is a report with the outcome `failed`."""

    def __call__(
        self, lake: Lake, job: Any, run: Run, arrivals: Mapping[Key, str], progress: Progress | None
    ) -> Sequence[Any]:
        """Take plates in.

        Args:
            lake: open for writing.
            job: of the kind that it is made for.
            run: that the plates belong to.
            arrivals: hash of the files of each plate, to be kept with it; a file of profiles, whose plates only
                reading tells, stands under the key `file_key`.
            progress: told the plate, what is done and what there is.
        """


#: Kind of job to what takes it in: `images` is given by who may use extractors.
Takers = Mapping[type[ImagesJob] | type[ProfilesJob], Taker]


@dataclass(frozen=True)
class FailedReport:
    """A plate of a job that could not even be begun."""

    source: str
    batch: str
    plate: str
    reason: str
    outcome: str = "failed"


def file_key(path: str) -> Key:
    """Name a file whose plates are not known yet, where a plate's key is needed."""
    return DEFAULT, DEFAULT, path.rstrip("/").rsplit("/", maxsplit=1)[-1]


def take(
    lake: Lake,
    takers: Takers,
    job: Job,
    run: Run,
    arrivals: Mapping[Key, str],
    progress: Progress | None = None,
) -> list[Any]:
    """Take a job in; every plate of it that fails goes into quarantine, with the job to try it again.

    Args:
        lake: open for writing.
        takers: by kind of job.
        job: to take in.
        run: that the plates belong to.
        arrivals: as in `Taker`.
        progress: likewise.

    Returns:
        One report a plate.

    Raises:
        LakeUnavailableError: catalog or storage are gone: no plate is to blame, and none is put into quarantine.
    """
    reports: list[Any]
    try:
        reports = list(takers[type(job)](lake, job, run, arrivals, progress))
    except LakeUnavailableError:
        raise
    except (WellhouseError, OSError, MemoryError) as error:
        reason = " ".join(f"{error or type(error).__name__}".split())
        reports = [FailedReport(*key, reason) for key in arrivals or [file_key(job.path)]]
    put_failed(lake, run, job, reports, arrivals)
    return reports


def put_failed(
    lake: Lake, run: Run, job: Job, reports: Sequence[Any], arrivals: Mapping[Key, str] | None = None
) -> None:
    """Put every plate that failed into quarantine, and take a file out of it whose plates are known now."""
    known = arrivals or {}
    whole = known.get(file_key(job.path))
    for report in reports:
        if report.outcome != "failed":
            continue
        key = (report.source, report.batch, report.plate)
        is_file = key == file_key(job.path)
        again = job if is_file else replace(job, plates=(report.plate,))
        # A plate of a file carries how many the file has, as those that went in do.
        counted = whole if is_file or whole is None else f"{whole}/{len(reports)}"
        arrival = known.get(key, counted)
        quarantine.put(lake, run, job.target, key, str(report.reason), job=to_dict(again), arrival=arrival)
    if all((report.source, report.batch, report.plate) != file_key(job.path) for report in reports):
        quarantine.let_go(lake, job.target, file_key(job.path))
