"""Tests the scheduler of interleavings: it finds what is broken, sees who waits, and takes deadlocks as outcomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from kit.interleave import REPLAY, Actor, Scene, ScheduleFailed, Scheduler

Conn = psycopg.Connection[Any]
ADD = "UPDATE pairs SET n = n + 1 WHERE id = %s"


@pytest.fixture
def admin(admin_dsn: str) -> Iterator[Conn]:
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("CREATE TABLE pairs (id integer PRIMARY KEY, n integer)")
        yield admin


@pytest.fixture
def explore(admin: Conn, admin_dsn: str) -> Iterator[Callable[..., Any]]:
    admin.execute(f"ALTER DATABASE {admin.info.dbname} SET deadlock_timeout = '20ms'")
    with Scheduler(admin_dsn) as scheduler:

        def explore(*actors: Any, **scene: Any) -> Any:
            def make() -> Scene:
                admin.execute("INSERT INTO pairs VALUES (1, 0), (2, 0) ON CONFLICT (id) DO UPDATE SET n = 0")
                return Scene(dict(zip("ab", actors, strict=True)), **{"check": lambda outcomes: None, **scene})

            return scheduler.explore(make)

        yield explore


def add(*ids: int) -> Callable[[Conn], None]:
    """Adds one to each of these rows, in one transaction."""

    def act(conn: Conn) -> None:
        with conn.transaction():
            for id_ in ids:
                conn.execute(ADD, [id_])

    return act


def sums(admin: Conn, *expected: int) -> Callable[[Any], None]:
    def check(outcomes: Any) -> None:
        assert [row[0] for row in admin.execute("SELECT n FROM pairs ORDER BY id")] == [*expected]

    return check


def test_every_order_of_steps_that_do_not_meet_is_tried_once(admin: Conn, explore: Callable[..., Any]) -> None:
    played = explore(add(1), add(2), check=sums(admin, 1, 1))
    assert [each.schedule for each in played] == ["a a b b", "a b a b", "a b b a", "b a a b", "b a b a", "b b a a"]
    assert not any(each.waited for each in played)


def test_who_waits_for_a_lock_is_parked_until_it_is_free(admin: Conn, explore: Callable[..., Any]) -> None:
    played = explore(add(1), add(1), check=sums(admin, 2, 0))
    assert [(each.schedule, *each.waited) for each in played] == [
        ("a a b b",),
        ("a b a b", "b"),  # b's statement ends when a has committed
        ("b a b a", "a"),
        ("b b a a",),
    ]


def test_an_actor_that_waits_for_a_waiting_one_is_parked_too(admin: Conn, explore: Callable[..., Any]) -> None:
    async def add_both(conn: psycopg.AsyncConnection[Any]) -> None:
        async with conn.transaction():
            await conn.execute(ADD, [1])
            await conn.execute(ADD, [2])

    assert len(explore(add(1, 2), add_both, check=sums(admin, 2, 2))) == 6


def test_a_deadlock_is_an_outcome_where_it_may_be(admin: Conn, explore: Callable[..., Any]) -> None:
    crosswise = add(1, 2), add(2, 1)
    with pytest.raises(ScheduleFailed, match="DeadlockDetected"):
        explore(*crosswise)
    played = explore(*crosswise, may_raise=(psycopg.errors.DeadlockDetected,))
    crossed = [each for each in played if any(each.outcomes.values())]
    assert crossed
    for each in crossed:
        assert set(each.schedule.split()[:2]) == {"a", "b"}, "each has locked its first row"
        assert each.waited
        assert sum(outcome is not None for outcome in each.outcomes.values()) == 1, "one goes on"


def test_a_serialization_failure_is_an_outcome_where_it_may_be(explore: Callable[..., Any]) -> None:
    def act(conn: Conn) -> None:
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        add(1)(conn)

    failed = psycopg.errors.SerializationFailure
    played = explore(act, act, may_raise=(failed,))
    assert [each.schedule for each in played if any(each.outcomes.values())] == ["a b a b", "b a b a"]


def test_a_lost_update_is_found_and_its_schedule_repeats_it(
    admin: Conn, explore: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_then_write(conn: Conn) -> None:
        (n,) = conn.execute("SELECT n FROM pairs WHERE id = 1").fetchone() or (0,)
        conn.execute("UPDATE pairs SET n = %s WHERE id = 1", [n + 1])

    with pytest.raises(ScheduleFailed) as failed:
        explore(read_then_write, read_then_write, check=sums(admin, 2, 0))
    *_, line = str(failed.value).splitlines()
    assert line.startswith(f"{REPLAY}='a b a b' .venv/bin/pytest 'tests/kit/test_interleave.py::test_a_lost_update")
    monkeypatch.setenv(REPLAY, re.findall("'(.*?)'", line)[0])
    with pytest.raises(ScheduleFailed, match="a b a b"):
        explore(read_then_write, read_then_write, check=sums(admin, 2, 0))
    monkeypatch.setenv(REPLAY, "a a b b")
    assert [each.schedule for each in explore(read_then_write, read_then_write)] == ["a a b b"]


def test_only_the_chosen_statements_are_steps_and_what_is_the_sessions_own_never_is(
    explore: Callable[..., Any],
) -> None:
    def act(conn: Conn) -> None:
        conn.execute("SET work_mem = '1MB'")
        add(1)(conn)
        add(1)(conn)

    played = explore(Actor(act, steps="COMMIT"), add(2))
    assert {each.schedule.count("a") for each in played} == {2}


def test_a_wait_has_no_end_in_time_but_for_a_hasty_one(admin: Conn, explore: Callable[..., Any]) -> None:
    def act(conn: Conn) -> None:
        with conn.transaction():
            conn.execute("SET LOCAL lock_timeout = '10ms'")
            conn.execute(ADD, [1])

    assert len(explore(act, add(1), check=sums(admin, 2, 0))) == 4
    given_up = psycopg.errors.LockNotAvailable
    played = explore(Actor(act, hasty=True), add(1), may_raise=(given_up,))
    assert [each.schedule for each in played if each.outcomes["a"]] == ["b a a b", "b a b a"]


def test_an_actor_that_fails_ends_everybody(explore: Callable[..., Any], admin: Conn) -> None:
    def broken(conn: Conn) -> None:
        conn.execute(ADD, [1])
        raise ValueError("broken")

    with pytest.raises(ScheduleFailed, match="ValueError: broken"):
        explore(add(1, 2), broken)
    assert len(explore(add(1), add(2))) == 6, "and their connections can be used again"
