"""Writes a pipeline's definition into the database, where the triggers enforce it, and describes what changes.

A deploy is one transaction: statuses, legal changes, routes, and the jobs of workflows whose status is now taken by
another stage.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
from psycopg.rows import tuple_row

from ..database import session, statements, turn
from . import rename, stranded, transition
from .deployed import Definition
from .limits import Limits, Path
from .pipeline import Pipeline

SQL = statements.load("deploy")

TABLE_PATIENCE = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds that each try waits for the lock on the table of workflows. During a try, all sessions that change workflows
wait, too. So the deploy pauses between tries for as long as the try lasted, and lets those sessions go on."""


def check(conn: psycopg.Connection[Any], pipeline: Pipeline[Any], *, end_waits: bool = False) -> list[str]:
    """Returns what `deploy` would change, in words. Raises Stranded if `deploy` would be refused."""
    transition.check(pipeline)
    lines = _of_reactions(pipeline, lambda reaction: check(conn, reaction))
    step = _step(conn, pipeline)
    return [*lines, *step.changes(), *stranded.refuse(conn, pipeline, step, end_waits=end_waits)]


def _step(conn: psycopg.Connection[Any], pipeline: Pipeline[Any]) -> transition.Transition:
    """Returns the step from the deployed definition to the one in the code."""
    return transition.Transition(Definition.read(conn, pipeline.name), Definition.of(pipeline))


def _of_reactions(pipeline: Pipeline[Any], do: Callable[[Pipeline[Any]], list[str]]) -> list[str]:
    """Applies `do` to the pipelines of the reactions. Returns the lines, each with the reaction's name."""
    return [f"{reaction.name}: {line}" for reaction in pipeline.reactions.values() for line in do(reaction)]


def deploy(conn: psycopg.Connection[Any], pipeline: Pipeline[Any], *, end_waits: bool = False) -> list[str]:
    """Writes the pipeline, and returns in words what has changed.

    A stage that takes a status in which workflows wait ends their waits if the pipeline says so with `take_over`, or
    with `end_waits`. Otherwise that raises Stranded, and changes nothing. So does a definition that no longer knows a
    status in which workflows are, or no longer allows a change that a wait leads to. Raises DefinitionError for what
    only the whole definition shows to be wrong.

    Waits about five seconds for open transactions that have changed workflows, and as long for a running tick of a
    schedule that changes, and then raises psycopg's LockNotAvailable.
    """
    transition.check(pipeline)
    with session.transaction(conn):
        changing = lock_schedules(conn, [pipeline])
        lines = _of_reactions(pipeline, lambda reaction: deploy(conn, reaction))
        if not changing:
            conn.execute(SQL["deploy_unchanged"])
            return lines
        _lock_table(conn)
        step = _step(conn, pipeline)
        lines += [*step.changes(), *stranded.refuse(conn, pipeline, step, end_waits=end_waits)]
        for statement, params in (*_writes(pipeline, step), *_moves(pipeline, step)):
            conn.execute(statement, params)
        _write_schedules(conn, pipeline, step.old)
        return lines


def lock_schedules(conn: psycopg.Connection[Any], pipelines: Iterable[Pipeline[Any]]) -> bool:
    """Waits for running ticks of the schedules that a deploy of these pipelines changes, and locks the schedules.

    Returns whether the deploy would change anything.

    A deploy of several pipelines in one transaction begins with this, because a tick may change workflows: a deploy
    that held the lock on their table while it waited for the tick would block every session that changes workflows, and
    the tick itself.
    """
    changing = False
    for pipeline in pipelines:
        old, new = Definition.read(conn, pipeline.name), Definition.of(pipeline)
        if old.changes_to(new):
            changing = True
            changed = [name for name, how in old.schedules.items() if new.schedules.get(name) != how]
            _lock_schedules(conn, pipeline.name, changed)
    return changing


def lock_to_write(conn: psycopg.Connection[Any], pipelines: Iterable[str]) -> None:
    """Takes all locks with which a pipeline can be written or deleted: on its schedules, and on the table of workflows.

    Waits as long as a deploy does, and then raises psycopg's LockNotAvailable.
    """
    for pipeline in pipelines:
        _lock_schedules(conn, pipeline, None)
    _lock_table(conn)


def _lock_schedules(conn: psycopg.Connection[Any], pipeline: str, schedules: list[str] | None) -> None:
    with _told("another deploy, or a tick of a schedule that changes, is still running"):
        turn.take(conn, "deploy", give_up=True)
        with turn.patience(conn, turn.PATIENCE):
            conn.execute(SQL["schedules_lock"], {"pipeline": pipeline, "schedules": schedules})


def _lock_table(conn: psycopg.Connection[Any]) -> None:
    for seconds in TABLE_PATIENCE:
        try:
            with _told("a transaction that has changed workflows is still open"), turn.patience(conn, seconds):
                conn.execute(SQL["deploy_lock"])
        except psycopg.errors.LockNotAvailable:
            if seconds == TABLE_PATIENCE[-1]:
                raise
            time.sleep(seconds)
        else:
            return


