"""Looks for what is wrong or soon will be: server, schema, pipelines, jobs, sessions. Each finding says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from typing import Any

import psycopg

from ..database import migrations, statements
from ..database.session import tuples
from ..definition import dead_ends, deploy
from ..definition.pipeline import Pipeline
from ..errors import DefinitionError, Stranded
from ..texts import number, printable, span, word
from . import cluster, look, symptoms
from .finding import Finding

SQL = statements.load("doctor")

OLDEST_POSTGRES = 150000
"""The oldest Postgres that works, as `server_version_num` has it."""

LONG_TRANSACTION = 60.0
"""Seconds after which an open transaction is reported: in less, dead rows don't slow down a claim."""

MAX_CONNECTIONS_USED = 0.8
"""The part of `max_connections` that may be used: a deploy starts new workers before the old ones have gone."""

RELAY_BEHIND = 600
"""Seconds that a running relay may be behind: after a broker's restart it catches up in less."""

MANY_MESSAGES, OLD_MESSAGES = 1_000_000, 7 * 86_400
"""How many messages, and how old a message, in seconds, the log may keep without a relay before it is a warning."""

MANY_DEAD_ROWS = 100_000
"""How many dead rows of a table are reported if they outnumber the live ones: in fewer, a scan loses no second."""

Conn = psycopg.Connection[Any]


def examine(
    conn: Conn, pipelines: Sequence[Pipeline[Any]] = (), *, long_transaction: float = LONG_TRANSACTION,
    all_workflows: bool = True,
) -> list[Finding]:  # fmt: skip
    """Returns all findings. Compares `pipelines` with what is deployed.

    A transaction that has been open for `long_transaction` seconds and keeps dead rows is reported. Without
    `all_workflows`, those that lack a job are not looked for, which reads the whole table.
    """
    found = [*_installation(), *_server(conn), *_schema(conn)]
    if migrations.pending(conn):
        return found  # the other statements need the whole schema
    found += [*cluster.look(conn), *_pipelines(conn, pipelines), *_workers(conn)]
    found += [*_jobs(conn, all_workflows), *_blobs(conn), *_waits(conn)]
    found += symptoms.look(conn, pipelines)
    return [*found, *_relays(conn), *_sessions(conn, long_transaction), *_tables(conn)]


def _installation() -> Iterator[Finding]:
    with suppress(metadata.PackageNotFoundError):
        metadata.distribution("outbox")
        yield Finding(
            "bad",
            "the distribution outbox, an SMTP client, is installed beside outbox-engine and has the same import name",
            "pip uninstall outbox, and then: pip install --force-reinstall --no-deps outbox-engine",
        )


def _server(conn: Conn) -> Iterator[Finding]:
    row = tuples(conn, SQL["server"])[0]
    version, name, connections, standby, read_only, fsync, full_pages, synchronous, autovacuum, used = row
    if version < OLDEST_POSTGRES:
        yield Finding("bad", f"Postgres {name} is too old", "Outbox needs Postgres 15 or newer")
    else:
        yield Finding("ok", f"Postgres {name}")
    if standby or read_only:
        yield Finding("bad", "this server or role is read-only", "connect to the primary, as a role that may write")
    if not fsync or not full_pages:
        yield Finding(
            "bad", "fsync or full_page_writes is off: a crash can destroy the database", "switch both on and restart"
        )
    if synchronous == "off":
        yield Finding(
            "warn",
            "synchronous_commit is off: a crash loses the last commits, which breaks guarantee G1",
            "set synchronous_commit = on for this database or role",
        )
    if not autovacuum:
        yield Finding("bad", "autovacuum is off: the job table will grow without end", "switch autovacuum on")
    if used > MAX_CONNECTIONS_USED * connections:
        yield Finding("warn", f"{used} of {connections} connections are used", "raise max_connections, or use a pooler")


def _schema(conn: Conn) -> Iterator[Finding]:
    pending, newer = migrations.pending(conn), migrations.newer(conn)
    if pending:
        names = ", ".join(migration.name for migration in pending)
        yield Finding("bad", f"the schema lacks {names}", "run: outbox migrate")
    elif newer:
        yield Finding("warn", f"the schema has {', '.join(newer)}, of a later release", "update this Outbox")
    else:
        yield Finding("ok", "the schema is up to date")


