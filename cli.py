"""The command `wellhouse`: parse, call one function, print. Answers go to stdout, everything else to stderr."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from extractors import commands as learned
from warehouse import __version__
from warehouse.commands import (
    aggregation,
    analysis,
    evaluation,
    export,
    lakes,
    layouts,
    learning,
    profile,
    profiles,
    quality,
    search,
    upkeep,
)
from warehouse.commands.options import (
    DEFAULT_LAKE,
    Annotations,
    AsJson,
    AsOf,
    Batch,
    CompoundColumn,
    LakePath,
    Layout,
    RecipeName,
    Replace,
    Source,
    Where,
)
from warehouse.console import json_pair, print_night, print_plan, print_plates, print_step, progress_bars
from warehouse.errors import WellhouseError

if TYPE_CHECKING:
    from warehouse.lake import Lake
    from warehouse.nearest import Query, Searcher
    from warehouse.nearest.asking import Asked

app = typer.Typer(
    name="wellhouse",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="A warehouse for high-content microscopy: images in, embeddings you can query with SQL out.",
)


@app.callback(invoke_without_command=True)
def _wellhouse(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"wellhouse {__version__}")
        raise typer.Exit


def ingest(
    manifest: Annotated[
        str, typer.Argument(help="Table of images: plain CSV, JUMP load_data.csv, BBBC021's CSV.")
    ],
    extractor: Annotated[str, typer.Option("--extractor", help="One of `wellhouse methods`.")] = "transfer",
    layout: Layout = None,
    annotations: Annotations = None,
    images: Annotated[
        str | None, typer.Option("--images", help="Folder of the images; default the manifest's.")
    ] = None,
    feature_set: Annotated[
        str | None, typer.Option("--feature-set", help="Name in the lake; default the extractor's.")
    ] = None,
    channels: Annotated[
        str | None, typer.Option("--channels", help="Channels to use, in order: DNA,ER,RNA.")
    ] = None,
    setting: learning.Setting = None,
    dna_channel: Annotated[str | None, typer.Option("--dna-channel", help="Where nuclei are found.")] = None,
    cell_channel: Annotated[str | None, typer.Option("--cell-channel", help="Where cells are found.")] = None,
    field_operator: Annotated[
        str, typer.Option("--field-operator", help="Cells to field: median, mean, trimmed_mean.")
    ] = "median",
    well_operator: Annotated[
        str,
        typer.Option("--well-operator", help="Fields to well: mean, median, trimmed_mean, weighted_mean."),
    ] = "mean",
    plate: learning.Plates = None,
    well: Annotated[list[str] | None, typer.Option("--well", help="Only this well; may be repeated.")] = None,
    source: Source = None,
    batch: Batch = None,
    compound_column: CompoundColumn = None,
    replace: Replace = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Take images in: segment, embed, aggregate; one transaction a plate, none twice.

    Example: `wellhouse ingest manifest.csv --layout layout.csv --extractor transfer`
    """
    from extractors import registry
    from extractors.nights import ingest_job, screen_of, whole_paths
    from warehouse.lake import Lake
    from warehouse.nights.jobs import ImagesJob, text
    from warehouse.nights.take import put_failed
    from warehouse.runs import Run, counts_of, outcome_of

    registry.entry(extractor)
    chosen = () if channels is None else tuple(name.strip() for name in channels.split(","))
    job = ImagesJob(
        text(manifest), extractor, feature_set or "", whole_paths(dict(map(json_pair, setting or []))), text(layout),
        text(annotations), text(images), source, batch, chosen, dna_channel, cell_channel, field_operator,
        well_operator, compound_column, tuple(plate or ()), tuple(well or ()), replace,
    )  # fmt: skip
    with Lake.open(lake) as opened:
        screen = screen_of(job)
        for note in screen.notes:
            typer.echo(f"note: {note}", err=True)
        run = Run("ingest", {"manifest": job.path, "feature_set": job.target, "extractor": extractor})
        with progress_bars("images") as progress:
            reports = ingest_job(opened, job, screen, run, {}, progress)
        put_failed(opened, run, job, reports)
        run.finish(opened, counts_of(reports), outcome_of(reports))
    print_plates(reports, as_json)


