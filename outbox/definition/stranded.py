"""Finds the workflows that a deploy would strand, and refuses it.

They are in a status that the new code doesn't know, wait for a change that would not be legal, wait in a status that a
stage would take, or have data that the code can't read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from pydantic import ValidationError

from .. import texts
from ..database import statements
from ..database.session import tuples
from ..errors import Stranded
from ..texts import number
from .pipeline import Pipeline
from .reasons import describe
from .transition import Transition

SQL = statements.load("stranded")

SAMPLE = 2_000
"""The approximate size of a sample: enough to find what affects one workflow in a hundred, in less than a second."""

REPORTED = 5
"""How many kinds of unreadable data are listed. The rest is only counted, because more lines add little."""

NAMED = 5
"""How many entities are named of those that a deploy would affect. `outbox approvals` lists the rest."""

BATCH = 1_000
"""How many workflows a fetch returns, which bounds the memory."""


def refuse(
    conn: psycopg.Connection[Any], pipeline: Pipeline[Any], step: Transition, *, end_waits: bool = False
) -> list[str]:
    """Raises Stranded if the step would leave workflows without a way on, or end waits without permission.

    Returns in words which waits it ends, because `end_waits` or the pipeline's `take_over` says so.
    """
    problems, workflows, ends = list[str](), dict[str, int](), list[str]()

    def affected(status: str, count: int, problem: str) -> None:
        workflows[status] = max(workflows.get(status, 0), count)
        problems.append(problem)

    gone = dict(_of_statuses(conn, pipeline, "workflows_in_statuses", step.gone))
    for status, count in gone.items():
        affected(
            status, count, f"this version no longer knows status {status}: {number(count, 'workflow')} "
            f"{'is' if count == 1 else 'are'} in it. "
            f'Keep it, rename it with {pipeline.name}.rename("{status}", …), or move them on first',
        )  # fmt: skip
    taken = dict[str, list[tuple[str, int, list[str]]]]()
    for status, *wait in _of_statuses(conn, pipeline, "waits_in_statuses", sorted(step.taken_over)):
        taken.setdefault(status, []).append(tuple(wait))
    for status, waits in taken.items():
        count, stage = sum(n for _, n, _ in waits), step.taken_over[status]
        listed = "; ".join(f"{n} for {kind}: {_named(n, entities)}" for kind, n, entities in waits)
        if end_waits or step.now(status) in pipeline.taken_over:
            ends.append(
                f"{status}: stage {stage} takes over, and {number(count, 'wait')} end{'s' * (count == 1)} ({listed})"
            )
        else:
            affected(
                status, count, f"stage {stage} takes {step.now(status)}, in which {_wait(count)} ({listed}). "
                f'To end their waits: {pipeline.name}.take_over("{step.now(status)}"), or outbox deploy --end-waits',
            )  # fmt: skip
    for status, what, target, count, entities in _for_changes(conn, pipeline, step):
        before, now = step.now(status), step.now(target)
        if what == "its deadline":
            said = status in gone or step.redirected.get(before, ("",))[0] == now
        else:
            said = status in gone or status in taken
        if not said:
            waiting = f"{_wait(count, f'in {status} ')} for {what}, which leads to {target} ({_named(count, entities)})"
            affected(
                status, count, f"{waiting}, and both are called {now} from now on. Move them on first"
                if before == now else f"{waiting}, and the change is legal no longer. "
                f'Keep it with {pipeline.name}.allow("{before}", to="{now}"), or move them on first',
            )  # fmt: skip
    if problems:
        raise Stranded(pipeline.name, workflows, problems)
    return ends


def _of_statuses(
    conn: psycopg.Connection[Any], pipeline: Pipeline[Any], name: str, statuses: list[str]
) -> list[tuple[Any, ...]]:
    return tuples(conn, SQL[name], pipeline=pipeline.name, statuses=statuses, most=NAMED) if statuses else []


def _for_changes(conn: psycopg.Connection[Any], pipeline: Pipeline[Any], step: Transition) -> list[tuple[Any, ...]]:
    if not step.illegal:
        return []
    froms, tos = zip(*step.illegal, strict=True)
    params = {"pipeline": pipeline.name, "froms": list(froms), "tos": list(tos), "most": NAMED}
    return tuples(conn, SQL["waits_for_changes"], **params)


def _wait(count: int, where: str = "") -> str:
    return f"{number(count, 'workflow')} {where}wait{'s' if count == 1 else ''}"


def _named(count: int, entities: list[str]) -> str:
    return ", ".join([*map(texts.printable, entities), *(["…"] if count > len(entities) else [])])


def unreadable(
    conn: psycopg.Connection[Any],
    pipeline: Pipeline[Any],
    *,
    every: bool = False,
    on_checked: Callable[[int], None] = lambda count: None,
) -> Iterator[str]:
    """Yields in words which stored data this version can't read. Changes nothing.

    Validates the data of a sample of the workflows that have not ended or, with `every`, the data of all of them, in
    bounded memory. Calls `on_checked` after each thousand workflows with the number checked so far.
    """
    checked, broken = 0, dict[str, list[str]]()
    ended = [status for status, route in pipeline.routes().items() if route.final]
    params: dict[str, Any] = {"pipeline": pipeline.name, "ended": ended}
    if not every:
        ((rows,),) = tuples(conn, SQL["table_size"])
        params["percent"] = min(100.0, 100.0 * SAMPLE / max(1.0, rows))
    with conn.transaction(), conn.cursor(name="outbox_data", row_factory=tuple_row) as cursor:
        cursor.itersize = BATCH
        cursor.execute(SQL["data_of_all" if every else "data_of_some"], params)
        for entity, status, text in cursor:
            checked += 1
            if checked % BATCH == 0:
                on_checked(checked)
            try:
                pipeline.load(text)
            except Exception as error:  # validators and upgrades are the user's code
                why = texts.explain(error) if isinstance(error, ValidationError) else describe(error)
                broken.setdefault(f"in {status}, {why}", []).append(entity)
    for why, entities in list(broken.items())[:REPORTED]:
        of = "all" if every else f"a sample of {checked}"
        yield f"data of {len(entities)} of {of} would not be readable: {why} ({', '.join(entities[:3])})"
    if len(broken) > REPORTED:
        yield f"and {len(broken) - REPORTED} more kinds of data that would not be readable"
