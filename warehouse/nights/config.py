"""The configuration of a night: what to look for and what to do with it, as one TOML file."""

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from warehouse.errors import WellhouseError
from warehouse.evaluation.asked import asked_metric
from warehouse.names import unknown
from warehouse.nights.jobs import ImagesJob, Job, JobError, ProfilesJob, from_dict
from warehouse.places import is_remote

#: Settings that hold a path; one that is not absolute counts from the folder of the configuration.
_PATHS = ("path", "layout", "annotations", "images", "features", "metadata")


@dataclass(frozen=True)
class Input:
    """A place where plates arrive.

    Args:
        name: for people.
        job: as it is for each of its manifests or files, with the place itself as `path`.
        pattern: of profiles, the names of files; more than one joined by `|`.
        units: of profiles, `files`, or `folders` where a folder is one unit (CellProfiler's export a site).
        recheck: `files` looks at every file of a plate each night, `manifest` at its manifest alone.
    """

    name: str
    job: Job
    pattern: str = "*.parquet|*.csv|*.csv.gz"
    units: Literal["files", "folders"] = "files"
    recheck: Literal["files", "manifest"] = "files"


@dataclass(frozen=True)
class After:
    """What is done with one feature set after ingestion.

    Args:
        feature_set: its name; one that holds nothing yet is passed over.
        recipes: to correct with; `none` names the profiles as they came in.
        index: recipes whose profiles are indexed.
        level: of the index.
        metrics: to score.
        evaluate: recipes whose profiles are scored.
        labels: kind of label that scores go by.
    """

    feature_set: str
    recipes: tuple[str, ...] = ()
    index: tuple[str, ...] = ()
    level: str = "treatment"
    metrics: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    labels: str = "moa"


@dataclass(frozen=True)
class NightConfig:
    """A night.

    Args:
        path: of the file.
        lake: address; None where the command line tells.
        inputs: places where plates arrive.
        after: what to do with feature sets.
        settle_seconds: a file that changed within so many seconds is still arriving.
        reports: folder for reports; None for the lake's own.
        compact: merge small files and expire old snapshots once a night in which something came.
        keep_days: snapshots younger than this are kept.
        verify: `quick` looks at every file's presence and size, `full` reads them, `none` does neither.
    """

    path: Path
    lake: str | None = None
    inputs: tuple[Input, ...] = ()
    after: tuple[After, ...] = ()
    settle_seconds: float = 60.0
    reports: str | None = None
    compact: bool = False
    keep_days: float = 30.0
    verify: str = "quick"


