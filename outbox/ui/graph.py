"""Draws pictures on the server, as SVG without styles: a pipeline's statuses in layers, and counts by minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ..client import flow

WIDTH, HEIGHT, GAP_X, GAP_Y, EDGE = 170, 46, 70, 22, 12
"""Pixels of a status, between statuses, and around the picture."""

LONGEST = 22
"""Characters of a status that fit into its box. All of them are in its title."""


@dataclass(frozen=True, slots=True)
class Node:
    """A status, and where the left upper corner of its box is."""

    name: str
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Arrow:
    """A legal change. One that leads `back` runs below the boxes, and one that leads `over` others above them."""

    source: Node
    target: Node
    back: bool

    @property
    def over(self) -> bool:
        """Whether a straight line to the target might be hidden behind other boxes."""
        return self.source.y == self.target.y and self.target.x - self.source.x > WIDTH + GAP_X

    @property
    def path(self) -> str:
        """The line, as SVG has it."""
        a, b = self.source, self.target
        if not (self.back or self.over):
            x, y, u, v = a.x + WIDTH, a.y + HEIGHT // 2, b.x - 4, b.y + HEIGHT // 2
            bend = max(GAP_X // 2, (u - x) // 2)
            return f"M{x} {y} C{x + bend} {y} {u - bend} {v} {u} {v}"
        x, u = a.x + WIDTH // 2, b.x + WIDTH // 2
        if self.over:
            return f"M{x} {a.y} C{x} {a.y - GAP_Y} {u} {a.y - GAP_Y} {u} {b.y - 4}"
        y, v = a.y + HEIGHT, b.y + HEIGHT + 4
        low = max(y, v) + GAP_Y
        return f"M{x} {y} C{x} {low} {u} {low} {u} {v}"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A pipeline as a drawing of this size."""

    nodes: list[Node]
    arrows: list[Arrow]
    width: int
    height: int


def layers(initial: str, changes: Sequence[Sequence[str]], final: Mapping[str, bool]) -> list[list[str]]:
    """Returns the statuses in layers: each after those that lead to it, but for changes that lead back."""
    order = flow.order(initial, [(source, target) for source, target in changes], final)
    place = {status: n for n, status in enumerate(order)}
    before: dict[str, list[str]] = {}
    for source, target in changes:
        if place[source] < place[target]:
            before.setdefault(target, []).append(source)
    layer: dict[str, int] = {}
    found: list[list[str]] = []
    for status in order:
        layer[status] = 1 + max((layer[each] for each in before.get(status, ())), default=-1)
        while len(found) <= layer[status]:
            found.append([])
        found[layer[status]].append(status)
    height: dict[str, float] = {}
    for column in found:  # a status stands as high as those that lead to it, so few lines cross
        middle = {s: [height[each] for each in before.get(s, ())] for s in column}
        column.sort(key=lambda s: (sum(middle[s]) / len(middle[s]) if middle[s] else 0.0, place[s]))
        height.update((status, n) for n, status in enumerate(column))
    return found


def draw(initial: str, changes: Sequence[Sequence[str]], final: Mapping[str, bool]) -> Drawing:
    """Returns the drawing of a pipeline."""
    columns = layers(initial, changes, final)
    nodes = {
        status: Node(status, EDGE + x * (WIDTH + GAP_X), EDGE + GAP_Y + y * (HEIGHT + GAP_Y))
        for x, column in enumerate(columns)
        for y, status in enumerate(column)
    }
    arrows = [Arrow(nodes[a], nodes[b], nodes[a].x >= nodes[b].x) for a, b in changes if a != b]
    deepest = max((len(column) for column in columns), default=0)
    return Drawing(
        list(nodes.values()), arrows, 2 * EDGE + len(columns) * (WIDTH + GAP_X) - GAP_X,
        2 * EDGE + deepest * (HEIGHT + GAP_Y) + 2 * GAP_Y,
    )  # fmt: skip


def sparkline(counts: Sequence[int], width: int = 120, height: int = 20) -> Markup:
    """Returns a small picture of counts, with their sum in words for those who don't see it."""
    most, step = max([*counts, 1]), width / max(1, len(counts))
    bars: list[Any] = []
    for n, count in enumerate(counts):
        if count:
            tall = max(1.0, height * count / most)
            bars.append(
                Markup('<rect x="{}" y="{}" width="{}" height="{}"/>').format(
                    f"{n * step:.1f}", f"{height - tall:.1f}", f"{max(1.0, step - 0.4):.1f}", f"{tall:.1f}"
                )
            )
    said = f"{sum(counts):,} in the last hour"
    return Markup(
        '<svg class="spark" role="img" viewBox="0 0 {} {}" width="{}" height="{}"><title>{}</title>{}</svg>'
    ).format(width, height, width, height, said, Markup("").join(bars))
