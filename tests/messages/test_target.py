"""What every target has: whether it may send, and what keeps messages from going out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit.commands import Outbox
from kit.pipelines import value
from outbox.messages.target import LEASE, Lease, Outgoing, Parked, Target


class Nowhere(Target):
    async def deliver(self, messages: Sequence[Outgoing], stopped_keys: Mapping[str, bool]) -> Parked:
        return {}

    async def close(self) -> None: ...


@pytest.mark.parametrize(("ago", "held"), [(0, True), (LEASE / 2 - 1, True), (LEASE / 2, False), (LEASE, False)])
def test_a_lease_is_held_for_half_its_time_after_the_name_was_confirmed(ago: float, held: bool) -> None:
    lease = Lease()
    lease.confirm(time.monotonic() - ago)
    assert lease.is_held() == held


def test_a_lease_that_was_never_confirmed_is_not_held() -> None:
    assert not Lease().is_held()


def test_a_targets_trouble_is_logged_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "outbox.relay")
    target = Nowhere("nowhere")
    for trouble in (None, "the broker\nis away", "the broker\nis away", None, None):
        target.trouble.set(trouble)
    assert [record.getMessage() for record in caplog.records] == [
        r"the broker\nis away; messages wait in the log",
        "the target accepts messages again",
    ]


def test_a_target_of_a_users_own_needs_no_more_than_its_class(
    outbox: Outbox, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    for topic, key, payload in (("t", "k", '{"n": 1}'), ("bad", None, "2"), ("t", None, None)):
        conn.execute("INSERT INTO outbox.messages (topic, key, payload) VALUES (%s, %s, %s)", (topic, key, payload))
    env = {"LINES": str(tmp_path / "lines")}
    for _ in range(2):
        outbox("relay", "--target", "apps.target:Lines", "--drain", env=env)
    first, second = (json.loads(line) for line in (tmp_path / "lines").read_text().splitlines())
    assert (first["type"], first["subject"], first["data"]) == ("t", "k", {"n": 1})
    assert ("subject" in second, second["data"]) == (False, None)
    assert first["id"] == value(conn, "SELECT message_id::text FROM outbox.messages WHERE key = 'k'")
    assert value(conn, "SELECT string_agg(reason, ',') FROM outbox.parked_messages") == "it is bad"
    assert value(conn, "SELECT target FROM outbox.relays") == "lines of a file"


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("apps.target:number", "of type int: it must be a Target, or make one"),
        ("apps.target", "a module without a Target"),
        ("apps.target:nothing", "apps.target has no 'nothing'"),
        ("apps.nowhere:Lines", "there is no module 'apps.nowhere'"),
        (":Lines", "write it as module:object"),
        ("apps.target:Target", "making it failed"),
    ],
)
def test_what_is_no_target_is_refused_by_name(outbox: Outbox, target: str, why: str) -> None:
    said = outbox("relay", "--target", target, "--drain", code=1).err
    assert why in said
    assert f"--target {target}" in said


def test_a_target_of_ones_own_excludes_those_that_are_built_in(outbox: Outbox) -> None:
    for other in (("--to", "dbname=x", "--pipeline", "p"), ("--exchange", "x")):
        assert "--target excludes" in outbox("relay", "--target", "apps.target:Lines", *other, code=2).err
