"""Results of tools: JSON that says what it is of, as long as a model can read, whatever is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbox import NotFound, documents
from outbox.mcp import results
from outbox.mcp.results import MOST, document, part, text

KEYS = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=60) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


@given(st.dictionaries(KEYS, JSON, max_size=5))
@settings(max_examples=100, deadline=None)
def test_what_fits_is_the_same_document_without_a_character_that_is_not_seen(value: dict[str, Any]) -> None:
    written = text(value)
    assert json.loads(written) == value
    assert written.isprintable()
    assert document(value) == written


WIDE = {f"key {n}": n for n in range(100_000)}
DEEP: dict[str, Any] = {"inner": "x"}
for _ in range(120):
    DEEP = {"inner": DEEP, "text": "y" * 1_000}


@pytest.mark.parametrize(
    "value",
    [
        {"text": "x" * 1_000_000},
        {"text": "\u202e" * 100_000},
        {"rows": [{"n": n, "text": "z" * 500} for n in range(3_000)]},
        {"rows": [["a"] * 1_000] * 1_000},
        WIDE,
        {"wide": WIDE, "small": "kept"},
        DEEP,
        {"k" * 50_000: 1, "small": "kept"},
        {"inner": {"k" * 5_000 + str(n): "x" * 5_000 for n in range(500)}, "small": "kept"},
        {"~/": {"a/b~c": "x" * 100_000}},
    ],
    ids=["string", "unseen", "rows", "matrix", "wide", "wide and small", "deep", "long key", "long keys", "odd keys"],
)
def test_what_is_large_is_cut_and_says_where(value: dict[str, Any]) -> None:
    written = document(value, "read on")
    assert len(written) < 8 * MOST, "an escape has six characters"
    found = json.loads(written)
    assert found["how_to_read_what_is_cut"] == "read on"
    assert found["cut"]
    assert len(json.dumps(found["cut"])) < 2 * MOST
    for cut in found["cut"]:
        assert len(cut["at"]) <= 1_000
        json.loads(part(value, cut["at"], 0))
    if "small" in value:
        assert found["small"] == "kept"


def test_a_part_is_read_on_to_its_end() -> None:
    value = {"~/": {"a/b~c": "".join(map(str, range(20_000)))}, "rows": list(range(10_000))}
    for at, whole in (("/~0~1/a~1b~0c", value["~/"]["a/b~c"]), ("/rows", text(value["rows"])), ("", text(value))):  # type: ignore[call-overload]
        read, offset = "", 0
        while offset is not None:
            piece = json.loads(part(value, at, offset))
            read, offset = read + piece["text"], piece["next_offset"]
        assert read == whole


def test_a_part_behind_the_end_is_empty_and_one_that_is_nowhere_is_refused() -> None:
    assert json.loads(part({"a": "xyz"}, "/a", 9))["text"] == ""
    assert json.loads(part({"a": [1, 2]}, "/a", 10**12)) == {
        "at": "/a", "is": "JSON", "offset": 10**12, "text": "", "next_offset": None,
    }  # fmt: skip
    for at in ("/b", "/a/2", "/a/-1", "/a/x", "/a/0/0", "a b", "/a/\u0661", "/a/" + "9" * 400):
        with pytest.raises(NotFound):
            part({"a": [1, 2]}, at, 0)


def test_numbers_and_texts_of_stored_documents_are_kept_exactly() -> None:
    stored = documents.read('{"price": 1.10, "large": 1e400, "n": 123456789012345678901234567890}')
    assert text(stored) == '{"price": 1.10, "large": 1e400, "n": 123456789012345678901234567890}'


def test_of_a_large_document_no_more_is_written_than_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    parts = results._parts

    def counted(value: Any) -> Iterator[str]:
        nonlocal written
        for each in parts(value):
            written += 1
            yield each

    monkeypatch.setattr(results, "_parts", counted)
    value = {"rows": [{"n": n, "text": "some words"} for n in range(100_000)]}
    document(value)
    part(value, "/rows", 0)
    assert 0 < written < 50_000, "of half a million"
