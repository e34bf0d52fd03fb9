"""A pipeline is drawn in layers, whatever its size and its loops."""

from __future__ import annotations

from itertools import pairwise

from outbox.ui import graph

FINAL = {"A": False, "B": False, "C": False, "D": True, "LOST": False}
CHANGES = [["A", "B"], ["A", "C"], ["B", "D"], ["C", "D"], ["C", "A"], ["B", "B"]]


def test_a_status_stands_after_all_that_lead_to_it() -> None:
    found = graph.layers("A", CHANGES, FINAL)
    assert [sorted(column) for column in found] == [["A", "LOST"], ["B", "C"], ["D"]]


def test_every_legal_change_is_an_arrow_and_one_that_leads_back_is_marked() -> None:
    drawing = graph.draw("A", CHANGES, FINAL)
    assert {(arrow.source.name, arrow.target.name): arrow.back for arrow in drawing.arrows} == {
        ("A", "B"): False, ("A", "C"): False, ("B", "D"): False, ("C", "D"): False, ("C", "A"): True,
    }  # fmt: skip
    assert all(0 <= node.x <= drawing.width - graph.WIDTH and 0 <= node.y <= drawing.height for node in drawing.nodes)
    assert len({(node.x, node.y) for node in drawing.nodes}) == 5


def test_an_arrow_that_skips_a_layer_is_not_hidden_behind_the_box_between() -> None:
    drawing = graph.draw("A", [["A", "B"], ["B", "D"], ["A", "D"]], {"A": False, "B": False, "D": True})
    assert [(arrow.source.name, arrow.target.name) for arrow in drawing.arrows if arrow.over] == [("A", "D")]
    (over,) = (arrow.path for arrow in drawing.arrows if arrow.over)
    top = min(node.y for node in drawing.nodes)
    assert over.startswith(f"M{graph.EDGE + graph.WIDTH // 2} {top} ")
    assert top >= graph.GAP_Y, "there is room above the boxes"


def test_a_thousand_statuses_in_a_row_or_in_a_crowd_are_drawn() -> None:
    names = [f"S{n}" for n in range(1000)]
    row = [[a, b] for a, b in pairwise(names)]
    assert len(graph.layers("S0", row, dict.fromkeys(names, False))) == 1000
    crowd = [[a, b] for a in names[:40] for b in names[:40] if a != b]
    assert len(graph.draw("S0", crowd, dict.fromkeys(names, False)).nodes) == 1000
    circle = [*row, ["S999", "S0"]]
    assert sum(arrow.back for arrow in graph.draw("S0", circle, dict.fromkeys(names, False)).arrows) == 1


def test_a_picture_of_counts_says_their_sum_in_words() -> None:
    assert "3,000 in the last hour" in graph.sparkline([0, 1000, 2000])
    assert "<rect" not in graph.sparkline([0] * 60)