def read_config(path: Path) -> NightConfig:
    """Read a configuration; every key is checked before anything is done.

    Raises:
        JobError: no such file, no TOML, a setting that is missing, of the wrong type or out of range.
        UnknownNameError: a key that is no setting; the nearest one is offered.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text)
    except FileNotFoundError:
        message = f"{path}: there is no such file"
        raise JobError(message) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        message = f"{path} cannot be read as TOML: {error}"
        raise JobError(message) from error
    where = str(path)
    tables = {name: _tables(found, name, where) for name in ("images", "profiles", "feature_set")}
    own = {one.name for one in fields(NightConfig)} - {"path", "inputs", "after"}
    for key in found:
        if key not in own | tables.keys():
            raise unknown(key, f"setting in {where}", own | tables.keys())
    folder = path.resolve().parent
    inputs = [made for table in tables["images"] for made in _images(table, folder, where)]
    inputs += [_profiles(table, folder, where) for table in tables["profiles"]]
    names = [one.name for one in inputs]
    for name in names:
        if names.count(name) > 1:
            message = f"{where}: two inputs are named {name!r}: give each a name of its own with name = …"
            raise JobError(message)
    values = {key: _scalar(found, key, where) for key in own & found.keys()}
    lake = values.get("lake")
    if isinstance(lake, str) and not is_remote(lake) and ":" not in lake.split("/", maxsplit=1)[0]:
        values["lake"] = str(folder / lake)
    if isinstance(values.get("reports"), str):
        values["reports"] = str(folder / str(values["reports"]))
    after = tuple(_after(table, where) for table in tables["feature_set"])
    return NightConfig(path=path, inputs=tuple(inputs), after=after, **values)  # type: ignore[arg-type]


def _tables(found: dict[str, object], name: str, where: str) -> list[dict[str, object]]:
    tables = found.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        message = f"{where}: write each {name} as a table of its own, [[{name}]]"
        raise JobError(message)
    return tables


_SCALARS: dict[str, tuple[type, ...]] = {
    "lake": (str,),
    "settle_seconds": (int, float),
    "reports": (str,),
    "compact": (bool,),
    "keep_days": (int, float),
    "verify": (str,),
}


def _scalar(found: dict[str, object], key: str, where: str) -> object:
    value, kinds = found[key], _SCALARS[key]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        message = f"{where}: {key} = {value!r} has the wrong type, {kinds[-1].__name__} is needed"
        raise JobError(message)
    if isinstance(value, int | float) and value < 0:
        message = f"{where}: {key} = {value!r} is below 0"
        raise JobError(message)
    if key == "verify" and value not in ("quick", "full", "none"):
        raise unknown(str(value), f"verify in {where}", ("quick", "full", "none"))
    return value


def _images(table: dict[str, object], folder: Path, where: str) -> list[Input]:
    """Read a table of images: one input for each of its extractors."""
    rest = dict(table)
    at = f"{where}, [[images]]"
    extractors = rest.pop("extractors", None)
    if not isinstance(extractors, list) or not extractors:
        message = f"{at}: extractors = {extractors!r}: list at least one, such as extractors = ['transfer']"
        raise JobError(message)
    name, recheck = _own(rest, at, ("name", "recheck"))
    made = []
    for chosen in extractors:
        one = {"name": chosen} if isinstance(chosen, str) else chosen
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            message = (
                f"{at}: extractors: {chosen!r} is no name and no {{name = …, feature_set = …, settings = …}}"
            )
            raise JobError(message)
        for key in one:
            if key not in ("name", "feature_set", "settings"):
                raise unknown(key, f"setting of an extractor in {at}", ("name", "feature_set", "settings"))
        said = {"extractor": one["name"]} | {key: value for key, value in one.items() if key != "name"}
        job = _absolute(from_dict({"kind": "images", **rest, **said}, at), folder)
        assert isinstance(job, ImagesJob)
        label = f"{name or job.path} → {job.target}"
        made.append(Input(label, job, recheck=_choice(recheck, "recheck", ("files", "manifest"), at)))
    return made


def _profiles(table: dict[str, object], folder: Path, where: str) -> Input:
    rest = dict(table)
    at = f"{where}, [[profiles]]"
    name, recheck, pattern, units = _own(rest, at, ("name", "recheck", "pattern", "units"))
    job = _absolute(from_dict({"kind": "profiles", **rest}, at), folder)
    assert isinstance(job, ProfilesJob)
    return Input(
        f"{name or job.path} → {job.target}",
        job,
        pattern or Input.pattern,
        _choice(units, "units", ("files", "folders"), at),
        _choice(recheck, "recheck", ("files", "manifest"), at),
    )


def _own(rest: dict[str, object], where: str, names: tuple[str, ...]) -> list[str]:
    """Take the texts that are the input's and not the job's; one that is not given is empty."""
    values = [rest.pop(name, "") for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str):
            message = f"{where}: {name} = {value!r} has the wrong type, str is needed"
            raise JobError(message)
    return [str(value) for value in values]


def _choice(value: str, what: str, allowed: tuple[str, ...], where: str) -> Any:
    if value and value not in allowed:
        raise unknown(value, f"{what} in {where}", allowed)
    return value or allowed[0]


def _absolute(job: Job, folder: Path) -> Job:
    """Let paths count from the folder of the configuration, wherever the night is started."""
    paths = {key: getattr(job, key, None) for key in _PATHS}
    changed = {
        key: str(folder / value)
        for key, value in paths.items()
        if isinstance(value, str) and not is_remote(value)
    }
    return replace(job, **changed)  # type: ignore[arg-type]


def _after(table: dict[str, object], where: str) -> After:
    at = f"{where}, [[feature_set]]"
    rest = dict(table)
    if "name" in rest:
        rest["feature_set"] = rest.pop("name")
    known = {one.name: str(one.type) for one in fields(After)}
    for key in rest:
        if key not in known:
            raise unknown(key, f"setting in {at}", {*known, "name"} - {"feature_set"})
    if "feature_set" not in rest:
        message = f"{at} has no 'name': add the feature set's"
        raise JobError(message)
    for key, value in rest.items():
        is_list = known[key].startswith("tuple")
        fits = (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
            if is_list
            else isinstance(value, str)
        )
        if not fits:
            wanted = "a list of texts" if is_list else "a text"
            message = f"{at}: {key} = {value!r} has the wrong type, {wanted} is needed"
            raise JobError(message)
    made = After(**{key: tuple(value) if isinstance(value, list) else value for key, value in rest.items()})  # type: ignore[arg-type]
    for recipe in (*made.index, *made.evaluate):
        if recipe not in (*made.recipes, "none"):
            raise unknown(recipe, f"recipe to index or evaluate in {at}", (*made.recipes, "none"))
    for text in made.metrics:
        try:
            needs = asked_metric(text).metric.needs
        except WellhouseError as error:
            message = f"{at}: {error}"
            raise JobError(message) from error
        if {"pairs", "assays"} & set(needs):
            message = (
                f"{at}: metric {text!r} needs a file, which a night cannot bring: use `wellhouse evaluate`"
            )
            raise JobError(message)
    if bool(made.metrics) != bool(made.evaluate):
        message = f"{at}: metrics and evaluate go together: name the metrics, and the recipes whose profiles they score"
        raise JobError(message)
    return made
