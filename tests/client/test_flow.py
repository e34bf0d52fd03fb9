"""The order of the flow: each status before those that follow it, final ones at the end."""

from __future__ import annotations

import pytest

from outbox.client import flow


@pytest.mark.parametrize(
    ("initial", "changes", "final", "expected"),
    [
        ("Z", "ZY YX XA", "A", "ZYXA"),
        ("Z", "ZB ZA AB BC", "C", "ZABC"),  # both ways are before what they lead to
        ("M", "MB BM BC CA", "A", "MBCA"),  # a loop back decides nothing
        ("Z", "ZA QZ", "A", "ZQA"),  # nothing leads to Q
        ("A", "", "A", "A"),
        ("M", "MX MA XM AB", "X", "MABX"),  # what can't be: a change out of a final status
    ],
)
def test_the_order_of_the_flow(initial: str, changes: str, final: str, expected: str) -> None:
    pairs = [(change[0], change[1]) for change in changes.split()]
    statuses = {initial, *final, *(status for pair in pairs for status in pair)}
    assert "".join(flow.order(initial, pairs, {status: status in final for status in statuses})) == expected


def test_a_pipeline_of_any_length_has_an_order() -> None:
    numbers = [f"{n:05}" for n in range(5_000)]
    changes = list(zip(numbers[::-1], numbers[::-1][1:], strict=False))
    assert flow.order(numbers[-1], changes, dict.fromkeys(numbers, False)) == numbers[::-1]