def nearest(
    feature_set: Annotated[str, typer.Option("--feature-set", help="Feature set to search.")],
    treatment: Annotated[
        str | None, typer.Argument(help="Treatment (compound@concentration), or another name at the level.")
    ] = None,
    recipe: RecipeName = "none",
    level: search.Level = "treatment",
    k: search.K = 20,
    well: Annotated[
        str | None, typer.Option("--well", help="Search with a well: source/batch/plate/well.")
    ] = None,
    wells: Annotated[
        str | None,
        typer.Option("--wells", help="Search with the profile of all wells that meet this SQL predicate."),
    ] = None,
    vector: Annotated[
        str | None,
        typer.Option("--vector", help="Search with a vector in the recipe's space: .npy, .json, or a list."),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", help="Search with a picture: CHANNEL=FILE for each channel, or a file."),
    ] = None,
    plate: Annotated[
        str | None,
        typer.Option("--plate", help="Plate that the picture is of, for its correction: source/batch/plate."),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of the picture's extractor: weights=FILE.")
    ] = None,
    not_same_compound: search.NotSameCompound = False,
    not_same_batch: search.NotSameBatch = False,
    not_same_plate: search.NotSamePlate = False,
    not_same_position: search.NotSamePosition = False,
    where: Where = None,
    opposite: Annotated[bool, typer.Option("--opposite", help="The most dissimilar first.")] = False,
    device: search.Device = "cpu",
    as_of: AsOf = None,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Find what looks most like a treatment, a well, wells, a vector or a picture; filters apply before ranking.

    Example: `wellhouse nearest taxol@0.3uM --feature-set transfer --recipe standardize --not-same-compound`
    """
    from dataclasses import replace

    from warehouse.nearest import Filters, Searcher
    from warehouse.nearest.asking import Asked
    from warehouse.upkeep.moments import open_at

    asked = Asked(
        treatment, well, wells, vector, tuple(image or ()), plate, dict(map(json_pair, setting or []))
    )
    filters = Filters(not_same_compound, not_same_batch, not_same_plate, not_same_position, where)
    with open_at(lake, as_of) as opened:
        searcher = Searcher(opened, feature_set, recipe, level, device)
        query, notes = _of_images(opened, searcher, asked) if image else (asked.query(searcher), ())
        answer = searcher.nearest(query, k, filters, opposite=opposite)
    search.print_nearest(replace(answer, notes=(*notes, *answer.notes)), k, as_json)


def _of_images(lake: "Lake", searcher: "Searcher", asked: "Asked") -> "tuple[Query, tuple[str, ...]]":
    """Make the query of pictures, which only extractors can read, and tell what should be known of it."""
    from dataclasses import replace

    from extractors.image_query import profile_of_images
    from warehouse.on_the_spot import plate_named

    target, recipe = searcher.feature_set, searcher.recipe
    plate = None if asked.plate is None else plate_named(lake, target, recipe, asked.plate)
    made = profile_of_images(
        lake, target.name, recipe.name, asked.images, plate=plate, settings=asked.settings
    )
    query = searcher.vector(made.vector, made.name)
    if plate is not None:  # what filters by batch and by plate leave out
        query = replace(query, batches=frozenset({"/".join(plate[:2])}), plates=frozenset({"/".join(plate)}))
    return query, made.notes


def evaluate(
    feature_sets: evaluation.FeatureSets,
    recipe: RecipeName = "none",
    metrics: evaluation.Metrics = "nsc,nsb,map",
    labels: evaluation.Labels = "moa",
    level: evaluation.Level = None,
    where: Where = None,
    batch_key: evaluation.BatchKey = "batch",
    baselines: evaluation.Baselines = 5,
    compare: evaluation.Compare = False,
    draws: evaluation.Draws = 2000,
    clusters: evaluation.Clusters = None,
    folds: evaluation.Folds = None,
    pairs: evaluation.Pairs = None,
    assays: evaluation.Assays = None,
    device: evaluation.Device = "cpu",
    seed: evaluation.Seed = 0,
    details: evaluation.Details = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Score feature sets beside their baselines, and store the scores with the snapshot that they are of.

    Example: `wellhouse evaluate transfer transfer:center --metrics "nsc,nsb,knn(k=11)" --labels moa --compare`
    """
    from warehouse.evaluation import Inputs
    from warehouse.evaluation import compare as side_by_side
    from warehouse.evaluation import evaluate as run
    from warehouse.lake import Lake

    names = evaluation.names_of(metrics)
    evaluation.check_comparison(feature_sets, compare)
    arrays = None
    if evaluation.is_gpu(device):
        from extractors.torch_blocks import TorchArrays

        arrays = TorchArrays("cuda")
    with Lake.open(lake) as opened:
        made = run(
            opened, feature_sets, names, recipe=recipe, labels=labels, level=level, where=where,
            batch_key=batch_key, baselines=baselines, inputs=Inputs(clusters, folds, pairs, assays), arrays=arrays,
            seed=seed,
        )  # fmt: skip
    comparison = side_by_side(made, draws=draws, seed=seed) if compare else None
    evaluation.print_evaluations(made, comparison, details, as_json)


def nightly(
    config: Annotated[Path, typer.Argument(help="TOML file: where plates arrive, and what follows.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")
    ] = False,
    lake: Annotated[
        str | None, typer.Option("--lake", envvar="WELLHOUSE_LAKE", help="Lake; default the configuration's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find what is new, take it in, correct, index, evaluate, check; leave a report. Ends with 1 where a part failed.

    Example: `wellhouse nightly night.toml --dry-run`
    """
    from extractors.nights import take_images
    from warehouse.lake import Lake
    from warehouse.nights import report
    from warehouse.nights.config import read_config
    from warehouse.nights.jobs import ImagesJob, ProfilesJob
    from warehouse.nights.night import nightly as run
    from warehouse.nights.plan import make_plan
    from warehouse.nights.profiles import take_profiles

    settings = read_config(config)
    takers = {ImagesJob: take_images, ProfilesJob: take_profiles}
    with Lake.open(lake or settings.lake or DEFAULT_LAKE, read_only=dry_run) as opened:
        if dry_run:
            print_plan(make_plan(opened, settings), settings, as_json)
            return
        with progress_bars("plates") as progress:
            night = run(opened, settings, takers, progress)
        path = report.save(night)
    print_night(night, str(path), as_json)


def retry(
    plate: Annotated[str, typer.Argument(help="Plate in quarantine; `all` for every one.")],
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Try plates in quarantine again, as they were tried before.

    Example: `wellhouse retry BR00116991`
    """
    from extractors.nights import take_images
    from warehouse.lake import Lake
    from warehouse.nights.jobs import ImagesJob, ProfilesJob
    from warehouse.nights.profiles import take_profiles
    from warehouse.nights.retry import retry as run

    with Lake.open(lake) as opened, progress_bars("images") as progress:
        takers = {ImagesJob: take_images, ProfilesJob: take_profiles}
        reports = run(opened, None if plate == "all" else plate, takers, progress)
    print_plates(reports, as_json)


def demo(
    folder: Annotated[Path, typer.Argument(help="For the screen and its lake.")] = Path("demo"),
) -> None:
    """Make a small synthetic screen and take it through everything: ingest, correct, index, nearest, evaluate.

    Example: `wellhouse demo`
    """
    from extractors.demo import demo as run

    run(folder, print_step, progress_bars)


#: All commands, in the order of `--help`.
COMMANDS = (
    lakes.init,
    ingest,
    profiles.import_profiles,
    layouts.import_layout,
    export.export,
    profile.profile,
    learned.methods,
    learned.train,
    learned.extract,
    learned.explain,
    analysis.correct,
    analysis.recipes,
    aggregation.operators,
    search.index,
    nearest,
    search.neighbours,
    search.pairs,
    search.novelty,
    evaluate,
    evaluation.leaderboard,
    evaluation.metrics,
    evaluation.feature_correlation,
    quality.quality,
    lakes.sql,
    nightly,
    retry,
    lakes.status,
    upkeep.history,
    upkeep.rollback,
    upkeep.compact,
    upkeep.verify,
    demo,
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command; an error that the user can mend is one line and exit code 1."""
    try:
        app(prog_name="wellhouse")
    except WellhouseError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        typer.echo(f"error: {error.name} is not installed: pip install 'wellhouse[{extra}]'", err=True)
        sys.exit(1)
    except BrokenPipeError:  # the reader of a pipe, such as head, has what it wanted
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        from warehouse.trouble import unavailable

        # Only trouble of a catalog, a storage or a disk is said in one line; a fault of ours must be seen whole.
        found = unavailable(error, "the lake")
        if found is None:
            raise
        typer.echo(f"error: {' '.join(str(found).split())}", err=True)
        sys.exit(1)


#: Modules of extras, for the message when one is not there.
_EXTRAS = dict.fromkeys(
    ("torch", "timm", "tifffile", "skimage", "cp_measure", "imagecodecs", "PIL"), "extract"
) | dict.fromkeys(("lightning", "h5py", "tensorboard"), "train")


if __name__ == "__main__":
    main()
