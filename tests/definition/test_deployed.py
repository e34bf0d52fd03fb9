"""What is read of a deployed pipeline is what the code has declared, so that a second look finds no difference."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from outbox import Backoff, NotDeployed, Pipeline
from outbox.definition import deploy
from outbox.definition.deployed import Definition, require

Conn = psycopg.Connection[Any]


def pipeline(*, attempts: int = 3) -> Pipeline[Any]:
    """Returns a pipeline that declares everything that can be deployed."""
    p: Pipeline[Any] = Pipeline("all", initial="NEW", final={"DONE", "LATE"})
    p.stage(
        "work", on="NEW", running="WORKING", to="WAITING", retry=Backoff(attempts=attempts), concurrency=5,
        rate="10/second", partition="data.tenant", priority="data.urgent",
    )(lambda run: None)  # fmt: skip
    p.allow("WAITING", to="DONE")
    p.deadline("WAITING", days=2, to="LATE")
    p.every("0 5 * * *", timezone="Europe/Berlin", missed="catch up", name="nightly")(lambda tick: None)
    p.on_change("DONE", name="tell")(lambda run: None)
    return p


def test_what_is_read_is_what_was_declared(conn: Conn) -> None:
    deploy.deploy(conn, pipeline())
    there = Definition.read(conn, "all")
    assert there.changes_to(Definition.of(pipeline())) == []
    assert there.schedules == Definition.of(pipeline()).schedules
    assert there.limits == Definition.of(pipeline()).limits
    assert there.changes_to(Definition.of(pipeline(attempts=4))) == ["stage work: attempts 3 -> 4"]


def test_a_pipeline_that_was_never_deployed_is_not_to_be_worked_on(conn: Conn) -> None:
    with pytest.raises(NotDeployed, match="outbox deploy"):
        require(conn, pipeline(), ["work"])
    deploy.deploy(conn, pipeline())
    require(conn, pipeline(), ["work"])
