"""Draws the figures of a bench: lines for series over time, otherwise bars with whiskers from lowest to highest value.

`python -m bench.kit.picture FIGURES.json PICTURE.svg` draws only what is in the JSON document that every bench writes.
The same document gives the same picture, byte for byte.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from .figures import measured_on, number

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that nearly everyone can distinguish (Okabe and Ito)."""

STYLE = {
    "svg.hashsalt": "outbox",  # ids in the file are random without it
    "svg.fonttype": "none",  # text stays text: small, searchable files
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # repeated with each text: the default list is a fifth of a file
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
}
WIDTH = 9.0
"""The width of a picture, in inches."""

LINE = 150
"""Characters in a line of the footer."""

OF = re.compile(r"(?<! ): ")
"""Separates the subject of a figure from its name. The colon of a ratio has a space before it, and doesn't match."""

QUALIFIER = re.compile(r"^(p[\d.]+|peak|CPU) ")


def require() -> None:
    """Raises, with what to install, if no picture can be drawn. Called before minutes are spent on measuring."""
    if find_spec("matplotlib") is None:
        raise click.ClickException("a picture needs matplotlib. Run: pip install 'outbox-engine[bench]'")


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Draws a bench's document as SVG."""
    require()
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = _lines(document["series"]) if document.get("series") else _bars(document["figures"])
        settings = ", ".join(f"{name} {number(value)}" for name, value in document["settings"].items())
        footer = "\n".join(textwrap.wrap(settings, LINE) + textwrap.wrap(measured_on(document["machine"]), LINE))
        figure.suptitle(document["bench"], fontsize=11, fontweight="bold")
        figure.supxlabel(footer, fontsize=7, color="#666666")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _lines(series: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Returns a figure with a panel for each column, with a line for each subject that has the column."""
    from matplotlib.figure import Figure

    every = [line for lines in series.values() for line in lines]
    columns = list(dict.fromkeys(name for line in every for name, value in line.items() if not isinstance(value, str)))
    columns.remove("second")
    rows = -(-len(columns) // 2)
    figure = Figure(figsize=(WIDTH, 0.9 + 2 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).flatten()
    for column, panel in zip(columns, panels, strict=False):
        for colour, (name, lines) in zip(COLOURS, series.items(), strict=False):
            found = [(line["second"], line[column]) for line in lines if column in line]
            if found:
                panel.plot(*zip(*found, strict=True), color=colour, label=name, marker=".", markersize=4)
        for first, last in _held(next(iter(series.values()))):
            panel.axvspan(first, last, color="#f2ead3", zorder=0, label="horizon held")
        panel.set_ylabel(column)
        panel.set_xlabel("seconds")
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.yaxis.set_major_formatter(_tick)
    for panel in panels[len(columns) :]:
        panel.set_axis_off()
    panels[0].legend(loc="best", fontsize=8)
    return figure


def _tick(value: float, _: int) -> str:
    return f"{value:,.6g}" if abs(value) < 1e5 else f"{value:,.0f}"


def _held(lines: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Returns the spans in which the horizon was held. A line covers the time since the line before it."""
    seconds = [0, *(line["second"] for line in lines)]
    held = [number for number, line in enumerate(lines) if line.get("horizon")]
    return [(seconds[held[0]], seconds[held[-1] + 1])] if held else []


def _bars(figures: Mapping[str, Mapping[str, float]]) -> Any:
    """Returns a figure with a panel for each subject and unit, with a bar for each of its figures."""
    from matplotlib.figure import Figure

    groups: dict[tuple[str, str], dict[str, Mapping[str, float]]] = {}
    for name, values in figures.items():
        of, label, unit = _parts(name)
        groups.setdefault((of, unit), {})[label] = values
    heights = [len(bars) + 2.2 for bars in groups.values()]
    figure = Figure(figsize=(WIDTH, 0.8 + 0.24 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False).flatten()
    for ((of, unit), bars), panel in zip(groups.items(), panels, strict=True):
        medians = [values["median"] for values in bars.values()]
        below = [values["median"] - values["min"] for values in bars.values()]
        above = [values["max"] - values["median"] for values in bars.values()]
        panel.barh(list(bars), medians, xerr=(below, above), color=COLOURS[0], alpha=0.75, height=0.7, capsize=2)
        for place, values in enumerate(bars.values()):
            panel.annotate(
                number(values["median"]), (values["max"], place), (6, 0), textcoords="offset points", va="center"
            )
        panel.margins(x=0.12)
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
        panel.set_xlabel(unit)
        panel.xaxis.set_major_formatter(_tick)
        panel.set_title(of, loc="left", fontsize=9, fontweight="bold")
    return figure


def _parts(name: str) -> tuple[str, str, str]:
    """Returns the subject of a figure, its name among the figures of that subject, and its unit."""
    *of_what, rest = OF.split(name, maxsplit=1)
    of = "".join(of_what)
    if " : " in rest:
        return of, rest, "ratio"
    label, comma, unit = rest.rpartition(", ")
    if not comma:
        return of, rest, "number"
    if found := QUALIFIER.match(unit):
        return of, f"{label}, {found[1]}", unit[found.end() :]
    return of, label, unit


@click.command()
@click.argument("json_file", metavar="FIGURES.json", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("svg_file", metavar="PICTURE.svg", type=click.Path(dir_okay=False, path_type=Path))
def main(json_file: Path, svg_file: Path) -> None:
    """Draw the document that a bench has written with --json."""
    draw(json.loads(json_file.read_text(encoding="utf-8")), svg_file)


if __name__ == "__main__":
    main()
