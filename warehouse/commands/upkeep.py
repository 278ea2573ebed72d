"""Commands that keep a lake: what happened to it, the way back, fewer files, and proof that it is whole."""

from typing import Annotated

import typer

from warehouse.commands.options import DEFAULT_LAKE, AsJson, LakePath
from warehouse.console import print_answer, progress_bars

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")]


def history(
    plate: Annotated[str | None, typer.Option("--plate", help="Only what changed this plate.")] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="How many snapshots.")] = 20,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """List the lake's snapshots, newest first: when, by whom, what changed.

    Example: `wellhouse history --plate BR00116991`
    """
    from warehouse.lake import Lake
    from warehouse.upkeep.history import history as run

    with Lake.open(lake, read_only=True) as opened:
        table = run(opened, plate=plate, limit=limit)
    print_answer(table.to_dicts() if as_json else None, as_json, table)


def rollback(
    moment: Annotated[
        str,
        typer.Argument(
            help="A snapshot, a date (its end) or a time, UTC; after `--` also -1, the one before."
        ),
    ],
    plate: Annotated[str | None, typer.Option("--plate", help="Only this plate.")] = None,
    feature_set: Annotated[str | None, typer.Option("--feature-set", help="Only this feature set.")] = None,
    dry_run: DryRun = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Bring plates back to what they were; nothing is lost: the present stays a snapshot, too.

    Example: `wellhouse rollback 2026-11-20 --plate BR00116991`
    """
    from dataclasses import asdict

    from warehouse.lake import Lake
    from warehouse.upkeep import moments
    from warehouse.upkeep.rollback import as_frame
    from warehouse.upkeep.rollback import rollback as run

    moments.parse(moment)
    with Lake.open(lake) as opened:
        report = run(opened, moment, plate=plate, feature_set=feature_set, dry_run=dry_run)
    print_answer(asdict(report), as_json, as_frame(report))
    if not as_json:
        tables = f", {', '.join(report.tables)} too" if report.tables else ""
        forward = "" if dry_run else f"; forward again with `wellhouse rollback {report.snapshot}`"
        went = "would go" if dry_run else "went"
        typer.echo(
            f"{went} back to snapshot {report.to}{tables}; {report.unchanged} unchanged{forward}", err=True
        )


def compact(
    keep_days: Annotated[
        int, typer.Option("--keep-days", min=1, help="Snapshots younger than this stay.")
    ] = 30,
    dry_run: DryRun = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Merge small files, let old snapshots expire, and delete files that nothing reads.

    Example: `wellhouse compact --keep-days 90`
    """
    from dataclasses import asdict
    from datetime import timedelta

    from warehouse.lake import Lake
    from warehouse.upkeep.compact import CompactSettings, as_frame
    from warehouse.upkeep.compact import compact as run

    with Lake.open(lake) as opened, progress_bars("steps") as progress:
        report = run(
            opened, CompactSettings(keep=timedelta(days=keep_days)), dry_run=dry_run, progress=progress
        )
    print_answer(asdict(report), as_json, as_frame(report))
    for table in report.busy:
        typer.echo(f"note: {table} was being written; the next compact merges it", err=True)


def verify(
    quick: Annotated[bool, typer.Option("--quick", help="Sizes and footers only, not every value.")] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Also compute fields and wells from cells, and compare.")
    ] = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Check that every file is there and readable, that counts balance, and that embeddings are right.

    Example: `wellhouse verify --quick`
    """
    from dataclasses import asdict

    from warehouse.lake import Lake
    from warehouse.upkeep.verify import as_frame
    from warehouse.upkeep.verify import verify as run

    with Lake.open(lake, read_only=True) as opened, progress_bars("MB") as progress:
        found = run(opened, quick=quick, recomputing=recompute, progress=progress)
    speed = found.megabytes / max(found.seconds, 1e-9)
    effort = f"{found.megabytes:.1f} MB in {found.seconds:.1f} s ({speed:.0f} MB/s)"
    said = f"{found.files} files, {found.rows} rows, {effort}"
    for path, size in found.orphans:
        typer.echo(
            f"note: {path} ({size} bytes) belongs to nothing; compact deletes it a day after it was written",
            err=True,
        )
    if found.recomputed is not None:
        for name in found.recomputed.left_out:
            typer.echo(f"note: {name} begins with wells: there is nothing to compute them from", err=True)
        anew = found.recomputed
        said += f"; computed anew: {anew.fields} fields and {anew.wells} wells of {anew.plates} plates"
        said += f" ({anew.values} values) in {anew.seconds:.1f} s"
    is_whole = not found.faults
    print_answer(asdict(found), as_json, f"{said}: all is well" if is_whole else as_frame(found.faults))
    if not is_whole:
        typer.echo(f"error: {len(found.faults)} faults; {said}", err=True)
        raise typer.Exit(1)
