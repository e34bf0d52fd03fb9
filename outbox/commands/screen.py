"""Prints tables for people. Control characters and markup in the data are made harmless."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..client.why import Why
from ..definition.limits import Limits
from ..operations import look
from ..operations.finding import Finding
from ..texts import age, printable

Row = dict[str, Any]

_WORKFLOW = ("id", "version", "created_at", "updated_at", "metadata")
MOST_COUNTED = 1_000
"""Where the count of jobs stops, as in the view: more are shown as "1000+"."""

_ENGINE = re.compile(r"worker-\d+$|outbox$|schedule ")
"""The actor names of workers, deadlines and schedules, whose login adds nothing."""

_CHANGE = ("at", "from_status", "to_status", "version", "actor", "stage", "attempt", "reason")


def console() -> Console:
    """Returns a console on standard output. In a file or a pipe, it is 200 columns wide, so tables are not cut."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=200)


def echo_json(value: Any) -> None:
    """Prints one JSON document in ASCII. Every terminal can show it, and none interprets it."""
    click.echo(json.dumps(value, default=_as_json, indent=2))


def echo_list(
    rows: Sequence[Row], show: Callable[[Sequence[Row]], Table], none: str, *, as_json: bool, then: str = ""
) -> None:
    """Prints the rows of a list command: as JSON, or as the table that `show` makes, with `then` below; or `none`.

    Then it says how many rows the list leaves out; with a JSON document, on standard error.
    """
    if as_json:
        echo_json(rows)
    elif rows:
        console().print(show(rows))
        if then:
            click.echo(then)
    else:
        click.echo(none)
    if isinstance(rows, look.Listed) and rows.more:
        click.echo(_more(rows.more), err=as_json)


def _more(count: int) -> str:
    return f"… and {'' if count < look.COUNTED else 'at least '}{count:,} more; see them with --limit"


def cell(value: Any) -> Text:
    """Returns any value as text that is safe to show."""
    if value is None:
        return Text("")
    if isinstance(value, datetime):
        return Text(f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}".rjust(19, "0"))
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False)
    return Text(printable(value))


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Returns a table with numeric columns aligned to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    filled = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(filled) and all(isinstance(row[index], int | float) for row in filled)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in filled:
        made.add_row(*map(cell, row))
    return made


def _limits(row: Row) -> str:
    ways = (tuple(row[way].split(".")) if row[way] else () for way in ("partition", "priority"))
    numbers = (row[name] for name in ("concurrency", "rate", "partition_concurrency", "partition_rate"))
    return str(Limits(*numbers, *ways))


def _up_to(count: int) -> str:
    return str(count) if count < MOST_COUNTED else f"{MOST_COUNTED}+"


def status(found: dict[str, list[Row]]) -> Group:
    """Returns the tables of `outbox status`."""
    columns = ["pipeline", "status", "stage", "workflows", "ready", "scheduled", "running", "dead", "oldest waiting"]
    overview = [
        [
            *(row[column] for column in columns[:-1]),
            " ".join(filter(None, (age(row["oldest_waiting_seconds"]), _note(row)))),
        ]
        for row in found["overview"]
    ]
    released = any(row["release"] for row in found["workers"])
    workers = [
        [
            row["id"],
            row["name"],
            *([row["release"] or ""] if released else []),
            ", ".join(row["stages"]),
            "idle" if row["idle"] else "working",
            age(row["beat_seconds_ago"]),
        ]
        for row in found["workers"]
    ]
    parts: list[Any] = [table(None, columns, overview) if overview else Text("no pipeline is deployed here")]
    if found["overdue"]:
        rows = [
            [row["pipeline"], row["status"], row["kind"], _up_to(row["workflows"]), age(row["overdue_seconds"])]
            for row in found["overdue"]
        ]
        parts += [Text(), table(None, ["pipeline", "status", "waits for", "past the deadline", "for"], rows)]
    if found["effects_unknown"]:
        rows = [
            [row["pipeline"], row["stage"], _up_to(row["unknown"]), row["asked"], age(row["oldest_seconds"])]
            for row in found["effects_unknown"]
        ]
        parts += [Text(), table(None, ["pipeline", "stage", "effects unknown", "asked", "oldest"], rows)]
    if found["limits"]:
        rows = [
            [row["pipeline"], row["stage"], _limits(row), _up_to(row["running"]), _up_to(row["ready"])]
            for row in found["limits"]
        ]
        parts += [Text(), table(None, ["pipeline", "stage", "limits", "running", "ready"], rows)]
    if found["progress"]:
        rows = [
            [row["pipeline"], row["stage"], row["entity_id"], row["attempt"], age(row["seconds"]), row["progress"]]
            for row in found["progress"]
        ]
        parts += [Text(), table(None, ["pipeline", "stage", "entity", "attempt", "for", "progress"], rows)]
    if workers:
        parts += [
            Text(),
            table(None, ["worker", "process", *["release"] * released, "stages", "state", "last beat"], workers),
        ]
    else:
        parts += [Text(), Text("no worker is running")]
    if found["relays"]:
        rows = [
            [
                row["name"],
                row["target"],
                row["owner"],
                row["relayed"],
                row["parked"],
                age(row["behind_seconds"]),
                row["trouble"] if row["running"] else "not running",
            ]
            for row in found["relays"]
        ]
        columns = ["relay", "to", "process", "relayed", "parked", "behind", "trouble"]
        parts += [Text(), table(None, columns, rows)]
    if found["parked_deliveries"]:
        rows = [
            [row["consumer"], row["parked"], row["to_retry"], age(row["oldest_seconds"])]
            for row in found["parked_deliveries"]
        ]
        parts += [Text(), table(None, ["consumer", "parked", "to be tried again", "oldest"], rows)]
    return Group(*parts)


