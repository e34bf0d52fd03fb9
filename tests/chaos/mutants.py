"""Breaks the engine as real engines were broken: mutants. Each must be caught; otherwise the check proves nothing.

A mutant is patched into the processes of a run by start.py, or into its database; the package contains nothing of it. A
patch names the text that it replaces and fails if that isn't there: a mutant that no longer applies is an error, not a
pass.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest

from kit.broker import Broker
from outbox.database import statements

from . import failovers
from .cast import Config
from .run import Result, run

Patch = Callable[[], None]

RED = "red test"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mutant. `why`: what is broken, and who once was. `faults` expose it; any of `anomalies` proves it.

    Beside those of the checker there is "exit": a process has ended that nothing had ended; what failovers.py finds; and
    RED: the mutant's test fails.
    """

    why: str
    anomalies: frozenset[str]
    faults: tuple[str, ...] = ()
    patches: tuple[Patch, ...] = ()
    database: tuple[tuple[str, str, str], ...] = ()  # a function there, the text to replace in it, and the new text
    config: Config = field(default_factory=lambda: Config("mutant"))
    trouble: float = 0.03
    seconds: float = 20.0
    rate: float = 120.0
    jobs: int = 0  # that there are at least, however slow the machine is
    failovers: tuple[str, ...] = ()
    """The failovers that bring it out, one after the other, if a run of the configurations does not."""
    test: str = ""
    """The test that it turns red, if no run brings it out."""

    def patch(self) -> None:
        """Breaks this process."""
        for patch in self.patches:
            patch()

    def break_database(self, conn: psycopg.Connection[Any]) -> None:
        for function, old, new in self.database:
            found = conn.execute("SELECT pg_get_functiondef(%s::regproc)", (function,)).fetchone()
            assert found is not None
            conn.execute(_replaced(found[0], ((old, new),), function).encode())


def sql(step: str, statement: str, *replacements: tuple[str, str]) -> Patch:
    """Replaces text in a statement of the engine."""

    def patch() -> None:
        # The one dict behind the read-only view that all modules share.
        known = next(each for each in gc.get_referents(statements.load(step)) if isinstance(each, dict))
        known[statement] = _replaced(known[statement].decode(), replacements, statement).encode()

    return patch


def code(where: str, *replacements: tuple[str, str]) -> Patch:
    """Replaces text in a function's source ("module:Class.function"), also for modules that have imported it."""

    def patch() -> None:
        module, _, path = where.partition(":")
        function: Any = importlib.import_module(module)
        for name in path.split("."):
            function = getattr(function, name)
        source = _replaced(textwrap.dedent(inspect.getsource(function)), replacements, where)
        made: dict[str, Any] = {}
        exec("from __future__ import annotations\n" + source, {**function.__globals__}, made)
        function.__code__ = made[function.__name__].__code__

    return patch


def _replaced(text: str, replacements: tuple[tuple[str, str], ...], where: str) -> str:
    for old, new in replacements:
        if old not in text:
            raise LookupError(f"{where} has no {old!r}: this mutant is not one any more")
        text = text.replace(old, new)
    return text


# A worker that doesn't know that it was declared dead: only the database's fence is left.
UNAWARE = code("outbox.engine.inflight:InFlight.lose", ("running, dropped =", "return\n    running, dropped ="))
OWN_TRANSACTION = 'yield b"COMMIT", {}; yield b"BEGIN", {}'

