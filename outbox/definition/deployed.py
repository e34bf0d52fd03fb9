"""Reads a pipeline's deployed definition, compares it with the code's, and checks whether that code may run on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from ..database import statements
from ..errors import NotDeployed
from . import rename
from .limits import Limits
from .pipeline import Pipeline
from .routes import Route

SQL = statements.load("deployed")


@dataclass(frozen=True, slots=True)
class Definition:
    """A pipeline's definition as the database stores it."""

    initial: str | None
    routes: dict[str, Route]
    legal: set[tuple[str, str]]
    attempts: dict[str, int]
    schedules: dict[str, tuple[str, str, bool]]
    limits: dict[str, Limits]
    cancelled: str | None
    plain: int | None
    former_names: dict[str, str]  # of statuses, with the present ones
    data: tuple[Any, int | None, Any]  # its JSON schema, its version, and what is checked of other programs' data

    @classmethod
    def of(cls, pipeline: Pipeline[Any]) -> Definition:
        attempts = {stage.name: stage.retry.attempts for stage in pipeline.stages.values()}
        schedules = {name: each.how for name, each in pipeline.schedules.items()}
        limits = {stage.name: stage.limits for stage in pipeline.stages.values() if stage.limits}
        return cls(
            pipeline.initial,
            pipeline.routes(),
            pipeline.legal_changes(),
            attempts,
            schedules,
            limits,
            pipeline.cancelled,
            pipeline.plain,
            rename.resolve(pipeline),
            (pipeline.data_type().json_schema(), pipeline.data_type().version, pipeline.data_type().door()),
        )

    @classmethod
    def read(cls, conn: psycopg.Connection[Any], pipeline: str) -> Definition:
        name = {"pipeline": pipeline}
        with conn.cursor(row_factory=tuple_row) as cursor:
            row = cursor.execute(SQL["pipeline_read"], name).fetchone()
            initial, cancelled, plain, former_names, schema, version, door = row or (
                None,
                None,
                None,
                "{}",
                *3 * (None,),
            )
            routes = {status: _route(*route) for status, *route in cursor.execute(SQL["routes_read"], name)}
            ways = {route.stage: (route.partition or (), route.priority or ()) for route in routes.values()}
            return cls(
                initial,
                routes,
                {(source, target) for source, target in cursor.execute(SQL["legal_changes_read"], name)},
                dict(cursor.execute(SQL["stages_read"], name).fetchall()),
                {schedule: tuple(how) for schedule, *how in cursor.execute(SQL["schedules_read"], name)},
                {
                    stage: Limits(total, rate, of_each, rate_of_each, *ways[stage])
                    for stage, total, rate, of_each, rate_of_each in cursor.execute(SQL["limits_read"], name)
                },
                cancelled,
                plain,
                json.loads(former_names),
                (None if schema is None else json.loads(schema), version, None if door is None else json.loads(door)),
            )

    def changes_to(self, new: Definition) -> list[str]:
        """Returns in words what a deploy of `new` would change. Empty if nothing."""
        lines = []
        if self.initial != new.initial:
            lines.append(f"initial status: {self.initial or '(none)'} -> {new.initial}")
        if self.cancelled != new.cancelled:
            lines.append(f"cancelled workflows go to: {self.cancelled or '(none)'} -> {new.cancelled or '(none)'}")
        if (self.plain or 1) != (new.plain or 1):
            lines.append(f"data without $version has version {self.plain or 1} -> {new.plain or 1}")
        if self.initial is not None:
            told = ["the data has another JSON schema", "the data has another version", "other checks of the data"]
            if self.data[1] is None:  # as releases have left it that kept neither the schema nor the version
                told[:2] = [f"the {what} of the data is kept from now on" for what in ("JSON schema", "version")]
            lines += [line for line, old, now in zip(told, self.data, new.data, strict=True) if old != now]
        lines += [
            f"status {now} was called {former}"
            for former, now in new.former_names.items()
            if self.former_names.get(former) != now
        ]
        for status in sorted(self.routes.keys() | new.routes.keys()):
            old, now = self.routes.get(status), new.routes.get(status)
            if old is None and now is not None:
                lines.append(f"new status {status}{_describe(now)}")
            elif now is None:
                lines.append(f"status {status} is removed")
            elif old is not None and _describe(old) != _describe(now):
                lines.append(f"status {status}:{_describe(old)} ->{_describe(now)}")
        lines += [f"new legal change {source} -> {target}" for source, target in sorted(new.legal - self.legal)]
        lines += [f"no longer legal {source} -> {target}" for source, target in sorted(self.legal - new.legal)]
        for stage in sorted(self.attempts.keys() & new.attempts.keys()):
            if self.attempts[stage] != new.attempts[stage]:
                lines.append(f"stage {stage}: attempts {self.attempts[stage]} -> {new.attempts[stage]}")
        for stage in sorted(self.limits.keys() | new.limits.keys()):
            before, after = self.limits.get(stage), new.limits.get(stage)
            if before != after:
                lines.append(f"stage {stage}: {before or 'no limits'} -> {after or 'no limits'}")
        for schedule in sorted(self.schedules.keys() | new.schedules.keys()):
            if schedule not in new.schedules:
                lines.append(f"schedule {schedule} is removed")
            elif self.schedules.get(schedule) != new.schedules[schedule]:
                cron, timezone, catch_up = new.schedules[schedule]
                how = "each tick that was missed" if catch_up else "the last tick that was missed"
                lines.append(f"schedule {schedule}: {cron} in {timezone}, with {how}")
        return lines


