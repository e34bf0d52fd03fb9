"""That the interleavings of waits can fail: with one thing taken away from the database's functions, some schedule does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from interleave import Explore, ScheduleFailed
from test_interleavings_waits import (
    test_a_handlers_transaction_that_begins_a_wait_sees_the_signal_or_fails as signals_at_isolation,
)
from test_interleavings_waits import test_a_signal_meets_what_begins_or_ends_the_wait_for_it as signals
from test_interleavings_waits import test_f73_of_two_that_end_a_wait_exactly_one_wins as decisions
from test_interleavings_waits import test_the_last_children_at_once_move_the_parent_once as children

Conn = psycopg.Connection[Any]
BOTH = ("commit", "commit")


def mutate(conn: Conn, function: str, old: str, new: str) -> None:
    """Replace text in a function of this test's database."""
    row = conn.execute("SELECT pg_get_functiondef(%s::regproc)", (f"outbox.{function}",)).fetchone()
    assert row is not None
    assert old in row[0], f"{function} has no {old!r}"
    conn.execute(row[0].replace(old, new).encode())


@pytest.mark.parametrize(
    ("function", "old", "new", "race"),
    [
        pytest.param(
            "decide", "decide.entity_id FOR NO KEY UPDATE", "decide.entity_id",
            lambda conn, explore: decisions(conn, explore, BOTH), id="a decision without the workflow's lock",
        ),
        pytest.param(
            "waits_begin", "IF waiting IS NOT NULL", "IF false",
            lambda conn, explore: signals(conn, explore, "begin", BOTH), id="a wait that takes no signal which is there",
        ),
        pytest.param(
            "signal_take", "PERFORM outbox.signals_take(ARRAY[NEW.workflow_id]);", "",
            lambda conn, explore: signals(conn, explore, "begin", BOTH), id="a signal that moves nobody",
        ),
        pytest.param(
            "signal_receive", "UPDATE outbox.workflow_states AS w SET updated_at = w.updated_at WHERE w.id = NEW.workflow_id;", "",
            lambda conn, explore: signals_at_isolation(conn, explore, "repeatable read"), id="a signal that a snapshot does not see",
        ),
        pytest.param(
            "children_end", "WHERE w.id = parent.id FOR NO KEY UPDATE", "WHERE w.id = parent.id",
            lambda conn, explore: children(conn, explore, ("begin", "first_ends", "second_ends"), BOTH),
            id="children that don't lock their parent",
        ),
    ],
)  # fmt: skip
def test_a_broken_wait_is_found(
    conn: Conn, explore: Explore, function: str, old: str, new: str, race: Callable[[Conn, Explore], None]
) -> None:
    mutate(conn, function, old, new)
    with pytest.raises(ScheduleFailed):
        race(conn, explore)
