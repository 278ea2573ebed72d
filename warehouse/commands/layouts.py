"""Commands that take in what is in the wells, without images or profiles."""

from pathlib import Path
from typing import Annotated

import typer

from warehouse.commands.options import (
    DEFAULT_LAKE,
    Annotations,
    AsJson,
    Batch,
    LakePath,
    Replace,
    Source,
)
from warehouse.console import print_answer


def import_layout(
    paths: Annotated[
        list[Path], typer.Argument(help="Layouts: plain CSV, platemap folder, JUMP's metadata tables.")
    ],
    annotations: Annotations = None,
    source: Source = None,
    batch: Batch = None,
    plate: Annotated[
        list[str] | None, typer.Option("--plate", help="A plate that a single platemap holds for.")
    ] = None,
    compound_column: Annotated[
        str | None, typer.Option("--compound-column", help="Column that names the compound.")
    ] = None,
    replace: Replace = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Take plates, wells and labels in; profiles may be there already or come later.

    Example: `wellhouse import-layout platemaps/ --annotations compounds.tsv --compound-column cell_line`
    """
    from warehouse import layout_import
    from warehouse.lake import Lake

    with Lake.open(lake) as opened:
        done = layout_import.import_layout(
            opened, paths, annotations=annotations, source=source, batch=batch, plates=plate,
            compound_column=compound_column, replace=replace,
        )  # fmt: skip
    for reason, rows in done.rejections.items():
        typer.echo(f"left out: {reason} ({rows})", err=True)
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    document = {**done.counts(), "rejections": done.rejections, "notes": done.notes}
    print_answer(document, as_json, "\n".join(f"{name:18}{count}" for name, count in done.counts().items()))