def _pipelines(conn: Conn, pipelines: Sequence[Pipeline[Any]]) -> Iterator[Finding]:
    deployed = tuples(conn, SQL["pipelines"])
    if not deployed:
        yield Finding("warn", "no pipeline is deployed", "run: outbox deploy --app module:object")
    for name, at in deployed:
        yield Finding("ok", f"pipeline {name} was deployed at {at:%Y-%m-%d %H:%M}")
    for pipeline in pipelines:
        try:
            changes = deploy.check(conn, pipeline)
        except (Stranded, DefinitionError) as error:
            yield Finding("bad", str(error), "correct the definition: outbox deploy is refused")
            continue
        if changes:
            yield Finding(
                "warn", f"pipeline {pipeline.name} differs from the code: {'; '.join(changes)}", "run: outbox deploy"
            )
        for line in dead_ends.look(pipeline):
            yield Finding("warn", f"pipeline {pipeline.name}: {line}", "correct the definition, and deploy it")
    for each in dead_ends.unattended(conn):
        yield Finding(
            "bad" if each.dead_end else "warn", f"pipeline {each.pipeline}: {each}",
            "deploy a change that leads on" if each.dead_end else "move them on with outbox set-status",
        )  # fmt: skip


def _workers(conn: Conn) -> Iterator[Finding]:
    for worker, name in tuples(conn, SQL["workers_late"]):
        yield Finding("warn", f"worker {worker} ({name}) has missed its lease", "any live worker removes it in seconds")
    releases = dict(tuples(conn, SQL["workers_by_release"]))
    for told in dict.fromkeys(releases.values()):
        stages = [stage for stage, each in releases.items() if each == told]
        yield Finding(
            "warn", f"workers of several releases serve {', '.join(stages)}: {told}",
            "wait for the end of the deploy, or stop the older workers: outbox status names their processes",
        )  # fmt: skip
    for pipeline, stage, jobs in tuples(conn, SQL["stages_unserved"]):
        yield Finding(
            "bad", f"{number(jobs, 'job')} waiting for stage {pipeline}.{stage}, which no worker serves",
            f"run: outbox worker --stage {word(stage)}",
        )  # fmt: skip


def _jobs(conn: Conn, all_workflows: bool) -> Iterator[Finding]:
    stuck = tuples(conn, SQL["jobs_without_worker"])[0][0]
    if stuck:
        yield Finding(
            "bad", f"{number(stuck, 'job')} held by workers that are gone", "start a worker: its sweeper frees them"
        )
    for pipeline, stage, ready, seconds in tuples(conn, SQL["stages_behind"]):
        yield Finding(
            "warn", f"{pipeline}.{stage} is {span(seconds)} behind, with {number(ready, 'job')} ready",
            "start more workers for it, or check the log of `outbox worker`",
        )  # fmt: skip
    for pipeline, stage, count, seconds in tuples(conn, SQL["jobs_running_long"]):
        yield Finding(
            "warn",
            f"{number(count, 'job')} of {pipeline}.{stage} running for up to {span(seconds)}",
            "lower its timeout",
        )
    for pipeline, stage, count, dead in tuples(conn, SQL["handlers_hanging"]):
        yield Finding(
            "warn", f"{number(count, 'job')} of {pipeline}.{stage} ({dead} dead) ran out of time in a handler that "
            "can't be interrupted: such a handler keeps its slot for as long as it hangs",
            "give what it calls a timeout; a worker without a free slot ends, and its supervisor starts a new one",
        )  # fmt: skip
    lacking = tuples(conn, SQL["workflows_without_job"]) if all_workflows else []
    for pipeline, status, count, entity in lacking:
        yield Finding(
            "bad", f"{number(count, 'workflow')} of {pipeline} in {status} without a job, such as {printable(entity)}",
            "run: outbox retry ENTITY, or move them on with outbox set-status",
        )  # fmt: skip
    dead = tuples(conn, SQL["dead_jobs"])[0][0]
    if dead:
        yield Finding(
            "warn", f"{number(dead, 'dead job')} waiting for a person", "look: outbox dead; then: outbox retry"
        )
    else:
        yield Finding("ok", "no job is dead or stuck")


def _blobs(conn: Conn) -> Iterator[Finding]:
    parts, size, torn = tuples(conn, SQL["blobs_in_doubt"])[0]
    if torn:
        yield Finding(
            "bad", f"{number(torn, 'large content')} without all parts: somebody has deleted from outbox.blob_parts",
            "restore outbox.blob_parts from a backup: rows that are there stay as they are",
        )  # fmt: skip
    if parts:
        yield Finding(
            "warn", f"{number(parts, 'part')} of large contents ({size / 2**20:.0f} MB), unused for two days",
            "start a worker: its maintenance deletes them",
        )  # fmt: skip