MUTANTS: dict[str, Mutant] = {
    "finish-without-fence": Mutant(
        "what a worker finishes counts though the job is another's by now (River, Oban)",
        frozenset({"zombie write", "effect twice", "illegal change"}),
        ("freeze", "buried"),
        (
            UNAWARE,
            sql("commit", "jobs_finish_if_held", ("AND j.owner IS NOT DISTINCT FROM %(worker)s::integer AND j.attempt = workflow.attempt", "")),
        ),
    ),
    "claim-without-lock": Mutant(
        "two workers select the same rows before either has updated them",
        frozenset({"two holders"}),
        (),
        (sql("claim", "jobs_claim", ("FOR NO KEY UPDATE SKIP LOCKED", "")),),
    ),
    "commit-waits-for-locks": Mutant(
        "a batch waits for a row that somebody holds in an open transaction, and all others with it",
        frozenset({"held up"}),
        ("held-rows",),
        (
            sql("commit", "jobs_finish_if_held",
                ("FOR NO KEY UPDATE OF w SKIP LOCKED", "FOR NO KEY UPDATE OF w"), ("%(lock_ms)s::integer::text", "'0'")),
        ),
    ),
    "batch-fails-as-a-whole": Mutant(
        "a row that somebody's trigger refuses takes the batch along that it is in, each time",
        frozenset({"held up"}),
        ("refused-rows",),
        (code("outbox.engine.apart:Apart.run", ("parts = _halves(", "return []\n    parts = _halves(")),),
        seconds=1,
    ),
    "put-back-not-counted": Mutant(
        "what is put back, as its data was changed meanwhile, is as if it had never run: it never ends",
        frozenset({"free put-back"}),
        ("touched-data",),
        (sql("commit", "jobs_put_back", ("released = j.released + 1", "released = j.released")),),
        seconds=1,
        jobs=100,
    ),
    "put-back-without-delay": Mutant(
        "what is put back runs again at once, as fast as it can",
        frozenset({"too early"}),
        ("touched-data",),
        (sql("commit", "jobs_put_back", ("due = held.delay <= 0", "due = true")),),
        seconds=1,
        jobs=100,
    ),
    "put-back-as-not-begun": Mutant(
        "an attempt whose commit was refused is released as one that had not begun",
        frozenset({"free put-back"}),
        ("touched-data",),
        (code("outbox.engine.release:Releaser.not_held", ("await self.put_back(jobs, CHANGED)", "await self.release(jobs)\n    self._inflight.wakeups.wake()")),),
        seconds=1,
        jobs=100,
    ),
    "limits-without-lock": Mutant(
        "two claims count what is at work at the same moment, and each takes the rest",
        frozenset({"too many"}),
        (),
        database=(("outbox.limit_quota", "s.stage = of_stage FOR NO KEY UPDATE", "s.stage = of_stage"),),
    ),
    "limits-of-each-process": Mutant(
        "each process counts what it has at work itself, and no other's (Celery's rate_limit)",
        frozenset({"too many"}),
        (),
        database=(("outbox.limit_quota", "j.owner IS NOT NULL AND j.partition IS NOT NULL LIMIT",
                   "j.owner = worker AND j.partition IS NOT NULL LIMIT"),),
    ),
    "deadline-by-another-clock": Mutant(
        "a deadline passes a second before its time",
        frozenset({"too early"}),
        (),
        (
            sql("maintenance", "deadlines_fire",
                ("j.deadline <= coalesce(%(now)s::timestamptz, now())",
                 "j.deadline - interval '1 second' <= coalesce(%(now)s::timestamptz, now())"),
                ("<= interval '0'", "<= interval '1 second'")),
        ),
    ),
    "question-left-open": Mutant(
        "what is asked of a person is not answered by a change of the status, but by the call alone",
        frozenset({"torn commit"}),
        (),
        database=(("outbox.workflows_changed", "IF waited IS NOT NULL THEN", "IF false THEN"),),
    ),
    "vote-counts-twice": Mutant(
        "a quorum counts each vote twice",
        frozenset({"miscounted"}),
        (),
        database=(("outbox.quorum_reached", "(SELECT count(*) FROM voters", "(SELECT 2 * count(*) FROM voters"),),
        jobs=1500,
    ),
    "askers-vote-counts": Mutant(
        "who asks is one of those who answer",
        frozenset({"miscounted", "lost"}),
        (),
        database=(("outbox.vote_counts", "IF person = ANY (askers) THEN", "IF false THEN"),),
        jobs=1500,
    ),
    "rename-loses-a-deadline": Mutant(
        "a deploy renames a status, and the deadlines that lead to it are left with the old name, which nothing knows",
        frozenset({"lost", "stuck"}),
        ("renamed-status",),
        (sql("rename", "deadlines_rename", ("j.deadline IS NOT NULL AND", "false AND")),),
        seconds=10,
        jobs=1_000,
    ),
    "rename-forgets-the-answers": Mutant(
        "a deploy renames a status, and the answers that lead to it are left with the old name",
        frozenset({"lost", "stuck"}),
        ("renamed-status",),
        (sql("rename", "questions_rename", ("a.ended_at IS NULL", "false")),),
        seconds=10,
        jobs=1_000,
    ),
    "cancel-leaves-the-job": Mutant(
        "a workflow is cancelled, and its job goes on",
        frozenset({"resurrection", "stuck", "zombie write"}),
        (),
        database=(("outbox.workflows_changed", "j.workflow_id = ANY (ending);",
                   "j.workflow_id = ANY (ending) AND reason IS DISTINCT FROM 'cancelled';"),),
        seconds=1,
        jobs=300,
    ),
    "cancel-leaves-the-question": Mutant(
        "a workflow is cancelled, and people are still asked about it",
        frozenset({"torn commit"}),
        ("kill-9",),
        database=(("outbox.waits_end", "PERFORM outbox.approvals_end(ids, tos, actor, reason);",
                   "IF reason IS DISTINCT FROM 'cancelled' THEN PERFORM outbox.approvals_end(ids, tos, actor, reason); END IF;"),),
        seconds=1,
        jobs=1_000,
    ),
    "cancel-forgets-the-children": Mutant(
        "a workflow is cancelled while it waits for its children, and these go on for nobody",
        frozenset({"torn commit", "stuck"}),
        ("kill-9",),
        database=(("outbox.children_cancel", "c.cancel_to IS NULL", "false"),),
        seconds=1,
        jobs=1_000,
    ),
    "wait-without-a-timeout": Mutant(
        "a wait begins, and its timeout is lost",
        frozenset({"lost", "stuck"}),
        (),
        database=(("outbox.timeouts_begin", "WHERE i.deadline IS NOT NULL AND i.id = ANY (ids)", "WHERE false"),),
    ),
    "workers-not-believed": Mutant(
        "what a worker tells the triggers is believed of no one: a handler's waits never begin",
        frozenset({"lost", "stuck", "torn commit"}),
        ("kill-9",),
        database=(("outbox.told", "AND outbox.is_worker()", "AND NOT outbox.is_worker()"),),
        seconds=8,
    ),
    "attempts-counted-when-caught": Mutant(
        "what kills its worker never counts as an attempt",
        frozenset({"two holders"}),
        ("kill-9",),
        (
            sql("claim", "jobs_claim", ("attempt = j.attempt + 1", "attempt = greatest(j.attempt, 1)")),
            sql("commit", "jobs_fail_if_held", ("run_at = coalesce", "attempt = j.attempt + 1, run_at = coalesce")),
        ),
    ),
    "attempts-without-end": Mutant(
        "a job is tried for ever",
        frozenset({"two holders"}),
        (),
        (code("outbox.definition.outcome:Backoff.delay", ("if attempt >= self.attempts", "if False")),),
        trouble=0.3,
    ),
    "shared-worker-id": Mutant(
        "workers of one host share an id: one dies, and the others' beats keep its jobs (worker id = host name)",
        frozenset({"stuck", "lost", "two holders", "zombie write"}),
        ("kill-9",),
        (
            sql("lease", "worker_register",
                ("INSERT INTO", "WITH known AS (SELECT id FROM outbox.workers LIMIT 1), new AS (INSERT INTO"),
                ("VALUES (%(name)s, %(stages)s, make_interval(secs => %(lease)s), %(release)s)",
                 "SELECT %(name)s, %(stages)s, make_interval(secs => %(lease)s), %(release)s WHERE NOT EXISTS (SELECT FROM known)"),
                ("RETURNING id", "RETURNING id) SELECT id FROM known UNION ALL SELECT id FROM new")),
        ),
    ),
    "worker-id-given-again": Mutant(
        "a worker gets an id that another one had before, as sequences give it after an asynchronous failover",
        frozenset({"stuck", "lost", "two holders", "zombie write"}),
        ("buried",),
        (
            sql("lease", "worker_register",
                ("(name, stages, lease, release)\nVALUES (", "(id, name, stages, lease, release)\nVALUES ((SELECT min(n) FROM generate_series(1, 99) "
                 "AS n WHERE n NOT IN (SELECT id FROM outbox.workers)), ")),
        ),
    ),
    "no-polling": Mutant(
        "NOTIFY is taken for a queue: a worker that was not there to hear it waits for ever",
        frozenset({"stuck", "lost"}),
        ("notify-lost",),
        (
            code("outbox.engine.wakeups:Wakeups.until_work", ("min(seconds, self._lanes.held_for() or seconds)", "None")),
            code("outbox.engine.maintenance:Maintenance.tick", ("if ready:", "if False:")),  # it polls for an idle claimer
            code("outbox.engine.maintenance:Maintenance._fire", ("self._inflight.wakeups.wake()", "pass")),
            code("outbox.engine.wakeups:Wakeups.limits_released", ("if lane.stage.limits", "if False")),
        ),
    ),
    "pulling-thread-says-nothing": Mutant(
        "a thread that was called for an item goes idle, as another one has taken it, and counts as on its way for ever",
        frozenset({RED}),  # in a run, the items are released after their timeout, and all ends well but late
        (),
        (code("outbox.process.pulling:Pulling._run", ("if coming:", "if coming and self._waiting:")),),
        test="process/test_pulling.py::test_a_thread_whose_item_another_one_has_taken_is_called_again",
    ),
    "error-text-not-cleaned": Mutant(
        "an error with a NUL can't be stored: the job can neither succeed nor fail (hatchet #4619)",
        frozenset({"stuck", "lost"}),
        (),
        (code("outbox.documents:clean", ("if len(text) > longest", "return text\n    if len(text) > longest")),),
        trouble=0.1,
    ),
    "effect-before-status": Mutant(
        "a handler's writes are committed before the status that they belong to",
        frozenset({"torn commit", "effect twice"}),
        ("kill-9",),
        (
            code("outbox.engine.transaction:_commit",
                 ('    killpoints.passing("K3")',
                  f"    {OWN_TRANSACTION}; yield commit.mark_transaction(finished[0][0])\n"
                  '    killpoints.passing("K3")')),
        ),
    ),
    "undone-turn-is-committed": Mutant(
        "the outcome of a handler is committed whose part of a shared transaction was rolled back",
        frozenset({"lost", "torn commit"}),
        (),
        (
            code("outbox.engine.transaction:take_turns",
                 ("ended.append(([job], RolledBackTogether() if both else _unfinished(job, outcome)))",
                  "finished.append((job, Finished(min(job.stage.to), None, [])))")),
        ),
        trouble=0.2,
        jobs=500,
    ),
    "failed-turn-is-kept": Mutant(
        "what a handler wrote before it failed is committed with the others that share its transaction",
        frozenset({"effect twice", "phantom"}),
        (),
        (code("outbox.engine.transaction:take_turns", ("if turn.opened:", "if False:")),),
        trouble=0.2,
        seconds=5,
        jobs=500,
    ),
    "turn-leaks-a-setting": Mutant(
        "what one handler has set is there for the next one that shares its transaction",
        frozenset({"leftover"}),
        (),
        (sql("commit", "turn_opens", ("SELECT outbox.session_clean(%(names)s::text[], %(values)s::text[]),\n       ", "SELECT ")),),
        seconds=5,
        jobs=500,
    ),
    "fence-of-the-first-turn": Mutant(
        "several handlers share a transaction, and only of the first it is checked whether its job is still held",
        frozenset({"torn commit", "effect twice", "phantom"}),
        ("touched-data",),
        (
            sql("commit", "jobs_finish_if_held",
                ("outbox.require_held(%(claim)s, cardinality(%(ids)s::uuid[]), count(*))",
                 "outbox.require_held(%(claim)s, 1, sign(count(*))::bigint)")),
        ),
        jobs=500,
    ),
    "effect-without-status": Mutant(
        "the transaction of a handler commits though its job is another's by now",
        frozenset({"torn commit", "effect twice"}),
        ("freeze", "buried"),
        (
            UNAWARE,
            sql("commit", "jobs_finish_if_held", ("%(claim)s = '' OR outbox.require_held", "true OR outbox.require_held")),
        ),
        seconds=60,
    ),
    "call-before-its-intention": Mutant(
        "a call is made, and its intention and result are written after it: whatever comes in between, it is made again",
        frozenset({"effect twice", "phantom"}),
        ("buried",),
        (
            code("outbox.engine.effects:effect",
                 ("    known = yield from _intend(",
                  "    if job.attempt == 1:\n        made = yield Call(call)\n        call = lambda: made\n    known = yield from _intend(")),
        ),
        seconds=1,
        jobs=500,
    ),
    "unknown-call-made-again": Mutant(
        "what is unknown of an effect is not asked: the next attempt makes the call again (every queue that retries)",
        frozenset({"effect twice"}),
        ("buried",),
        (code("outbox.engine.effects:effect", ('repeat=on_unknown == "repeat"', "repeat=True")),),
        seconds=1,
        jobs=500,
    ),
    "answer-about-an-effect-ignored": Mutant(
        "a person answers that it has happened, and the next attempt makes the call again",
        frozenset({"lost", "effect twice"}),
        ("buried",),
        database=(("outbox.effect_answered", "WHEN 'yes' THEN 'done' ELSE 'not done' END", "WHEN 'maybe' THEN 'done' ELSE 'not done' END"),),
        seconds=1,
        jobs=1_000,
    ),
    "message-after-commit": Mutant(
        "messages are written when the status is committed, in a transaction of their own",
        frozenset({"torn commit", "lost"}),
        ("kill-9",),
        (
            code("outbox.engine.commit:finish", ("sent = [", "sent = [] and [")),
            code("outbox.engine.committer:Committer._finish",
                 ("self._inflight.done(", "await __import__('chaos.mutants').mutants.publish(self._link, batch, held)\n    self._inflight.done(")),
        ),
    ),
    "message-before-commit": Mutant(
        "messages are written before the status is, in a transaction of their own",
        frozenset({"torn commit", "phantom"}),
        ("freeze", "kill-9"),
        (
            code("outbox.engine.commit:finish", ("sent = [", "sent = [] and [")),
            code("outbox.engine.committer:Committer._finish",
                 ("started =", "await __import__('chaos.mutants').mutants.publish(self._link, batch, None)\n    started =")),
        ),
    ),
    "history-forgotten": Mutant(
        "a change by hand goes past the history",
        frozenset({"lost", "torn commit", "illegal change"}),
        database=(
            ("outbox.workflows_changed", "AS c (id, from_status, to_status, version, stage, attempt);",
             "AS c (id, from_status, to_status, version, stage, attempt) WHERE c.stage IS NOT NULL;"),
        ),
    ),
    "next-job-forgotten": Mutant(
        "a change by hand makes no job",
        frozenset({"stuck", "lost", "torn commit"}),
        database=(("outbox.workflows_changed", "WHERE c.stage IS NOT NULL;", "WHERE c.stage IS NOT NULL AND worker IS NOT NULL;"),),
    ),
    "anything-goes": Mutant(
        "any writer of the table may write any status",
        frozenset({"illegal change", "resurrection"}),
        database=(("outbox.workflows_changed", "IF unknown IS NOT NULL OR illegal IS NOT NULL THEN", "IF unknown IS NOT NULL THEN"),),
    ),
    "asynchronous-commit": Mutant(
        "the server says yes before its log is on disk (synchronous_commit = off): the negative control",
        frozenset({"lost", "phantom", "torn commit", "illegal change"}),
        ("postgres-kill",),
        config=Config("mutant", server={"synchronous_commit": "off", "wal_writer_delay": "2s"}),
    ),
    "cursor-before-confirm": Mutant(
        "the cursor moves before the broker has confirmed",
        frozenset({"lost", "marked early"}),
        ("kill-9", "broker-restart"),
        (
            code("outbox.messages.relay:Relay._send",
                 ("parked = await self._target.deliver",
                  "await self._log.advance(part[-1].id, len(part), {})\n"
                  "            parked = await self._target.deliver")),
        ),
    ),
    "cursor-by-id": Mutant(
        "the cursor is the last id: what commits late with an earlier one is passed over (id > last)",
        frozenset({"lost", "marked early"}),
        (),
        (
            sql("log", "relay_cut",
                ("window_end = pg_current_snapshot(), position = 0,", "window_end = pg_current_snapshot(),"),
                ("RETURNING r.window_start::text, r.window_end::text", "RETURNING r.window_start::text, r.window_end::text, r.position")),
            sql("log", "window_read",
                ("n.xid >= pg_snapshot_xmax(%(start)s::pg_snapshot) AND n.xid < pg_snapshot_xmax(%(end)s::pg_snapshot)", "true"),
                ("l.xid = ANY (ARRAY(SELECT pg_snapshot_xip(%(start)s::pg_snapshot)))", "%(start)s IS NULL")),
            sql("log", "relay_advance", ("CASE WHEN %(done)s THEN 0 ELSE %(position)s END", "greatest(r.position, %(position)s)")),
        ),
    ),
    "relay-without-epoch": Mutant(
        "a relay that was frozen goes on beside the one that took over",
        frozenset({"lost", "inversion", "marked early"}),
        ("relay-frozen",),
        (
            *(sql("log", name, (" AND r.epoch = %(epoch)s AND r.nonce = %(nonce)s::uuid", "")) for name in ("relay_cut", "relay_advance", "relay_beat")),
            code("outbox.messages.target:Lease.is_held", ("return ", "return True or ")),
        ),
        seconds=60,
        rate=400,  # two relays harm each other only if both have work
    ),
    "no-mandatory": Mutant(
        "the broker confirms what it can't route, and drops it",
        frozenset({"lost", "marked early"}),
        ("broker-unbound",),
        (code("outbox.messages.rabbitmq.publisher:Publisher._send", ("mandatory=True", "mandatory=False")),),
    ),
    "nack-taken-for-ack": Mutant(
        "a message that the broker refused counts as published",
        frozenset({"lost", "marked early"}),
        ("broker-refuses",),
        (code("outbox.messages.rabbitmq.publisher:Publisher._confirmed", ("acked = ", "acked = True or ")),),
    ),
    "order-not-kept": Mutant(
        "what was refused is sent again behind later messages of its key, in strict mode",
        frozenset({"inversion"}),
        ("broker-refuses",),
        (code("outbox.messages.rabbitmq.publisher:Publisher.deliver", ("Batch(messages, stopped_keys, self._strict, self._routes)", "Batch(messages, {}, False, self._routes)")),),
    ),
    "inbox-in-its-own-transaction": Mutant(
        "a message counts as handled before its effect is committed",
        frozenset({"torn commit", "lost", "marked early"}),
        ("kill-9",),
        (
            code("outbox.messages.receive:Receiver._delivering",
                 ("    if new:\n        transaction = delivery.begin",
                  f"    {OWN_TRANSACTION}\n"
                  '    yield SQL["delivery_mark"], self._mark(delivery)\n'
                  "    if new:\n        transaction = delivery.begin")),
        ),
    ),
    "every-delivery-is-new": Mutant(
        "there is no inbox",
        frozenset({"effect twice"}),
        ("kill-points",),
        (sql("inbox", "inbox_accept", ("SELECT EXISTS (SELECT FROM taken)", "SELECT true")),),
    ),
    "lost-slots-unnoticed": Mutant(
        "handlers that hang take one slot of a stage after the other, until it stands still",
        frozenset({"stuck", "lost"}),
        ("hung-threads",),
        (code("outbox.engine.handlers:Handlers.look_for_lost", ("if number >= lane.concurrency", "if False")),),
        config=Config("mutant", workers=1),
        seconds=60,
    ),
    "stays-on-a-read-only-server": Mutant(
        "a session goes on asking a server that was demoted, and is told each time that it is read-only",
        frozenset({"stuck", "lost"}),
        ("read-only",),
        (
            code("outbox.database.dsn:engine_conninfo", ("if writable and", "if False and")),
            code("outbox.database.connection_group:ConnectionGroup.add", ("if is_read_only and not read_only:", "if False:")),
            code("outbox.database.link:Link.execute", ("except psycopg.errors.ReadOnlySqlTransaction:", "except ZeroDivisionError:")),
            code("outbox.database.user_transaction:_require_writable", ("if read_only:", "if False:")),
            code("outbox.engine.lease:Lease.leave_server", ("self._group.cut(why)", "pass")),
        ),
    ),
    "children-stop-their-parent": Mutant(
        "a child of multiprocessing has asyncio's signal handlers: its end stops the worker that has forked it",
        frozenset({"exit"}),
        ("reckless-handlers",),
        (
            code("outbox.process.signals:on_signals",
                 ("_Hearing(asyncio.get_running_loop(), stop, grace).begin()",
                  "[asyncio.get_running_loop().add_signal_handler(number, stop) for number in STOPPING]")),
            code("outbox.process.forks:_drop", ("signal.set_wakeup_fd(-1)", "pass")),
        ),
        jobs=1_500,
    ),
    "exit-of-a-subtask": Mutant(
        "SystemExit in a task that a handler has started ends the worker",
        frozenset({"exit"}),
        ("reckless-handlers",),
        (code("outbox.process.ending:_insist", ("if task.done() or", "if True or")),),
        jobs=1_500,
    ),
    "duplicate-does-not-wait": Mutant(
        "the answer to a duplicate is a read: its COMMIT does not wait for the standby (Postgres' default)",
        frozenset({"lost"}),
        database=(("outbox.commit_waits", "NOT pg_is_in_recovery()", "false"),),
        failovers=("behind", "behind", "behind"),
    ),
    "stays-with-a-former-primary": Mutant(
        "a process stays with a former primary that takes commits beside the one that was promoted",
        frozenset({"not back"}),
        patches=(code("outbox.database.connection_group:ConnectionGroup._look", ("if known.is_outdated(self._timeline):", "if False:")),),
        failovers=("split",),
    ),
    "publishes-what-only-the-primary-has": Mutant(
        "the engine's sessions don't wait for the standby at COMMIT, for speed (synchronous_commit = local)",
        frozenset({"phantom", "lost", "marked early"}),
        ("failover-detached",),
        (
            code("outbox.database.session:_needed",
                 ("chosen = {name:", "chosen = {'synchronous_commit': 'local'} | {name:")),
            code("outbox.messages.log:Log.connect", ('"synchronous_commit": "on"', '"synchronous_commit": "local"')),
        ),
        config=Config("mutant", failover=True),
        seconds=5,
        rate=60,
    ),
    "ack-on-arrival": Mutant(
        "a delivery is acknowledged before it is handled (auto-ack)",
        frozenset({"lost", "marked early"}),
        ("kill-9", "sessions"),
        (
            code("outbox.messages.consumer:Consumer._take", ("if arrival.key", "arrival.acknowledge()\n    if arrival.key")),
            code("outbox.messages.consumer:Consumer._work", ("arrival.acknowledge()", "pass")),
        ),
    ),
}  # fmt: skip


