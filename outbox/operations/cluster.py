"""Looks at what decides whether a failover keeps what was acknowledged: the hosts of the DSN, standbys, commits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ..database import statements
from ..database.hosts import Standing
from ..database.session import tuples
from ..texts import number, printable
from .finding import Finding

SQL = statements.load("cluster")

WAITED = 10.0
"""Seconds that a commit may wait for a standby: one that is there answers in milliseconds."""

Conn = psycopg.Connection[Any]


def hosts(dsn: str, standings: Sequence[Standing]) -> Iterator[Finding]:
    """Yields what is found when each host of a DSN has been asked; nothing for a single host."""
    if len(standings) < 2:
        return
    writing = [each for each in standings if each.takes_writes]
    for each in standings:
        if each.trouble:
            yield _silent(each)
        elif each.in_recovery:
            yield Finding("ok", f"{each.host} is a standby")
        elif each.read_only:
            yield Finding(
                "warn", f"{each.host} is no standby, and takes no writes",
                "it is fenced, or default_transaction_read_only is on: look whether that is meant",
            )  # fmt: skip
    if not writing:
        yield Finding(
            "bad", "none of the hosts takes writes: everything waits", "promote a standby, or start the primary"
        )
    elif len({each.server for each in writing}) == 1:
        yield Finding("ok", f"{writing[0].host} is the primary, on timeline {writing[0].timeline}")
    else:
        yield _several(writing)
    if "target_session_attrs" not in conninfo_to_dict(dsn) and not os.environ.get("PGTARGETSESSIONATTRS"):
        yield Finding(
            "warn", "the DSN has several hosts and no target_session_attrs: programs that connect with it may be given "
            "a standby",
            "add target_session_attrs=read-write to it",
        )  # fmt: skip


def look(conn: Conn) -> Iterator[Finding]:
    """Yields what is found on a primary: how its commits and its standbys are."""
    for names, commits, standbys, sees_all in tuples(conn, SQL["replication"]):
        yield from _weaker(conn, names, commits)
        if not standbys:
            if names:
                yield _none_synchronous(names)
        elif names and not sees_all:
            yield Finding(
                "warn", "this role sees neither which standbys are synchronous nor which sessions wait for them",
                "GRANT pg_read_all_stats TO it, or ask as another role",
            )  # fmt: skip
        else:
            yield from _standbys(tuples(conn, SQL["standbys"]), names)
        count, longest = tuples(conn, SQL["waiting_for_standby"], long=WAITED)[0]
        if count:
            yield Finding(
                "bad", f"commits wait for a synchronous standby: {number(count, 'session')}, for up to {longest:.0f} s",
                "start the standby; or, if it is gone for good, take it out of synchronous_standby_names",
            )  # fmt: skip


def _silent(each: Standing) -> Finding:
    told = f"{each.host}: {each.trouble}"
    if each.starting:
        return Finding("warn", told, "it is starting or stopping: look at its log if that lasts")
    if each.unknown:
        return Finding("warn", told, "correct the name in the DSN, or take it out")
    if each.refuses:
        return Finding("warn", told, "let it take this DSN as the others do: after a failover it may be the primary")
    return Finding("warn", told, "start it; or, if it is gone for good, take it out of the DSN")


def _several(writing: Sequence[Standing]) -> Finding:
    """Returns what to do about several servers that take writes: two primaries, unless they are two databases."""
    told = " and ".join(f"{each.host} (timeline {each.timeline})" for each in writing)
    if len({each.system for each in writing}) > 1:
        return Finding(
            "bad", f"the DSN leads to several databases: {told} are of different systems",
            "let it name the hosts of one cluster only; processes stay with the first one that they found",
        )  # fmt: skip
    highest = max(each.timeline for each in writing)
    (first, *others) = [each for each in writing if each.timeline == highest]
    if others:
        return Finding(
            "bad", f"there are two primaries: {told}. Processes stay where they are, as neither is the later one",
            "find out which one is wrong, and stop it: what it has taken is not in the other one",
        )  # fmt: skip
    wrong = ", ".join(str(each.host) for each in writing if each is not first)
    return Finding(
        "bad", f"there are two primaries: {told}. Processes that have both in their DSN work on {first.host}",
        f"stop {wrong}: it is a former primary that came back, and what it has taken since is not in the other one",
    )  # fmt: skip


def _standbys(standbys: Sequence[tuple[str, str]], names: str) -> Iterator[Finding]:
    behind = ", ".join(printable(name) for name, state in standbys if state == "async" or not names)
    if names and not any(state in ("sync", "quorum") for _, state in standbys):
        yield _none_synchronous(names)
    elif names and behind:
        yield Finding(
            "ok", f"no commit waits for standby {behind}: after a failover to it, the last ones may be missing"
        )
    elif behind:
        yield Finding(
            "warn", f"no commit waits for a standby ({behind}): a failover loses the last ones",
            "set synchronous_standby_names, if what was acknowledged must survive a failover",
        )  # fmt: skip


def _none_synchronous(names: str) -> Finding:
    return Finding(
        "bad",
        f"synchronous_standby_names is {printable(names)}, and no such standby is connected: commits wait",
        "start the standby; or, if it is gone for good, take it out of synchronous_standby_names",
    )  # fmt: skip


def _weaker(conn: Conn, names: str, commits: str) -> Iterator[Finding]:
    loses = {"off": "a crash loses the last commits", "local": "a failover loses the last commits"}
    found = [("this session", commits)] if commits == "local" else []
    for who, setting in [*found, *tuples(conn, SQL["weaker_commits"])]:
        kind = "local" if setting == "local" else "off"
        if kind == "off" or names:
            yield Finding(
                "warn", f"synchronous_commit is {kind} for {printable(who)}: {loses[kind]}, which breaks guarantee G1",
                "set synchronous_commit = on there",
            )  # fmt: skip
