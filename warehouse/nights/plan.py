"""What a night would do: plates that are new or changed, plates that still arrive, plates in quarantine."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import polars as pl

from warehouse import arrivals
from warehouse.arrivals import Arrival
from warehouse.errors import LakeUnavailableError, WellhouseError
from warehouse.lake import Lake
from warehouse.nights.config import Input, NightConfig
from warehouse.nights.jobs import ImagesJob, Job, ProfilesJob, to_dict
from warehouse.nights.labels import layout_of
from warehouse.nights.take import file_key
from warehouse.quarantine import Key


@dataclass(frozen=True)
class Take:
    """One manifest or file of which something is to be taken in.

    Attributes:
        input: name of the place that it was found in.
        job: to take it in.
        arrivals: hash of the files of each plate that is to be taken in (a file of profiles: under `file_key`).
        files: how many.
        bytes: of them together.
        why: `new`, `changed` or `cut short` (some plates of the file are in).
    """

    input: str
    job: Job
    arrivals: dict[Key, str]
    files: int
    bytes: int
    why: str


@dataclass(frozen=True)
class Waiting:
    """A plate, or a file, that is still arriving."""

    input: str
    item: str
    origin: str
    waits_for: str


@dataclass
class Plan:
    """What a night finds.

    Attributes:
        takes: to be taken in, in the order of the configuration and then of their names.
        broken: manifests that cannot be read: they go into quarantine.
        waiting: still arriving.
        done: plates and files that are in as they are now.
        held: plates and files that are in quarantine as they are now: only a retry, or new files, change that.
        failed: inputs that cannot be looked at, with the reason; the others go on.
        mended: manifests and files in quarantine under their own name that can be read now.
        layouts: layouts of the inputs, with a job each that has them; the gallery's own are among them.
    """

    takes: list[Take] = field(default_factory=list)
    broken: list[tuple[Take, str]] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    done: int = 0
    held: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    mended: set[tuple[str, Key]] = field(default_factory=set)
    layouts: dict[str, Job] = field(default_factory=dict)

    def frame(self) -> pl.DataFrame:
        """List the plan, one row a plate or file."""
        rows: list[tuple[str, str, str, str, int | None, int | None]] = [
            (take.input, _name(key), "take in", take.why, take.files, take.bytes)
            for take in self.takes
            for key in take.arrivals
        ]
        rows += [
            (take.input, _name(key), "quarantine", fault, take.files, take.bytes)
            for take, fault in self.broken
            for key in take.arrivals
        ]
        rows += [(name, "", "fail", reason, None, None) for name, reason in self.failed.items()]
        rows += [(one.input, one.item, "wait", one.waits_for, None, None) for one in self.waiting]
        schema = {
            "input": pl.String, "plate": pl.String, "action": pl.String, "why": pl.String,
            "files": pl.Int64, "bytes": pl.Int64,
        }  # fmt: skip
        return pl.DataFrame(rows, schema=schema, orient="row")


def make_plan(lake: Lake, config: NightConfig) -> Plan:
    """Look at every place of a configuration; nothing is written.

    Raises:
        LakeUnavailableError: the lake, or S3, cannot be reached.
    """
    plan = Plan()
    for one in config.inputs:
        try:
            _look(plan, lake, one, config.settle_seconds)
        except LakeUnavailableError:
            raise
        except WellhouseError as error:
            plan.failed[one.name] = " ".join(str(error).split())
    return plan


def _look(plan: Plan, lake: Lake, one: Input, settle_seconds: float) -> None:
    """Look at one place."""
    if one.job.layout is not None:
        layout_of(one.job)  # a layout that cannot be read is no fault of the manifests that go by it
        plan.layouts[one.job.layout] = one.job
    known, batches = _Known(lake, one.job), set[str]()
    for origin, group in _by_origin(_found(one, settle_seconds, known)):
        _sort(plan, one, origin, group, known)
        # One look a batch: a manifest lies in <batch>/<plate>/ beside those of the batch's other plates.
        batch = origin.rpartition("/")[0].rpartition("/")[0]
        if isinstance(one.job, ImagesJob) and one.job.layout is None and batch not in batches:
            batches.add(batch)
            layout = arrivals.gallery_layout(origin)
            if layout is not None:
                plan.layouts[layout] = replace(one.job, layout=layout)


class _Known:
    """What the lake knows of the files of a feature set: hashes of plates that are in, and in quarantine."""

    def __init__(self, lake: Lake, job: Job) -> None:
        # Split by their features, plates are in NAME, NAME_2, NAME_3, …
        is_split = isinstance(job, ProfilesJob) and job.align == "split"
        pattern = job.target + ("(_[0-9]+)?" if is_split else "")
        self.loaded = self._read(lake, "main.plate_loads", pattern)
        self.held = self._read(lake, "main.quarantine", pattern)

    @staticmethod
    def _read(lake: Lake, table: str, pattern: str) -> dict[Key, str]:
        rows = lake.connection.execute(
            f"SELECT source, batch, plate, arrival FROM {table} "
            "WHERE regexp_full_match(feature_set, ?) AND arrival IS NOT NULL",
            [pattern],
        ).fetchall()
        return {(source, batch, plate): arrival for source, batch, plate, arrival in rows}

    def of_plate(self, key: Key, arrival: str) -> str:
        """Tell of a plate: `done`, `held`, `changed` or `new`."""
        if self.held.get(key) == arrival:
            return "held"
        if self.loaded.get(key) == arrival:
            return "done"
        return "changed" if key in self.loaded or key in self.held else "new"

    def of_file(self, path: str, arrival: str) -> str:
        """Tell of a file, of which every plate carries its hash and how many plates it has: `<hash>/<count>`."""
        if self.held.get(file_key(path)) == arrival:
            return "held"
        found = [
            text for text in (*self.loaded.values(), *self.held.values()) if text.startswith(f"{arrival}/")
        ]
        if not found:
            return "new"
        if len(found) < int(found[0].rsplit("/", maxsplit=1)[1]):
            return "cut short"
        return "held" if any(text in self.held.values() for text in found) else "done"


def _found(one: Input, settle_seconds: float, known: "_Known") -> Iterator[Arrival]:
    job = one.job
    # What decides how a plate is read belongs to what it is: changed settings are tried like changed files.
    salt = repr(sorted(to_dict(replace(job, path="")).items()))
    if isinstance(job, ImagesJob):
        inside = {arrival: key for table in (known.held, known.loaded) for key, arrival in table.items()}
        return arrivals.images(
            job.path, layout=job.layout, images=job.images, source=job.source, batch=job.batch,
            channels=job.channels or None, settle_seconds=settle_seconds, salt=salt, recheck=one.recheck,
            known=inside,
        )  # fmt: skip
    return arrivals.profiles(job.path, one.pattern, units=one.units, settle_seconds=settle_seconds, salt=salt)


def _by_origin(found: Iterable[Arrival]) -> Iterator[tuple[str, list[Arrival]]]:
    groups: dict[str, list[Arrival]] = {}
    for arrival in found:
        groups.setdefault(arrival.origin, []).append(arrival)
    yield from groups.items()


def _sort(plan: Plan, one: Input, origin: str, group: list[Arrival], known: _Known) -> None:
    """Put the plates of one manifest or file where they belong."""
    job = replace(one.job, path=origin)
    if file_key(origin) in known.held and all(arrival.key is not None for arrival in group):
        plan.mended.add((job.target, file_key(origin)))
    chosen: dict[str, list[Arrival]] = {}
    for arrival in group:
        key = arrival.key or file_key(origin)
        is_plate = arrival.key is not None
        state = known.of_plate(key, arrival.arrival) if is_plate else known.of_file(origin, arrival.arrival)
        if arrival.waits_for is not None and state not in ("done", "held"):
            plan.waiting.append(Waiting(one.name, _name(key), origin, arrival.waits_for))
        elif arrival.fault is not None:
            state = "held" if known.held.get(key) == arrival.arrival else "broken"
            if state == "broken":
                take = Take(one.name, job, {key: arrival.arrival}, arrival.files, arrival.bytes, "broken")
                plan.broken.append((take, arrival.fault))
            plan.held += state == "held"
        elif state in ("done", "held"):
            plan.done += state == "done"
            plan.held += state == "held"
        else:
            chosen.setdefault(state, []).append(arrival)
    for why, some in chosen.items():
        hashes = {arrival.key or file_key(origin): arrival.arrival for arrival in some}
        plates = tuple(key[2] for key in hashes) if isinstance(job, ImagesJob) else ()
        plan.takes.append(
            Take(
                one.name,
                replace(job, plates=plates),
                hashes,
                sum(arrival.files for arrival in some),
                sum(arrival.bytes for arrival in some),
                why,
            )
        )


def _name(key: Key) -> str:
    return "/".join(part for part in key if part != "default")
