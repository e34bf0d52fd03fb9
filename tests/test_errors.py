"""The tree of errors: the picture of it, its classes, what is public, and the table in the docs say the same."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
import pytest

import kit.django_project  # noqa: F401 - before the models of outbox.django are imported
import outbox
from outbox import IllegalChange, NotDeployed, NotFound, NoWorkflow, OutboxError, Refused, UnknownPipeline, errors

INTERNAL = {
    "AnotherTransaction": "the engine catches it",
    "NotHeld": "the engine catches it",
    "TooNewData": "the engine catches it",
    "TakenOver": "the relay catches it",
    "Unreadable": "the consumer parks the delivery",
    "BrokenLine": "the command line shows it",
}
PAGE = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
ROWS = [
    (state, name, set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", data))))
    for state, name, data in re.findall(r"^\| `(OB\d{3})` \| `(\w+)` \|.*\|.*\| (.*) \|$", PAGE, re.MULTILINE)
]


def classes(root: type[OutboxError] = OutboxError) -> Iterator[type[OutboxError]]:
    for found in root.__subclasses__():
        yield found
        yield from classes(found)


REFUSALS = sorted(set(classes(Refused)), key=lambda refusal: str(refusal.sqlstate))


def pictured() -> list[tuple[str, str, str]]:
    """Return the lines of the tree as (class, parent, meaning)."""
    assert errors.__doc__ is not None
    path, found = ["OutboxError"], []
    for line in re.findall(r"^[│ ]*[├└].*$", errors.__doc__, re.MULTILINE):
        marks, name, meaning = re.fullmatch(r"([│├└─ ]+)(\w+)\s+(.+)", line).groups()  # type: ignore[union-attr]
        depth = len(marks) // 4
        path[depth:] = [name]
        found.append((name, path[depth - 1], meaning))
    return found


def test_the_picture_of_the_tree_has_each_class_under_its_parent() -> None:
    for module in pkgutil.walk_packages(outbox.__path__, "outbox."):
        if module.name != "outbox.__main__":
            importlib.import_module(module.name)
    found = set(classes())
    assert {error.__module__ for error in found} == {"outbox.errors"}, "all of them are in errors.py"
    assert sorted((name, parent) for name, parent, _ in pictured()) == sorted(
        (error.__name__, error.__bases__[0].__name__) for error in found
    )


def test_the_picture_says_which_sqlstate_and_which_other_parent_a_class_has() -> None:
    said = {name: meaning for name, _, meaning in pictured()}
    for refusal in REFUSALS:
        assert said[refusal.__name__].startswith(f"{refusal.sqlstate}: ")
        for other in refusal.__bases__[1:]:
            assert f"also a {other.__name__}" in said[refusal.__name__]


def test_each_error_that_users_may_see_is_public() -> None:
    names = {error.__name__ for error in classes()} | {"OutboxError"}
    assert names - set(outbox.__all__) == set(INTERNAL)


def test_each_sqlstate_of_the_sql_has_a_class_and_a_line_in_the_docs() -> None:
    sql = Path(str(files("outbox.sql")))
    raised = {
        state for file in sql.rglob("*.sql") for state in re.findall(r"'(OB\d{3})'", file.read_text(encoding="utf-8"))
    }
    assert [state for state, _, _ in ROWS] == sorted(raised)
    assert [refusal.sqlstate for refusal in REFUSALS] == sorted(raised)


def test_the_docs_say_which_class_and_which_data_a_sqlstate_has() -> None:
    known = [(refusal.sqlstate, refusal.__name__, set(inspect.get_annotations(refusal))) for refusal in REFUSALS]
    assert known == ROWS


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.__name__)
def test_a_refusal_is_an_error_of_psycopg_and_survives_pickle(refusal: type[Refused]) -> None:
    data: dict[str, Any] = {name: f"some {name}" for name in inspect.get_annotations(refusal)}
    for error in (made := refusal("it can't be", "do that", **data), pickle.loads(pickle.dumps(made))):
        assert isinstance(error, psycopg.DatabaseError)
        assert str(error) == "it can't be (do that)"
        assert (error.sqlstate, error.hint) == (refusal.sqlstate, "do that")
        diag = error.diag
        assert (diag.sqlstate, diag.message_primary, diag.message_hint) == (refusal.sqlstate, "it can't be", "do that")
        assert {name: getattr(error, name) for name in data} == data
        assert (diag.message_detail, diag.context) == (None, None)


def test_data_that_is_not_known_is_none() -> None:
    error = IllegalChange("illegal change")
    assert (error.pipeline, error.entity_id, error.from_status, error.to_status, error.hint) == (None,) * 5
    assert str(error) == "illegal change"


def test_a_missing_pipeline_and_a_missing_workflow_are_caught_by_their_older_names() -> None:
    assert issubclass(UnknownPipeline, NotDeployed)
    assert issubclass(NoWorkflow, NotFound)
    assert issubclass(NoWorkflow, LookupError)