async def publish(link: Any, batch: Any, held: set[str] | None) -> None:
    """Writes a batch's messages, of those workflows or of all, in a transaction of their own."""
    for job, outcome in batch:
        if held is None or job.workflow_id in held:
            for message in outcome.messages:
                values = message.topic, message.key, message.payload, job.workflow_id
                await link.execute(PUBLISH, dict(zip("tkpw", values, strict=True)))


PUBLISH = (
    b"INSERT INTO outbox.messages (topic, key, payload, workflow_id) VALUES (%(t)s, %(k)s, %(p)s::jsonb, %(w)s::uuid)"
)


def attempt(
    name: str, seed: int, rate: float | None = None, seconds: float | None = None, jobs: int = 0, faults: int = 0
) -> tuple[Result, set[str]]:
    """Runs a mutant; returns the result, and which of its anomalies were found. `jobs`, `faults`: see run.py."""
    mutant = MUTANTS[name]
    config = replace(mutant.config, name=name, mutant=name, faults=mutant.faults, broken=mutant.break_database)
    seconds, rate, jobs = seconds or mutant.seconds, rate or mutant.rate, jobs or mutant.jobs
    result = run(
        config, seconds=seconds, seed=seed, rate=rate, trouble=mutant.trouble, drain=20, jobs=jobs, faults=faults
    )
    found = {anomaly.name for anomaly in result.verdict.anomalies} | ({"exit"} if result.exits else set())
    return result, found & mutant.anomalies


