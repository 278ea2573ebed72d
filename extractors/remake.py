"""Making the very extractor that a feature set was made with, or saying why that cannot be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extractors import pipeline, registry
from extractors.base import Extractor
from extractors.pipeline import PipelineSettings
from extractors.segment import SegmentSettings
from warehouse.errors import SearchError, WellhouseError
from warehouse.feature_sets import FeatureSet

#: Parameters of a feature set that are no settings of its extractor: the pipeline's, and what is fixed in the code.
_NO_SETTINGS = ("input", "segmentation", "crop_segmentation")


def remade(
    target: FeatureSet,
    settings: Mapping[str, object] | None = None,
    workers: int = 2,
    models: Path | None = None,
) -> tuple[Extractor, PipelineSettings]:
    """Make the very extractor that a feature set was made with, and the settings of its pipeline.

    Args:
        target: the feature set.
        settings: as in `profile_of_images`. Weights that come with a package need not be named.
        workers: threads of the pipeline.
        models: folder where a trained model lies under the feature set's name, unless the setting `model` names it.

    Raises:
        SearchError: it cannot be had; the message says what differs.
    """
    about = f"feature set {target.name!r}"
    if target.extractor == "import":
        message = (
            f"{about} was imported: no extractor here made it, so none can embed images for it: take a feature set "
            "that was ingested from images, or import their profiles"
        )
        raise SearchError(message)
    if target.extractor not in {entry.name for entry in registry.ALL}:
        known = ", ".join(entry.name for entry in registry.ALL)
        message = f"{about} was made by extractor {target.extractor!r}, which is not here (there is {known})"
        raise SearchError(message)
    recorded = {name: value for name, value in target.parameters.items() if name not in _NO_SETTINGS}
    given = dict(settings or {})
    if registry.entry(target.extractor).trains and models is not None:
        given = {"model": str(models / target.name)} | given
    if "weights" not in given and _is_packaged(target):
        given["weights"] = "package"
    # A default may name a channel that images of whole fields need not have.
    own = {
        name: value
        for name, value in recorded.items()
        if not (name.endswith("_channel") and value not in target.channels)
    }
    try:
        extractor = registry.create(target.extractor, target.channels, own | given)
        extraction = extraction_of(target, workers)
    except (WellhouseError, TypeError) as error:
        weights = f" with weights of SHA-256 {target.weights[:16]}…" if target.weights else ""
        message = (
            f"{about} was made by {target.extractor} {target.version}{weights}, which cannot be had: {error}"
        )
        raise SearchError(message) from error
    is_crops = target.parameters.get("input") == "crops"
    _refuse_other(target, pipeline.feature_set_of(target.name, extractor, extraction, is_crops))
    return extractor, extraction


def _is_packaged(target: FeatureSet) -> bool:
    """Whether a feature set was made with the weights that come with a package: there is no need to name them."""
    if "model" not in target.parameters or target.weights is None:
        return False
    from extractors.weights import PACKAGED_MODEL, packaged, sha256

    return target.parameters["model"] == PACKAGED_MODEL and target.weights == sha256(packaged())


def extraction_of(target: FeatureSet, workers: int) -> PipelineSettings:
    """Say how files of a feature set became cells, and cells wells; crops are not segmented by the pipeline."""
    recorded: Any = dict(target.parameters.get("segmentation") or {})  # type: ignore[call-overload]
    return PipelineSettings(
        dna_channel=recorded.pop("dna_channel", None),
        cell_channel=recorded.pop("cell_channel", None),
        segmentation=SegmentSettings(**recorded),
        field_operator=target.field_operator,
        well_operator=target.well_operator,
        workers=workers,
    )


def _refuse_other(target: FeatureSet, here: FeatureSet) -> None:
    """Refuse an extractor whose numbers would not be those of the feature set."""
    if target.identity() == here.identity():
        return
    was, is_ = _flat(target), _flat(here)
    key = next(key for key in (*was, *is_) if was.get(key) != is_.get(key))
    there, now = (_short(values.get(key)) for values in (was, is_))
    is_trained = registry.entry(target.extractor).trains is not None
    files = (
        "name its folder with --set model=FOLDER" if is_trained else "name its file with --set weights=FILE"
    )
    remedy = files if is_trained or key == "weights" else "ingest the screen again"
    message = (
        f"feature set {target.name!r} was made by {target.extractor} with {key} {there}, and here it has {now}: "
        f"profiles made here could not be compared with it: {remedy}, or take another feature set"
    )
    raise SearchError(message)


def _flat(target: FeatureSet) -> dict[str, object]:
    """What decides a feature set's numbers, one level deep, in the order in which a difference is told."""
    names = ("extractor", "version", "weights", "channels", "entry_level", "field_operator", "well_operator")
    flat = {name: getattr(target, name) for name in names}
    for name, value in target.parameters.items():
        inner = value if isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": part for key, part in inner.items()}
    return flat | {"feature_names": target.feature_names}


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} names ({', '.join(value[:3])}{', …' if len(value) > 3 else ''})"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"
