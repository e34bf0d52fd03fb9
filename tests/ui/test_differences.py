"""Two versions of a document are compared by field: each value as it is stored, and nothing that is hidden."""

from __future__ import annotations

from typing import Any

import pytest

from outbox import documents
from outbox.ui.differences import LONGEST, MOST, differences
from outbox.ui.stored import HIDDEN, Hiding


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ('{"a": 1}', '{"a": 1}', []),
        ('{"a": 1, "b": 2}', '{"a": 3, "c": null}', [("a", "1", "3"), ("b", "2", None), ("c", None, "null")]),
        ('{"a": 1.10}', '{"a": 1.1}', [("a", "1.10", "1.1")]),
        ('{"a": 1}', '{"a": "1"}', [("a", "1", '"1"')]),
        ('{"a": true}', '{"a": 1}', [("a", "true", "1")]),
        ('{"a": [1, {"b": 2}]}', '{"a": [1, {"b": 3}, 4]}', [("a[1].b", "2", "3"), ("a[2]", None, "4")]),
        ("[1]", '{"a": 1}', [("", "[\n  1\n]", '{\n  "a": 1\n}')]),
        ('{"<b>": 12345678901234567890}', "{}", [("<b>", "12345678901234567890", None)]),
    ],
)
def test_each_field_that_differs_is_told(before: str, after: str, wanted: list[Any]) -> None:
    assert differences(documents.read(before), documents.read(after)) == (wanted, False)


def test_what_is_hidden_is_told_only_to_have_changed() -> None:
    hiding = Hiding({"pin", "card.number"})
    before = {"pin": 1234, "card": {"number": 4111, "name": "a"}, "list": [{"pin": 5}], "deep": {}}
    after = {"pin": 9876, "card": {"number": 4222, "name": "b"}, "list": [{"pin": 6}], "deep": {"x": {"pin": 7}}}
    found, _ = differences(before, after, hiding)
    assert not [number for number in ("1234", "9876", "4111", "4222", " 5", " 6", " 7") if number in str(found)]
    assert [each.path for each in found] == ["pin", "card.number", "card.name", "list[0].pin", "deep.x"]
    assert found[0].after == HIDDEN


def test_of_what_is_hidden_nothing_within_is_told() -> None:
    before, after = (
        {"card": {"number": n}, "list": [{"card": {"number": n}}], "pins": [{"of": n}]} for n in (4111, 4222)
    )
    for hide in ({"card", "pins"}, lambda path: path in ("card", "list.card", "pins")):
        found, _ = differences(before, after, Hiding(hide))
        assert not [number for number in ("4111", "4222") if number in str(found)]
        assert [each.path for each in found] == ["card", "list[0].card", "pins"]


def test_what_is_long_or_much_ends() -> None:
    found, more = differences({}, {str(n): "x" * 10_000 for n in range(1000)})
    assert (len(found), more) == (MOST, True)
    assert len(found[0].after or "") <= LONGEST + 1