def require(conn: psycopg.Connection[Any], pipeline: Pipeline[Any], stages: list[str]) -> None:
    """Raises NotDeployed unless the database routes and allows all that these stages do. It may have more than that."""
    there, code = Definition.read(conn, pipeline.name), Definition.of(pipeline)
    if there.initial is None:
        raise NotDeployed(
            f'pipeline "{pipeline.name}" is not deployed in this database. Run: outbox deploy --app module:object'
        )
    # Nothing says which of the two is newer, and a deploy of the older one would undo the newer one.
    how = (
        "If this code is the newer one, deploy it: outbox deploy --app module:object. "
        "If it is the older one, start the newer code instead"
    )
    for status, route in code.routes.items():
        if route.stage in stages and there.routes.get(status, Route(None)).stage != route.stage:
            raise NotDeployed(
                f'pipeline "{pipeline.name}" is deployed differently: '
                f"status {status} doesn't go to stage {route.stage} in this database. {how}"
            )
    for name in stages:
        stage = pipeline.stages[name]
        if (stage.limits is None) != (name not in there.limits):
            with_, without = ("this code", "this database") if stage.limits else ("this database", "this code")
            raise NotDeployed(
                f'pipeline "{pipeline.name}" is deployed differently: stage {name} has limits in {with_} and none in '
                f"{without}. {how}"
            )
        missing = {change for change in stage.changes if stage.running not in change} - there.legal
        if missing:
            listed = ", ".join(f"{source} -> {target}" for source, target in sorted(missing))
            raise NotDeployed(f'pipeline "{pipeline.name}" is deployed without the changes {listed}. {how}')


def _route(
    stage: str | None,
    running: bool,
    final: bool,
    deadline: float | None,
    on_deadline: str | None,
    notify: bool,
    *lists: Any,
) -> Route:
    reactions, partition, priority = (None if names is None else tuple(names) for names in lists)
    return Route(stage, running, final, deadline, on_deadline, reactions or (), partition, priority, notify)


def _describe(route: Route) -> str:
    if route.final:
        return " (final; notifies)" if route.notify else " (final)"
    what = "no stage takes it" if route.stage is None else f"taken by {route.stage}"
    if route.running:
        what = f"in progress in {route.stage}"
    if route.deadline is not None:
        what += f"; after {timedelta(seconds=route.deadline)} -> {route.on_deadline}"
    if route.reactions:
        what += f"; then {', '.join(route.reactions)}"
    if route.notify:
        what += "; notifies"
    return f" ({what})"
