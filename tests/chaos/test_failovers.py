"""A short run of the failovers: one of them, as the long run does a hundred."""

from __future__ import annotations

from pathlib import Path

from kit.replication import FAILOVERS

from . import failovers


def test_a_failover_loses_nothing_that_was_acknowledged(amqp: str, tmp_path: Path) -> None:
    """The one that asks most: what was not confirmed is visible before the primary is lost, and clients ask again."""
    result = failovers.run(1, amqp=amqp, folder=tmp_path, kinds=("behind",), clients=2)
    assert result.ok, failovers.table(result)
    assert sum(result.acknowledged.values()) > 0


def test_every_way_to_fail_over_is_in_the_run() -> None:
    assert {*failovers.KINDS, *failovers.LOSING} == set(FAILOVERS), "others lose what was acknowledged"


def test_the_table_tells_what_was_lost_and_what_did_not_come_back() -> None:
    back = dict.fromkeys([*failovers.WORKERS, "consumer"], 1.0)
    one, other = failovers.Failover("kill", 1.0, back=back, missing=["relay"]), failovers.Failover("freeze", 2.0)
    result = failovers.Result([one, other], lost={"a": "kill"}, twice={"b": "freeze"})
    result.acknowledged.update({"kill": 1_000, "before": 5})
    kill, freeze, everything = failovers.table(result).splitlines()[-3:]
    assert kill.split(" | ")[:5] == ["| kill", "1", "1,000", "1", "0"]
    assert freeze.split(" | ")[:5] == ["| freeze", "1", "0", "0", "1"]
    assert everything.split(" | ")[1:5] == ["2", "1,005", "1", "1"]
    assert not result.ok