def _note(row: Row) -> str:
    """Returns why no job of a row of the overview runs, or an empty string."""
    if row["paused"]:
        return "paused"
    return "no worker" if not row["served"] and row["ready"] + row["scheduled"] else ""


def workflow(found: Row, *, traceback: bool = False) -> Group:
    """Returns what `outbox show` prints about a workflow, on request with the traceback of its dead job."""

    def more(name: str) -> list[Text]:
        return [Text(_more(found["more"][name]), style="dim")] if name in found["more"] else []

    dead_job = dict(found["dead_job"] or {})
    trace = dead_job.pop("traceback", None)
    found = {**found, "dead_job": dead_job}
    parts: list[Any] = [
        Text(str(Why(**found["why"]))),
        Text(),
        Text(printable(f"{found['entity_id']} in {found['pipeline']}: {found['current_status']}"), style="bold"),
        table(None, ["", ""], [(name, found[name]) for name in _WORKFLOW]),
        Text(),
        table(
            "history", ["at", "from", "to", "version", "actor", "stage", "attempt", "reason"],
            [[by(row, name) for name in _CHANGE] for row in found["history"]],
        ),
        *more("history"),
    ]  # fmt: skip
    asked = ["asked_at", "question", "options", "assignee", "votes", "deadline", "decision", "decided_by", "reason"]
    if not any(row["approvers"] for row in found["approvals"]):
        asked.remove("votes")
    found["approvals"] = [{**row, "votes": _votes(row["approvers"], row["voted"])} for row in found["approvals"]]
    for title in ("job", "dead_job", "waits_for", "parent"):
        if found[title]:
            parts += [Text(), table(title.replace("_", " "), ["", ""], found[title].items())]
    for title, columns in (
        ("actions", ["at", "action", "stage", "actor", "reason"]),
        ("checkpoints", ["made_at", "stage", "key", "attempt", "result"]),
        ("effects", ["started_at", "stage", "name", "state", "known_by", "calls", "result", "error"]),
        ("approvals", asked),
        ("children", ["pipeline", "entity_id", "status"]),
        ("signals", ["sent_at", "name", "payload", "signal_id", "sent_by", "taken_at"]),
    ):
        if found[title]:
            rows = [[by(row, name) for name in columns] for row in found[title]]
            parts += [Text(), table(title, columns, rows), *more(title)]
    if found["messages"]:
        columns = ["created_at", "topic", "key", "payload", "message_id"]
        rows = [[row[name] for name in columns] for row in found["messages"]]
        parts += [Text(), table("messages", columns, rows), *more("messages")]
    if traceback:
        told = trace or ("none is kept" if dead_job else "no job is dead")
        parts += [Text(), Text("traceback", style="bold"), *(Text(printable(line)) for line in told.split("\n"))]
    return Group(*parts)


def by(row: Row, name: str) -> Any:
    """Returns a field of a row. To the name of a person who acted, it adds the login if the two differ."""
    said, login = row[name], row.get("login")
    if name not in ("actor", "decided_by", "sent_by") or not said or login in (None, said) or _ENGINE.match(said):
        return said
    return f"{said} ({login})"


def dead(rows: Iterable[Row]) -> Table:
    """Returns the table of `outbox dead`."""
    now = datetime.now(UTC)
    columns = ["pipeline", "entity", "stage", "attempts", "age", "error"]
    return table(
        None, columns,
        [[row["pipeline"], row["entity_id"], row["stage"], row["attempts"], age((now - row["died_at"]).total_seconds()),
          row["error"]] for row in rows],
    )  # fmt: skip


def errors(rows: Iterable[Row]) -> Table:
    """Returns the table of `outbox dead --kinds`."""
    now = datetime.now(UTC)
    columns = ["pipeline", "stage", "dead", "first", "last", "kind of error"]
    return table(
        None, columns,
        [[row["pipeline"], row["stage"], row["jobs"], age((now - row["first_at"]).total_seconds()),
          age((now - row["last_at"]).total_seconds()), row["kind"]] for row in rows],
    )  # fmt: skip


