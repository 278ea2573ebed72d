"""Jobs: one manifest or one file of profiles, and everything that is needed to take it in, now or again later."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from warehouse.errors import WellhouseError
from warehouse.names import unknown
from warehouse.places import is_remote


class JobError(WellhouseError):
    """A job, as a configuration or the quarantine holds it, cannot be read."""


@dataclass(frozen=True)
class ImagesJob:
    """A manifest whose images go through an extractor.

    Args:
        path: the manifest; a local path or an s3:// address.
        extractor: of the registry.
        feature_set: its name in the lake; empty for the extractor's.
        settings: of the extractor.
        layout: what is in the wells; None to find it beside a gallery's manifest.
        annotations: labels of compounds.
        images: folder of the images, where the manifest does not say.
        source: of plates, where the files name none.
        batch: likewise.
        channels: to use, in order; empty for all.
        dna_channel: where nuclei are found.
        cell_channel: where cells are found.
        field_operator: cells to field.
        well_operator: fields to well.
        compound_column: of a Broad platemap.
        plates: only these; empty for all.
        wells: only these; empty for all.
        replace: let wells go that are in and no longer come.
    """

    path: str
    extractor: str = "transfer"
    feature_set: str = ""
    settings: dict[str, object] = field(default_factory=dict)
    layout: str | None = None
    annotations: str | None = None
    images: str | None = None
    source: str | None = None
    batch: str | None = None
    channels: tuple[str, ...] = ()
    dna_channel: str | None = None
    cell_channel: str | None = None
    field_operator: str = "median"
    well_operator: str = "mean"
    compound_column: str | None = None
    plates: tuple[str, ...] = ()
    wells: tuple[str, ...] = ()
    replace: bool = False

    @property
    def target(self) -> str:
        """The feature set that it goes into."""
        return self.feature_set or self.extractor


@dataclass(frozen=True)
class ProfilesJob:
    """A file, or a folder, of profiles that were made elsewhere.

    Args:
        path: the file or folder; a local path or an s3:// address.
        feature_set: its name in the lake.
        format: of `warehouse.formats`; None to recognise it.
        level: of the rows, where the file does not tell.
        align: what to do where features differ: refuse, reject, intersect, split.
        layout: what is in the wells.
        annotations: labels of compounds.
        columns: key to column name, where the names do not say it.
        features: file of feature names.
        metadata: table of metadata beside a plain matrix.
        source: of plates, where the files name none.
        batch: likewise.
        plate: likewise.
        well: likewise.
        compartments: of CellProfiler, that make up a cell; empty for the usual ones.
        field_operator: cells to field.
        well_operator: fields to well.
        compound_column: of a Broad platemap.
        plates: only these of the file; empty for all.
        replace: let wells go that are in and no longer come.
    """

    path: str
    feature_set: str
    format: str | None = None
    level: str | None = None
    align: str = "refuse"
    layout: str | None = None
    annotations: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    features: str | None = None
    metadata: str | None = None
    source: str | None = None
    batch: str | None = None
    plate: str | None = None
    well: str | None = None
    compartments: tuple[str, ...] = ()
    field_operator: str = "median"
    well_operator: str = "mean"
    compound_column: str | None = None
    plates: tuple[str, ...] = ()
    replace: bool = False

    @property
    def target(self) -> str:
        """The feature set that it goes into."""
        return self.feature_set


Job = ImagesJob | ProfilesJob


def text(place: object) -> Any:
    """Write a path of the command line as a job keeps it: whole, so that it can be tried again from elsewhere."""
    if place is None:
        return None
    found = str(place)
    return found if is_remote(found) else str(Path(found).absolute())


#: Name of each kind, as a configuration and the quarantine have it.
KINDS: dict[str, type[ImagesJob] | type[ProfilesJob]] = {"images": ImagesJob, "profiles": ProfilesJob}


def to_dict(job: Job) -> dict[str, object]:
    """Write a job as plain values; what stands at its default is left out."""
    kind = next(name for name, made in KINDS.items() if isinstance(job, made))
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(job).items()}
    return {"kind": kind} | {
        name: value for name, value in plain.items() if value not in (None, "", [], {}, False)
    }


def from_dict(found: dict[str, object], where: str) -> Job:
    """Read a job back, or from a table of a configuration.

    Args:
        found: `kind` (images, profiles), and the fields of its class.
        where: it stands, for messages.

    Raises:
        UnknownNameError: a key that is no setting.
        JobError: a setting is missing, or has a value of the wrong type.
    """
    rest = dict(found)
    kind = rest.pop("kind", None)
    if kind not in KINDS:
        raise unknown(str(kind), f"kind of job in {where}", KINDS)
    made = KINDS[str(kind)]
    known = {one.name: _kind(one.type) for one in fields(made)}
    for key in rest:
        if key not in known:
            raise unknown(key, f"setting in {where}", known)
    for key in ("path", "feature_set"):
        if key in known and key not in rest and not (key == "feature_set" and made is ImagesJob):
            message = f"{where} has no {key!r}: add it"
            raise JobError(message)
    return made(**{key: _typed(key, value, known[key], where) for key, value in rest.items()})  # type: ignore[arg-type]


def _kind(annotation: object) -> str:
    return (
        annotation.__name__ if isinstance(annotation, type) and annotation in (str, bool) else str(annotation)
    )


def _typed(key: str, value: object, wanted: str, where: str) -> object:
    """Hold a value to the type of its field; lists of text become tuples."""
    is_text_list = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if wanted.startswith("tuple") and is_text_list:
        return tuple(value)  # type: ignore[arg-type]
    kinds = {"str": str, "str | None": str, "bool": bool}
    if wanted in kinds and isinstance(value, kinds[wanted]):
        return value
    is_text_table = isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    if wanted == "dict[str, object]" and isinstance(value, dict):
        return value
    if wanted == "dict[str, str]" and is_text_table:
        return value
    message = f"{where}: {key} = {value!r} has the wrong type, {wanted.removesuffix(' | None')} is needed"
    raise JobError(message)
