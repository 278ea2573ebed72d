"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

LakePath = Annotated[
    str,
    typer.Option(
        "--lake", envvar="WELLHOUSE_LAKE", help="The lake: a folder, or postgres:…", show_default=True
    ),
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
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of", help="The lake as it was: a snapshot (17, or -1), 2026-11-20 (its end), or a time; UTC."
    ),
]
CompoundColumn = Annotated[
    str | None,
    typer.Option("--compound-column", help="Of a Broad platemap: the column that names the compound."),
]
DEFAULT_LAKE = "wellhouse.lake"
