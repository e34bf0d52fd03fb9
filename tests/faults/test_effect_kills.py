"""A worker is killed or frozen at each point of an effect: it happens once, or is asked about. It is never lost, either.

The bank counts, in tables without constraints, which tests/apps/bank.py writes on connections of its own.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.pipelines import deployed, value
from kit.servers import Process, wait_for
from outbox import approvals, decide

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
WORKER = ["worker", "--app", "apps.bank:bank"]
POLICIES = ("ask", "look_up", "repeat")
OPEN = "SELECT count(*) FROM outbox.jobs WHERE due IS NOT NULL"
TRANSFERS = """
    SELECT split_part(w.entity_id, '-', 1), count(*), count(DISTINCT b.key)
    FROM outbox.bank AS b JOIN outbox.workflow_states AS w ON b.key LIKE w.id || ':%' GROUP BY 1
"""


@pytest.fixture
def bank(conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OUTBOX_DSN", dsn)
    sys.modules.pop("apps.bank", None)
    from apps.bank import bank

    conn.execute("CREATE TABLE outbox.bank (key text)")
    conn.execute("CREATE TABLE outbox.bank_calls (key text)")
    conn.execute("CREATE TABLE outbox.gate (opened int)")
    return deployed(conn, bank)


def answer_all(conn: Conn, bank: Any) -> int:
    """Answers what is asked as somebody does who has looked into the bank's books; returns how many questions."""
    asked = approvals(conn)
    for each in asked:
        key = each.data["idempotency_key"]
        done = value(conn, "SELECT count(*) FROM outbox.bank WHERE key = %s", key)
        about = {"result": "paid"} if done else None
        decide(conn, bank, each.entity_id, "yes" if done else "no", about=about, question=each.id)
    return len(asked)


POINTS = ["K1", "K2", "K3", "K4", "K5", "K14", "K15", "K16", "K2:4", "K3:2", "K14:4", "K15:4", "K16:4"]
"""The fourth pass is in the second stage, whose handler is a plain one with a transaction, or in a retry."""


def test_a_worker_that_is_killed_at_any_point_pays_once_or_asks(conn: Conn, bank: Any, spawn: Spawn) -> None:
    """One worker for each point, with work of its own, and what those before it have left."""
    for point in POINTS:
        entities = [f"{policy}-{point}-{n}" for policy in POLICIES for n in range(2)]
        bank.submit_many(conn, ((entity, {}) for entity in entities))
        victim = spawn(*WORKER, env={"OUTBOX_KILL_AT": point})
        assert victim.wait() == -signal.SIGKILL, victim.text()
    spawn(*WORKER)

    def ended() -> bool:
        answer_all(conn, bank)
        return bool(value(conn, "SELECT bool_and(current_status = 'DONE') FROM outbox.workflow_states"))

    wait_for(ended, what="all have paid twice, once in each stage")
    found = {policy: (transfers, keys) for policy, transfers, keys in conn.execute(TRANSFERS.encode())}
    payments = 2 * 2 * len(POINTS)
    assert found["ask"] == found["look_up"] == (payments, payments), "all entities paid twice, each time once"
    assert found["repeat"][0] >= found["repeat"][1] == payments
    assert value(conn, "SELECT bool_and(state = 'done') AND count(*) = %s FROM outbox.effects", 3 * payments)


def test_a_killed_call_is_asked_about_and_not_made_again_until_the_answer(conn: Conn, bank: Any, spawn: Spawn) -> None:
    bank.submit(conn, "ask-1", {})
    victim = spawn(*WORKER, env={"OUTBOX_KILL_AT": "K15"})
    assert victim.wait() == -signal.SIGKILL, victim.text()
    heir = spawn(*WORKER)
    (asked,) = wait_for(lambda: approvals(conn), what="the heir asks")
    assert (asked.data["error"], asked.data["attempt"]) == (None, 1)
    heir.kill9()
    assert value(conn, "SELECT count(*) FROM outbox.bank") == 1
    decide(conn, bank, "ask-1", "yes", about={"result": "paid"})
    spawn(*WORKER)
    wait_for(lambda: value(conn, "SELECT current_status FROM outbox.workflow_states") == "DONE")
    assert value(conn, "SELECT count(*) FROM outbox.bank") == 2, "one of each stage"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_worker_frozen_in_the_call_past_its_lease_pays_twice_by_one_key(
    conn: Conn, bank: Any, spawn: Spawn, policy: str
) -> None:
    """Nothing here can keep a frozen process from going on with its call. The key is how the other side can."""
    bank.submit(conn, f"{policy}-1", {})
    zombie = spawn(*WORKER, "--lease", "1", env={"GATE": "1"})
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.bank_calls") == 1, what="the call is under way")
    zombie.freeze()
    spawn(*WORKER)
    if policy == "ask":
        (asked,) = wait_for(lambda: approvals(conn), what="the heir asks")
        decide(conn, bank, "ask-1", "no", question=asked.id)  # as far as anybody can see
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.effects WHERE state = 'done'"), what="the heir has paid")
    conn.execute("INSERT INTO outbox.gate VALUES (1)")
    zombie.send(signal.SIGCONT)
    of_stage = "SELECT {} FROM outbox.bank WHERE key = (SELECT key FROM outbox.bank_calls LIMIT 1)"
    wait_for(lambda: value(conn, of_stage.format("count(*)")) == 2, what="the late call ends")
    wait_for(lambda: "LeaseLost" in zombie.text(), what="its worker learns that it lost its lease")
    assert value(conn, of_stage.format("count(DISTINCT key)")) == 1
    assert value(conn, "SELECT count(*) FROM outbox.effects WHERE state = 'done' AND result = '\"paid\"'") >= 1