def _waits(conn: Conn) -> Iterator[Finding]:
    for pipeline, status, leads_to, count, legal in tuples(conn, SQL["waits_overdue"]):
        yield Finding(
            "bad", f"{number(count, 'workflow')} of {pipeline} in {status} past the deadline",
            "run a worker: any worker moves them on" if legal
            else f"from {status} to {leads_to} is not a legal change: deploy one, or run outbox set-status",
        )  # fmt: skip
    for row in look.tables(conn, ["effects_unknown"])["effects_unknown"]:
        yield Finding(
            "warn", f"{number(row['unknown'], 'effect')} of {row['pipeline']}.{row['stage']} may or may not have "
            f"happened, for up to {span(row['oldest_seconds'])}; a person is asked about {row['asked']}",
            "look: outbox effects --unknown; then answer: outbox decide ENTITY yes, no or repeat",
        )  # fmt: skip
    for pipeline, schedule, seconds, attempts, error in tuples(conn, SQL["schedules_late"]):
        yield Finding(
            "warn", f"schedule {pipeline}.{schedule} is {span(seconds)} late"
            + (f", with {number(attempts, 'failed attempt')}: {error}" if attempts else ""),
            "fix its function" if attempts else "run a worker that serves all stages of the pipeline",
        )  # fmt: skip
    for pipeline, count, entity, doubt in tuples(conn, SQL["signals_in_doubt"]):
        yield Finding(
            "warn", f"{number(count, 'signal')} kept for {pipeline}, such as for {printable(entity)}: {doubt}",
            "if the name is wrong, send it again by the right one: outbox signal",
        )  # fmt: skip
    for pipeline, stage, by, reason, seconds in tuples(conn, SQL["pauses"]):
        yield Finding(
            "warn", f"{pipeline}.{stage} is paused by {by} for {span(seconds)}"
            + (f": {reason}" if reason else ""),
            f"to resume it: outbox resume {word(f'{pipeline}.{stage}')}",
        )  # fmt: skip


def _relays(conn: Conn) -> Iterator[Finding]:
    relays = tuples(conn, SQL["relays"])
    for name, runs, trouble, parked, waiting, behind in relays:
        if not runs and behind is not None:
            yield Finding(
                "warn",
                f"relay {name} is not running: messages have been waiting for it for {span(behind)}; none is lost",
                f"run: outbox relay --name {name}; or, if it is gone for good: outbox relay --forget {name}",
            )
        elif runs and trouble:
            yield Finding("warn", f"relay {name}: {trouble}", "check the broker; the relay continues by itself")
        elif runs and behind is not None and behind > RELAY_BEHIND:
            yield Finding("warn", f"relay {name} is {span(behind)} behind", "check the log of `outbox relay`")
        if waiting:
            yield Finding(
                "warn",
                f"relay {name}: {number(waiting, 'message')} wait for a queue that takes them",
                "start the consumer, or bind its queue; after a minute they are parked",
            )
        if parked:
            yield Finding(
                "warn",
                f"relay {name} has parked {number(parked, 'message')}",
                "look: outbox parked; then: outbox parked --retry",
            )
    for consumer, parked, to_retry in tuples(conn, SQL["parked_deliveries"]):
        yield Finding(
            "warn",
            f"consumer {consumer} has parked {number(parked, 'message')}"
            + (f", {to_retry} of them to be tried again when it runs" if to_retry else ""),
            f"start consumer {consumer}: it takes them within seconds"
            if to_retry == parked
            else f"look: outbox parked --consumer {consumer}; then: outbox parked --consumer {consumer} --retry",
        )
    count, oldest = tuples(conn, SQL["messages_kept"])[0]
    if not relays and oldest is not None:
        much = count > MANY_MESSAGES or oldest > OLD_MESSAGES
        what = f"there is no relay: the log keeps messages, the oldest for {span(oldest)}"
        yield Finding(
            "warn" if much else "ok",
            what,
            "run: outbox relay; or delete old messages: outbox worker --keep-messages 7" if much else "",
        )


def _sessions(conn: Conn, long_transaction: float) -> Iterator[Finding]:
    if not tuples(conn, SQL["sees_all_sessions"])[0][0]:
        yield Finding("ok", "this role sees only its own sessions' transactions (pg_read_all_stats would show all)")
    for kind, name, seconds in tuples(conn, SQL["horizon_holders"], long=long_transaction):
        how_long = "" if seconds is None else f" for {span(seconds)}"
        yield Finding(
            "warn", f"{kind} {name} keeps Postgres from removing dead rows{how_long}",
            "end it: commit it, pg_terminate_backend(pid), ROLLBACK PREPARED or pg_drop_replication_slot()",
        )  # fmt: skip


def _tables(conn: Conn) -> Iterator[Finding]:
    for name, live, dead, size, vacuumed in tuples(conn, SQL["tables"]):
        if dead > MANY_DEAD_ROWS and dead > live:
            when = f"last vacuumed at {vacuumed:%Y-%m-%d %H:%M}" if vacuumed else "never vacuumed"
            yield Finding(
                "warn", f"outbox.{name} has {dead:,} dead rows beside {live:,} live ones ({size >> 20} MB, {when})",
                "end the long transactions above; give autovacuum more workers",
            )  # fmt: skip