def attempt_failovers(name: str, seed: int) -> tuple[Counter[str], set[str]]:
    """Run a mutant beside its failovers; return all anomalies, and which of its own were found."""
    mutant = MUTANTS[name]
    with ExitStack() as stack:
        broker = Broker()
        stack.callback(broker.remove)
        broker.start()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        count, kinds = len(mutant.failovers), mutant.failovers
        found = failovers.run(
            count, amqp=broker.url, folder=folder, kinds=kinds, seed=seed, mutant=name, broken=mutant.break_database
        ).anomalies
    return found, set(found) & mutant.anomalies


TESTED = """
import sys, pytest

class Patched:
    def pytest_collection_finish(self):
        if sys.argv[1]:
            from chaos.mutants import MUTANTS
            MUTANTS[sys.argv[1]].patch()

options = ["-q", "-p", "no:cacheprovider", "--timeout", "60", sys.argv[2]]
sys.exit(10 + pytest.main(options, [Patched()]))
"""


def attempt_test(name: str) -> tuple[Counter[str], set[str]]:
    """Runs the test of a mutant, which must be green without it; returns all anomalies, and which of its own were found."""
    mutant = MUTANTS[name]
    tests = Path(__file__).parents[1]
    command, env = [sys.executable, "-c", TESTED], {**os.environ, "PYTHONPATH": str(tests)}
    ends = []
    for which in ("", name):
        done = subprocess.run([*command, which, tests / mutant.test], env=env, capture_output=True, text=True)
        ends.append(done.returncode - 10)
        assert ends[-1] in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), done.stdout + done.stderr
    assert ends[0] == pytest.ExitCode.OK, f"{mutant.test} is red without the mutant"
    found = Counter([RED] if ends[1] else [])
    return found, set(found) & mutant.anomalies


