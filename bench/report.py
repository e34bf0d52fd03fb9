"""How figures are shown: a table for people, a JSON document for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table


def progress(text: str) -> None:
    click.echo(f"bench: {text}", err=True)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(
    title: str,
    settings: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, float]],
    where: Mapping[str, Any],
    json_file: Path | None,
) -> None:
    """Print the figures with what they were measured on, and write them to a file if there is one."""
    table = _table(title, settings)
    table.add_column("")
    for name in ("median", "min", "max"):
        table.add_column(name, justify="right")
    for name, values in figures.items():
        table.add_row(name, *(_number(values[part]) for part in ("median", "min", "max")))
    _print(table, where)
    _write(json_file, {"bench": title, "settings": settings, "figures": figures, "machine": where})


def show_series(
    title: str,
    settings: Mapping[str, Any],
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    where: Mapping[str, Any],
    json_file: Path | None,
    figures: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Print what each subject showed over time: a line for each slice of it. Not every subject has every column.

    `figures` is what the series come to.
    """
    table = _table(title, settings)
    columns = list(dict.fromkeys(column for lines in series.values() for line in lines for column in line))
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for name, lines in series.items():
        for line in lines:
            cells = [line.get(column, "") for column in columns]
            table.add_row(name, *(cell if isinstance(cell, str) else _number(cell) for cell in cells))
        table.add_section()
    _print(table, where)
    for name, values in (figures or {}).items():
        click.echo(f"{name}: {_number(values['median'])}")
    document = {"bench": title, "settings": settings, "series": series, "figures": figures or {}, "machine": where}
    _write(json_file, document)


def _table(title: str, settings: Mapping[str, Any]) -> Table:
    return Table(title=f"{title}  ({', '.join(f'{name} {value:,}' for name, value in settings.items())})")


def _print(table: Table, where: Mapping[str, Any]) -> None:
    console = Console(width=110)
    console.print(table)
    postgres = where["postgres"]
    console.print(
        f"{where['cores']} cores ({where['cpu']}) shared by all, Postgres {postgres['server_version']}, "
        f"fsync {postgres['fsync']}, shared_buffers {postgres['shared_buffers']}, Python {where['python']}"
    )


def _write(json_file: Path | None, document: Mapping[str, Any]) -> None:
    if json_file:
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or isinstance(value, int) else f"{value:.2f}"
