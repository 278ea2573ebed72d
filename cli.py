"""The command `wellhouse`: parse, call one function, print. Answers go to stdout, everything else to stderr."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from warehouse import __version__
from warehouse.commands import analysis, lakes, profiles
from warehouse.commands.options import (
    DEFAULT_LAKE,
    Annotations,
    AsJson,
    Batch,
    LakePath,
    Layout,
    Replace,
    Source,
)
from warehouse.console import json_pair, print_plates, print_step, progress_bars
from warehouse.errors import WellhouseError

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
    analysis.correct,
    analysis.index,
    analysis.nearest,
    analysis.evaluate,
    lakes.sql,
    lakes.status,
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


#: Modules of extras, for the message when one is not there.
_EXTRAS = dict.fromkeys(("torch", "timm", "tifffile", "skimage", "cp_measure", "imagecodecs"), "extract")


if __name__ == "__main__":
    main()