@click.command()
@click.option(
    "--only", "names", multiple=True, type=click.Choice(sorted(MUTANTS)), help="Only this one; may be given again."
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--rate", type=float, help="Calls a second of all clients together; default: what the mutant needs.")
def main(names: tuple[str, ...], seed: int, rate: float | None) -> None:
    """Break the engine in each of these ways, and show by which anomaly it is caught. Exits 1 if one isn't."""
    missed = []
    chosen = names or tuple(MUTANTS)
    for name in chosen:
        began = time.monotonic()
        if MUTANTS[name].failovers:
            counted, found = attempt_failovers(name, seed)
        elif MUTANTS[name].test:
            counted, found = attempt_test(name)
        else:
            result, found = attempt(name, seed, rate)
            counted = Counter(anomaly.name for anomaly in result.verdict.anomalies)
            counted["exit"] = len(result.exits)
        click.echo(f"{'✔' if found else '✘'} {name}: {MUTANTS[name].why}")
        told = ", ".join(f"{anomaly} {count}" for anomaly, count in counted.items() if count) or "nothing was found"
        click.echo(f"    {told} ({time.monotonic() - began:.0f} s)")
        if not found:
            missed.append(name)
    click.echo(
        f"{len(chosen) - len(missed)} of {len(chosen)} mutants were caught"
        + (f"; not: {', '.join(missed)}" if missed else "")
    )
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
