"""The command `wellhouse`: parse, call one function, print. Answers go to stdout, everything else to stderr."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from warehouse import __version__
from warehouse.console import (
    json_pair,
    pair,
    print_answer,
    print_plates,
    print_records,
    print_status,
    print_step,
    progress_bars,
)
from warehouse.errors import WellhouseError

app = typer.Typer(
    name="wellhouse",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="A warehouse for high-content microscopy: images in, embeddings you can query with SQL out.",
)

LakePath = Annotated[
    str, typer.Option("--lake", envvar="WELLHOUSE_LAKE", help="The lake's folder.", show_default=True)
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")
]
RecipeName = Annotated[
    str, typer.Option("--recipe", help="Steps joined by +, or `none`: mad_robustize+sphering.")
]
Where = Annotated[str | None, typer.Option("--where", help="SQL predicate that rows must meet.")]
Layout = Annotated[
    Path | None, typer.Option("--layout", help="Wells: plain CSV, platemap folder, BBBC021's CSV.")
]
Annotations = Annotated[
    Path | None, typer.Option("--annotations", help="Labels of compounds: moa, target, ….")
]
Source = Annotated[
    str | None, typer.Option("--source", help="Source of the plates, where the files name none.")
]
Batch = Annotated[str | None, typer.Option("--batch", help="Batch of the plates, where the files name none.")]
Replace = Annotated[bool, typer.Option("--replace", help="Let wells go that are in and no longer come.")]
DEFAULT_LAKE = "wellhouse.lake"


@app.callback(invoke_without_command=True)
def _wellhouse(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"wellhouse {__version__}")
        raise typer.Exit


@app.command()
def init(
    lake: Annotated[str, typer.Argument(help="Folder of the new lake.")] = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Make a lake, with templates of the CSV files that describe a screen.

    Example: `wellhouse init screens.lake`
    """
    from warehouse.lake import Lake
    from warehouse.screens import write_templates

    with Lake.create(lake) as made:
        templates = made.path / "templates"
        if not templates.exists():
            write_templates(templates)
        answer = {"lake": str(made.path), "snapshot": made.snapshot(), "templates": str(templates)}
    print_answer(answer, as_json, f"lake      {answer['lake']}\ntemplates {answer['templates']}")


