"""Joining CellProfiler's object tables to cells, on image and object numbers and never on the order of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from warehouse.errors import ProfileError


@dataclass(frozen=True)
class Objects:
    """The keys of one object table.

    Attributes:
        name: of the compartment.
        keys: `row` (position), `image` (code), `object`, and `parent <compartment>` for each of `parents`; integers.
        parents: compartment to the name of the column that points to it.
    """

    name: str
    keys: pl.DataFrame
    parents: Mapping[str, str]


@dataclass(frozen=True)
class _Link:
    """How a table is reached: the columns of both sides, and the column's name for messages."""

    left: str
    right: str
    column: str
    holder: str  # the table that has the column


def join(tables: Sequence[Objects], path: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Join object tables to cells.

    Args:
        tables: the first one is the cell; each row of it is one cell.
        path: for messages.

    Returns:
        The cells that have exactly one row in every table: image, object, and `row <table>` for each. And what is
        left: image, cell (the object, or table and object where it belongs to no cell), reason. A row stands in
        one of the two: with its cell, or for itself.

    Raises:
        ProfileError: no column links a table to another.
    """
    cells, orphans = tables[0], []
    base = _named(cells).with_columns(
        pl.when(pl.col("object").is_null())
        .then(pl.lit(f"has no object number in {cells.name}"))
        .when(pl.struct("image", "object").is_duplicated())
        .then(pl.format("its object number {} stands more than once in {}", "object", pl.lit(cells.name)))
        .alias("reason")
    )
    linked, waiting = [cells], list(tables[1:])
    while waiting:
        table, link = _next_link(linked, waiting, path)
        waiting.remove(table)
        base, left = _attach(base, table, link)
        orphans.append(left)
        linked.append(table)
        base = base.with_columns(_contradiction(linked, table, link))
    good = pl.col("reason").is_null()
    joined = base.filter(good).select("image", "object", *(f"row {table.name}" for table in tables))
    rejected = base.filter(~good).select("image", pl.col("object").cast(pl.String).alias("cell"), "reason")
    rejected = rejected.with_columns(pl.col("cell").fill_null("without number"))
    return joined, pl.concat([rejected, *orphans])


def _named(table: Objects) -> pl.DataFrame:
    """Name the columns of a table so that those of several can stand side by side."""
    return table.keys.select(
        "image",
        pl.col("object").alias(f"object {table.name}"),
        pl.col("row").alias(f"row {table.name}"),
        *(pl.col(f"parent {name}").alias(f"{table.name} to {name}") for name in table.parents),
    ).with_columns(pl.col(f"object {table.name}").alias("object"))


def _next_link(linked: list[Objects], waiting: list[Objects], path: str) -> tuple[Objects, _Link]:
    for near in linked:
        for table in waiting:
            if near.name in table.parents:
                link = _Link(
                    f"object {near.name}",
                    f"{table.name} to {near.name}",
                    table.parents[near.name],
                    table.name,
                )
                return table, link
            if table.name in near.parents:
                link = _Link(
                    f"{near.name} to {table.name}",
                    f"object {table.name}",
                    near.parents[table.name],
                    near.name,
                )
                return table, link
    names = [table.name for table in waiting]
    message = (
        f"{path}: no column links {' or '.join(names)} to {' or '.join(table.name for table in linked)} (such as "
        f"{linked[0].name}_Parent_{names[0]}), and rows are never joined by their order: name the tables that "
        f"make up a cell with --compartments {','.join(table.name for table in linked)}"
    )
    raise ProfileError(message)


def _attach(base: pl.DataFrame, table: Objects, link: _Link) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Add the row of a table to each cell, or the reason why there is none; and the rows that no cell reaches."""
    named = _named(table).drop("object")
    is_child = link.holder == table.name  # the table points to the cell, and not the cell to it
    times = named.group_by("image", link.right).agg(pl.len().alias("times"))
    one = named.unique(["image", link.right], keep="first", maintain_order=True)
    one = one.join(times, on=["image", link.right], how="left")
    pairs = base.join(
        one,
        left_on=["image", link.left],
        right_on=["image", link.right],
        how="left",
        coalesce=False,
        maintain_order="left",
        suffix=" of it",
    )
    pairs = pairs.drop("image of it", strict=False)
    row, number = f"row {table.name}", link.left
    if is_child:
        absent = pl.format("no row of {} has it as {}", pl.lit(table.name), pl.lit(link.column))
        twice = pl.format("{} rows of {} have it as {}", "times", pl.lit(table.name), pl.lit(link.column))
    else:
        nothing = pl.col(number).is_null() | (pl.col(number) == 0)
        absent = (
            pl.when(nothing)
            .then(pl.format("{} points to no object of {}", pl.lit(link.column), pl.lit(table.name)))
            .otherwise(
                pl.format(
                    "{} is {}, and {} has no such object in its image",
                    pl.lit(link.column),
                    number,
                    pl.lit(table.name),
                )
            )
        )
        twice = pl.format(
            "{} is {}, which stands {} times in {}", pl.lit(link.column), number, "times", pl.lit(table.name)
        )
    reason = pl.when(pl.col(row).is_null()).then(absent).when(pl.col("times") > 1).then(twice)
    pairs = pairs.with_columns(pl.coalesce("reason", reason).alias("reason")).drop("times")
    left = named.join(
        base.select("image", link.left),
        left_on=["image", link.right],
        right_on=["image", link.left],
        how="anti",
    )
    if is_child:
        pointer = pl.col(link.right)
        why = (
            pl.when(pointer.is_null() | (pointer == 0))
            .then(pl.format("{} points to no object", pl.lit(link.column)))
            .otherwise(
                pl.format(
                    "{} is {}, and there is no such object in its image", pl.lit(link.column), link.right
                )
            )
        )
    else:
        why = pl.format("no {} has it as {}", pl.lit(link.holder), pl.lit(link.column))
    cell = pl.format(
        "{} {}",
        pl.lit(table.name),
        pl.col(f"object {table.name}").cast(pl.String).fill_null("without number"),
    )
    return pairs, left.select("image", cell.alias("cell"), why.alias("reason"))


def _contradiction(linked: list[Objects], table: Objects, used: _Link) -> pl.Expr:
    """Find cells whose tables point to different objects of one compartment."""
    reason = pl.col("reason")
    pairs = [(near, table) for near in linked[:-1]] + [(table, near) for near in linked[:-1]]
    for holder, target in pairs:
        column = holder.parents.get(target.name)
        if column is None or column == used.column:
            continue
        pointer, real = pl.col(f"{holder.name} to {target.name}"), pl.col(f"object {target.name}")
        differs = pl.format("{} is {}, by {} it is {}", pl.lit(column), pointer, pl.lit(used.column), real)
        reason = pl.coalesce(reason, pl.when(pointer.is_not_null() & (pointer != real)).then(differs))
    return reason.alias("reason")
