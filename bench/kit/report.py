"""Reports figures: as a table for people, and as a JSON document for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from . import history, picture
from .figures import measured_on, number

PARTS = ("median", "min", "max")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def svg_option(command: Decorated) -> Decorated:
    """Adds --svg, which is refused before anything is measured if no picture can be drawn."""

    def check(_: click.Context, __: click.Parameter, file: Path | None) -> Path | None:
        if file:
            picture.require()
        return file

    kind = click.Path(path_type=Path)
    return click.option("--svg", "svg_file", type=kind, callback=check, help="Draw them in this file.")(command)


def progress(text: str) -> None:
    click.echo(f"bench: {text}", err=True)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns the median, the lowest and the highest value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def show(
    title: str,
    settings: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, float]],
    where: Mapping[str, Any],
    json_file: Path | None,
    svg_file: Path | None = None,
) -> None:
    """Prints the figures with what they were measured on, and writes and draws them if files are given."""
    table = _table(title, settings)
    table.add_column("")
    for part in PARTS:
        table.add_column(part, justify="right")
    for name, values in figures.items():
        table.add_row(name, *(number(values[part]) for part in PARTS))
    _print(table, where)
    _write({"bench": title, "settings": settings, "figures": figures, "machine": where}, json_file, svg_file)


def show_series(
    title: str,
    settings: Mapping[str, Any],
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    where: Mapping[str, Any],
    json_file: Path | None,
    svg_file: Path | None = None,
    figures: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Prints the series of each subject: a line for each slice of time. Not every subject has every column.

    `figures` summarises the series.
    """
    table = _table(title, settings)
    columns = list(dict.fromkeys(column for lines in series.values() for line in lines for column in line))
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for name, lines in series.items():
        for line in lines:
            cells = [line.get(column, "") for column in columns]
            table.add_row(name, *(cell if isinstance(cell, str) else number(cell) for cell in cells))
        table.add_section()
    _print(table, where)
    for name, values in (figures or {}).items():
        click.echo(f"{name}: {number(values['median'])}")
    document = {"bench": title, "settings": settings, "series": series, "figures": figures or {}, "machine": where}
    _write(document, json_file, svg_file)


def summary(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Prints the figures of several benches in one table."""
    table = Table(title="all benches")
    table.add_column("bench")
    table.add_column("")
    for part in PARTS:
        table.add_column(part, justify="right")
    for bench, found in figures.items():
        for name, values in found.items():
            table.add_row(bench, name, *(number(values[part]) for part in PARTS))
        table.add_section()
    Console(width=110).print(table)


def _table(title: str, settings: Mapping[str, Any]) -> Table:
    return Table(title=f"{title}  ({', '.join(f'{name} {value:,}' for name, value in settings.items())})")


def _print(table: Table, where: Mapping[str, Any]) -> None:
    console = Console(width=110)
    console.print(table)
    console.print(measured_on(where))


def _write(document: Mapping[str, Any], json_file: Path | None, svg_file: Path | None) -> None:
    if json_file:
        document = {**document, "run": history.stamp()}
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if svg_file:
        picture.draw(document, svg_file)