@app.command()
def ingest(
    manifest: Annotated[
        Path, typer.Argument(help="Table of images: plain CSV, JUMP load_data.csv, BBBC021's CSV.")
    ],
    extractor: Annotated[str, typer.Option("--extractor", help="cellprofiler or transfer.")] = "transfer",
    layout: Layout = None,
    annotations: Annotations = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of the images; default the manifest's.")
    ] = None,
    feature_set: Annotated[
        str | None, typer.Option("--feature-set", help="Name in the lake; default the extractor's.")
    ] = None,
    channels: Annotated[
        str | None, typer.Option("--channels", help="Channels to use, in order: DNA,ER,RNA.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of the extractor: size=128.")
    ] = None,
    dna_channel: Annotated[str | None, typer.Option("--dna-channel", help="Where nuclei are found.")] = None,
    cell_channel: Annotated[str | None, typer.Option("--cell-channel", help="Where cells are found.")] = None,
    field_operator: Annotated[
        str, typer.Option("--field-operator", help="Cells to field: median, mean.")
    ] = "median",
    well_operator: Annotated[
        str, typer.Option("--well-operator", help="Fields to well: mean, median, weighted_mean.")
    ] = "mean",
    plate: Annotated[
        list[str] | None, typer.Option("--plate", help="Only this plate; may be repeated.")
    ] = None,
    well: Annotated[list[str] | None, typer.Option("--well", help="Only this well; may be repeated.")] = None,
    source: Source = None,
    batch: Batch = None,
    replace: Replace = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Take images in: segment, embed, aggregate; one transaction a plate, none twice.

    Example: `wellhouse ingest manifest.csv --layout layout.csv --extractor transfer`
    """
    from extractors import pipeline, registry
    from warehouse.lake import Lake
    from warehouse.screens import read_screen

    registry.entry(extractor)
    chosen = None if channels is None else [name.strip() for name in channels.split(",")]
    with Lake.open(lake) as opened:
        screen = read_screen(
            manifest, layout=layout, annotations=annotations, images=images, source=source, batch=batch,
            channels=chosen,
        )  # fmt: skip
        screen = screen.only(plate or (), well or ())
        for note in screen.notes:
            typer.echo(f"note: {note}", err=True)
        names = tuple(chosen or screen.manifest["channel"].unique(maintain_order=True).to_list())
        made = registry.create(extractor, names, dict(map(json_pair, setting or [])))
        settings = pipeline.PipelineSettings(
            dna_channel=dna_channel, cell_channel=cell_channel, field_operator=field_operator,
            well_operator=well_operator, replace=replace,
        )  # fmt: skip
        with progress_bars("images") as progress:
            reports = pipeline.ingest_screen(
                opened, screen, made, feature_set=feature_set, settings=settings, progress=progress
            )
    print_plates(reports, as_json)


@app.command("import-profiles")
def import_profiles(
    files: Annotated[list[Path], typer.Argument(help="CSV (.gz) or Parquet, one row a well.")],
    feature_set: Annotated[str, typer.Option("--feature-set", help="Name in the lake.")],
    layout: Layout = None,
    annotations: Annotations = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="Where a key is: plate=Assay_Barcode.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="File of feature names, one a line.")
    ] = None,
    source: Source = None,
    batch: Batch = None,
    replace: Replace = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Take well profiles in that were made elsewhere.

    Example: `wellhouse import-profiles BR0012.csv.gz --feature-set cellprofiler --layout platemaps/`
    """
    from warehouse import importers
    from warehouse.lake import Lake
    from warehouse.names import unknown
    from warehouse.screens import read_annotations, read_layout

    columns = dict(map(pair, column or []))
    for key in sorted(set(columns) - set(importers.KEY_COLUMNS)):
        raise unknown(key, "key of --column", importers.KEY_COLUMNS)
    settings = importers.ImportSettings(
        columns=columns,
        features=None if features is None else importers.read_feature_list(features),
        source=source,
        batch=batch,
    )
    with Lake.open(lake) as opened:
        wells = None if layout is None else read_layout(layout)
        labels = None if annotations is None else read_annotations(annotations)
        with progress_bars("plates") as progress:
            reports = importers.import_profiles(
                opened, files, feature_set, layout=wells, annotations=labels, settings=settings,
                replace=replace, progress=progress,
            )  # fmt: skip
    print_plates(reports, as_json)