@contextmanager
def _told(why: str) -> Iterator[None]:
    """Adds to psycopg's LockNotAvailable the reason why nothing was deployed."""
    try:
        yield
    except psycopg.errors.LockNotAvailable as error:
        raise psycopg.errors.LockNotAvailable(f"nothing was written: {why}. Try again when it has ended") from error


def _writes(of: Pipeline[Any], step: transition.Transition) -> Iterator[tuple[bytes, dict[str, Any]]]:
    pipeline, old, new = {"pipeline": of.name}, step.old, step.new
    definition = json.dumps({"statuses": sorted(new.routes), "stages": sorted(new.attempts)})
    yield (
        SQL["pipeline_write"],
        {
            **pipeline,
            "initial": new.initial,
            "definition": definition,
            "reaction_of": of.reaction_of,
            "cancelled": new.cancelled,
            "plain": new.plain,
            "former_names": json.dumps(step.former_names),
            "json_schema": _as_json(new.data[0]),
            "version": new.data[1],
            "door": _as_json(new.data[2]),
        },
    )
    yield SQL["routes_clear"], pipeline
    stages, running, final, deadlines, on_deadline, reactions, partitions, priorities, notify = zip(
        *new.routes.values(), strict=True
    )
    yield (
        SQL["routes_write"],
        {
            **pipeline,
            "statuses": list(new.routes),
            "stages": list(stages),
            "running": list(running),
            "final": list(final),
            "deadlines": list(deadlines),
            "on_deadline": list(on_deadline),
            "reactions": [",".join(names) for names in reactions],
            "partitions": [_as_json(path) for path in partitions],
            "priorities": [_as_json(path) for path in priorities],
            "notify": list(notify),
        },
    )
    yield SQL["legal_changes_clear"], pipeline
    froms, tos = zip(*sorted(new.legal), strict=True) if new.legal else ((), ())
    yield SQL["legal_changes_write"], {**pipeline, "froms": list(froms), "tos": list(tos)}
    yield SQL["stages_clear"], pipeline
    yield (
        SQL["stages_write"],
        {**pipeline, "stages": list(new.attempts), "max_attempts": list(new.attempts.values())},
    )
    yield from _limits(pipeline, old, new)


def _moves(of: Pipeline[Any], step: transition.Transition) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields what a deploy does to the workflows that are there. The new routes have been written."""
    pipeline = {"pipeline": of.name}
    for status, stage in step.taken_over.items():
        yield SQL["questions_end"], {**pipeline, "status": status, "reason": f"stage {stage} takes {status}"}
        yield SQL["waits_end"], {**pipeline, "status": status}
    if step.renamed:
        yield from rename.rename(of.name, step.renamed)
    if step.rerouted:
        for name in ("jobs_reroute", "jobs_end_rerouted", "dead_jobs_end_rerouted", "jobs_make_rerouted"):
            yield SQL[name], {**pipeline, "statuses": step.rerouted}
    for status, (before, now) in step.redirected.items():
        yield SQL["deadlines_redirect"], {**pipeline, "status": status, "before": before, "now": now}
    if step.resting:
        for name in ("resting_end_rerouted", "resting_make_rerouted"):
            yield SQL[name], {**pipeline, "statuses": step.resting}


def _limits(pipeline: dict[str, Any], old: Definition, new: Definition) -> Iterator[tuple[bytes, dict[str, Any]]]:
    yield SQL["limits_lock"], pipeline
    yield SQL["limits_clear"], {**pipeline, "stages": list(new.limits)}
    for stage, limits in sorted(new.limits.items()):
        numbers = asdict(limits)
        yield SQL["limits_write"], {**pipeline, **numbers, "stage": stage, "partitioned": bool(limits.partition)}
    ordered = {
        stage
        for stage in new.attempts
        if _order(old.limits.get(stage)) != _order(new.limits.get(stage)) and stage in old.attempts
    }
    if ordered:
        yield SQL["jobs_reorder"], {**pipeline, "stages": sorted(ordered)}


def _order(limits: Limits | None) -> tuple[Path, Path] | None:
    return None if limits is None else (limits.partition, limits.priority)


def _as_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _write_schedules(conn: psycopg.Connection[Any], pipeline: Pipeline[Any], old: Definition) -> None:
    """Writes the schedules that differ. A new one starts with its next tick by the database's clock."""
    # As a number, because the caller's session may have any DateStyle.
    ((seconds,),) = _rows(conn, "SELECT extract(epoch FROM clock_timestamp())::float8")
    now = datetime.fromtimestamp(seconds, UTC)
    conn.execute(SQL["schedules_clear"], {"pipeline": pipeline.name, "schedules": list(pipeline.schedules)})
    kept = old.schedules
    chosen = [each for each in pipeline.schedules.values() if kept.get(each.name) != each.how]
    conn.execute(
        SQL["schedules_write"],
        {
            "pipeline": pipeline.name,
            "schedules": [each.name for each in chosen],
            "crons": [each.cron for each in chosen],
            "timezones": [each.timezone for each in chosen],
            "catch_up": [each.catch_up for each in chosen],
            "next": [each.after(now) for each in chosen],
        },
    )


def _rows(
    conn: psycopg.Connection[Any], question: LiteralString | bytes, params: dict[str, Any] | None = None
) -> list[Any]:
    with conn.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(question, params).fetchall()