def workflows(rows: Iterable[Row]) -> Table:
    """Returns the table of `outbox list`."""
    now = datetime.now(UTC)
    columns = ["pipeline", "entity", "status", "for", "state", "waits for", "assignee", "attempt", "error"]
    return table(
        None, columns,
        [[row["pipeline"], row["entity_id"], row["status"], age((now - row["since"]).total_seconds()), row["state"],
          row["waits_for"], row["assignee"], row["attempt"], row["error"]] for row in rows],
    )  # fmt: skip


def schedules(rows: Iterable[Row]) -> Table:
    """Returns the table of `outbox schedules`."""
    columns = ["pipeline", "schedule", "cron", "timezone", "missed ticks", "next", "last", "attempts", "error"]
    return table(
        None, columns,
        [[row["pipeline"], row["schedule"], row["cron"], row["timezone"], "catch up" if row["catch_up"] else "skip",
          f"in {age(-row['late_seconds'])}" if row["late_seconds"] < 0 else f"{age(row['late_seconds'])} late",
          row["last_at"], row["attempts"], row["error"]] for row in rows],
    )  # fmt: skip


def _votes(approvers: dict[str, int] | None, votes: Sequence[Row]) -> str:
    """Returns which votes a question has, and which it needs."""
    if approvers is None:
        return ""
    needed = ", ".join(f"{number} of {group}" for group, number in sorted(approvers.items()))
    told = [f"{vote['option']} by {vote['person']}" for vote in votes]
    return f"{', '.join(told) or 'none'}; needs {needed}"


def approvals(rows: Sequence[Row]) -> Table:
    """Returns the table of `outbox approvals`: with ids where a workflow has several, and votes if any count."""
    now = datetime.now(UTC)
    columns: dict[str, Callable[[Row], Any]] = {
        "pipeline": lambda row: row["pipeline"],
        "entity": lambda row: row["entity_id"],
        "id": lambda row: str(row["id"]),
        "question": lambda row: row["question"],
        "options": lambda row: ", ".join(sorted(row["options"])),
        "assignee": lambda row: row["assignee"],
        "votes": lambda row: _votes(row["approvers"], [vote for vote in row["votes"] if vote["counts"]]),
        "asked": lambda row: age((now - row["asked_at"]).total_seconds()),
        "deadline in": lambda row: age((row["deadline"] - now).total_seconds()) if row["deadline"] else "",
        "data": lambda row: f"changed since, now {row['shown']}" if row["changed"] else row["data"],
    }
    if len({(row["pipeline"], row["entity_id"]) for row in rows}) == len(rows):
        del columns["id"]
    if not any(row["approvers"] for row in rows):
        del columns["votes"]
    return table(None, list(columns), [[value(row) for value in columns.values()] for row in rows])


def effects(rows: Iterable[Row]) -> Table:
    """Returns the table of `outbox effects`."""
    now = datetime.now(UTC)
    columns = ["pipeline", "entity", "stage", "effect", "known", "by", "calls", "age", "error"]
    return table(
        None, columns,
        [[row["pipeline"], row["entity_id"], row["stage"], row["name"], row["state"], row["known_by"], row["calls"],
          age((now - row["started_at"]).total_seconds()), row["error"]] for row in rows],
    )  # fmt: skip


def delegations(rows: Iterable[Row]) -> Table:
    """Returns the table of `outbox delegations`."""
    now = datetime.now(UTC)
    columns = ["votes", "in place of", "until (UTC)", "ends in", "groups", "reason"]
    return table(None, columns, [
        [row["to_person"], row["from_person"], row["until"], age((row["until"] - now).total_seconds()),
         ", ".join(row["groups"] or []), row["reason"]] for row in rows])  # fmt: skip


def parked(rows: Iterable[Row]) -> Table:
    """Returns the table of `outbox parked`. `times` is how often a consumer got the message and parked it."""
    now = datetime.now(UTC)
    columns = ["parked by", "id", "topic", "key", "message", "age", "times", "reason", ""]
    return table(
        None, columns,
        [[look.parked_by(row), row["id"], row["topic"], row["key"], row["message_id"],
          age((now - row["parked_at"]).total_seconds()), row["deliveries"], row["reason"],
          "to be tried again" if row["retry"] else "waits for a queue" if row["waits_until"] else ""] for row in rows],
    )  # fmt: skip


def findings(found: Iterable[Finding]) -> Table:
    """Returns the table of `outbox doctor`."""
    signs = {"ok": Text("✔", "green"), "warn": Text("!", "yellow"), "bad": Text("✘", "bold red")}
    made = Table(box=None, show_header=False, pad_edge=False)
    for finding in found:
        text = Text(printable(finding.what))
        if finding.do:
            text.append(f"\n→ {printable(finding.do)}", "dim")
        made.add_row(signs[finding.level], text)
    return made


def watch(draw: Callable[[], RenderableType]) -> None:
    """Redraws every second until Ctrl-C, which raises KeyboardInterrupt."""
    with Live(draw(), console=console(), refresh_per_second=4) as live:
        while True:
            time.sleep(1)
            live.update(draw())


def _as_json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