@app.command()
def correct(
    feature_set: Annotated[str, typer.Argument(help="Feature set to correct.")],
    recipe: RecipeName = "standardize",
    refit: Annotated[bool, typer.Option("--refit", help="Fit again on everything.")] = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Correct wells with a recipe; its fit is stored, and later plates are corrected with it.

    Example: `wellhouse correct transfer --recipe "mad_robustize+sphering(lambda=0.01)"`
    """
    from warehouse.correct import correct as run
    from warehouse.lake import Lake

    with Lake.open(lake) as opened:
        report = run(opened, feature_set, recipe, refit=refit)
    for what, names in (
        ("constant in the fit", report.constant_features),
        ("dropped", report.features_dropped),
    ):
        if names:
            typer.echo(
                f"note: {len(names)} features {what}: {', '.join(names[:5])}{', …' * (len(names) > 5)}",
                err=True,
            )
    print_records([report], as_json)


@app.command()
def index(
    feature_set: Annotated[str, typer.Argument(help="Feature set to index.")],
    recipe: RecipeName = "none",
    level: Annotated[str, typer.Option("--level", help="treatment or consensus.")] = "treatment",
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Build the similarity index that `nearest` asks.

    Example: `wellhouse index transfer --recipe standardize`
    """
    from warehouse import nearest as search
    from warehouse.lake import Lake

    with Lake.open(lake, read_only=True) as opened:
        report = search.build(opened, feature_set, recipe=recipe, level=level)
    print_records([report], as_json)


@app.command()
def nearest(
    treatment: Annotated[str, typer.Argument(help="Treatment, as compound@concentration.")],
    feature_set: Annotated[str, typer.Option("--feature-set", help="Feature set to search.")],
    recipe: RecipeName = "none",
    k: Annotated[int, typer.Option("-k", help="How many neighbours.")] = 20,
    not_same_compound: Annotated[
        bool, typer.Option("--not-same-compound", help="Leave its own compound out.")
    ] = False,
    not_same_batch: Annotated[
        bool, typer.Option("--not-same-batch", help="Leave its own batches out.")
    ] = False,
    where: Where = None,
    level: Annotated[str, typer.Option("--level", help="treatment or consensus.")] = "treatment",
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Find the treatments that look most like one; exclusions apply before ranking.

    Example: `wellhouse nearest taxol@0.3uM --feature-set transfer --recipe standardize --not-same-compound`
    """
    from warehouse import nearest as search
    from warehouse.lake import Lake

    with Lake.open(lake, read_only=True) as opened:
        answer = search.nearest(
            opened, treatment, feature_set, recipe=recipe, level=level, k=k, where=where,
            not_same_compound=not_same_compound, not_same_batch=not_same_batch,
        )  # fmt: skip
    if answer.note:
        typer.echo(f"note: {answer.note}", err=True)
    if answer.neighbours.height < k:
        typer.echo(f"note: {k} were asked for, {answer.allowed} are there to choose from", err=True)
    document = {"query": answer.query, "allowed": answer.allowed, "neighbours": answer.neighbours.to_dicts()}
    print_answer(document, as_json, search.for_people(answer.neighbours))


@app.command()
def evaluate(
    feature_sets: Annotated[list[str], typer.Argument(help="One feature set or more.")],
    recipe: RecipeName = "none",
    metrics: Annotated[
        str, typer.Option("--metrics", help="nsc, nsb, map, map_vs_controls.")
    ] = "nsc,nsb,map",
    labels: Annotated[str, typer.Option("--labels", help="moa, target, pathway or gene_family.")] = "moa",
    where: Where = None,
    details: Annotated[
        bool, typer.Option("--details", help="Also print one row a treatment or label.")
    ] = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Score feature sets and store the scores with the snapshot that they were computed on.

    Example: `wellhouse evaluate transfer --recipe standardize --metrics nsc,nsb --labels moa`
    """
    from warehouse.evaluate import as_frame, details_frame
    from warehouse.evaluate import evaluate as run
    from warehouse.lake import Lake

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    if not names:
        message = f"--metrics {metrics!r} names no metric: give some, such as nsc,map"
        raise WellhouseError(message)
    with Lake.open(lake) as opened:
        made = run(opened, feature_sets, names, recipe=recipe, labels=labels, where=where)
    table = as_frame(made)
    document: dict[str, Any] = {"evaluations": table.to_dicts()}
    if details:
        document["details"] = [details_frame(evaluation).to_dicts() for evaluation in made]
    print_answer(document, as_json, table)
    if details and not as_json:
        for evaluation in made:
            print_answer(None, False, details_frame(evaluation))


@app.command()
def sql(
    query: Annotated[
        str, typer.Argument(help="One query; feature sets are schemas, shared tables are in main.")
    ],
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Ask the lake in SQL; it is opened read-only.

    Example: `wellhouse sql "SELECT treatment, well_count FROM transfer.treatments"`
    """
    from warehouse.lake import Lake
    from warehouse.query import sql as run

    with Lake.open(lake, read_only=True) as opened:
        table = run(opened, query)
    print_answer(table.to_dicts() if as_json else None, as_json, table)


@app.command()
def status(lake: LakePath = DEFAULT_LAKE, as_json: AsJson = False) -> None:
    """Show what the lake holds, what was rejected and why, and whether its checks pass.

    Example: `wellhouse status --lake screens.lake`
    """
    from warehouse.lake import Lake
    from warehouse.status import status as run

    with Lake.open(lake, read_only=True) as opened:
        state = run(opened)
    print_status(state, as_json)
    if state.faults:
        raise typer.Exit(1)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="For the screen and its lake.")] = Path("demo"),
) -> None:
    """Make a small synthetic screen and take it through everything: ingest, correct, index, nearest, evaluate.

    Example: `wellhouse demo`
    """
    from extractors.demo import demo as run

    run(folder, print_step, progress_bars)


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


#: Modules of extras, for the message when one is not there.
_EXTRAS = dict.fromkeys(("torch", "timm", "tifffile", "skimage", "cp_measure", "imagecodecs"), "extract")


if __name__ == "__main__":
    main()
