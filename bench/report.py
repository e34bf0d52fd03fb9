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
    table = Table(title=f"{title}  ({', '.join(f'{name} {value:,}' for name, value in settings.items())})")
    table.add_column("")
    for name in ("median", "min", "max"):
        table.add_column(name, justify="right")
    for name, values in figures.items():
        table.add_row(name, *(_number(values[part]) for part in ("median", "min", "max")))
    console = Console(width=110)
    console.print(table)
    postgres = where["postgres"]
    console.print(
        f"{where['cores']} cores ({where['cpu']}) shared by all, Postgres {postgres['server_version']}, "
        f"fsync {postgres['fsync']}, shared_buffers {postgres['shared_buffers']}, Python {where['python']}"
    )
    if json_file:
        document = {"bench": title, "settings": settings, "figures": figures, "machine": where}
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
