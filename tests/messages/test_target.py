"""What every target has: whether it may send, and what keeps messages from going out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import pytest

from outbox.messages.target import LEASE, Lease, Outgoing, Parked, Target


class Nowhere(Target):
    async def deliver(self, messages: Sequence[Outgoing], stopped_keys: Mapping[str, bool]) -> Parked:
        return {}

    async def close(self) -> None: ...


@pytest.mark.parametrize(("ago", "held"), [(0, True), (LEASE / 2 - 1, True), (LEASE / 2, False), (LEASE, False)])
def test_a_lease_is_held_for_half_its_time_after_the_name_was_confirmed(ago: float, held: bool) -> None:
    lease = Lease()
    lease.confirm(time.monotonic() - ago)
    assert lease.is_held() == held


def test_a_lease_that_was_never_confirmed_is_not_held() -> None:
    assert not Lease().is_held()


def test_a_targets_trouble_is_logged_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "outbox.relay")
    target = Nowhere("nowhere")
    for trouble in (None, "the broker\nis away", "the broker\nis away", None, None):
        target.trouble.set(trouble)
    assert [record.getMessage() for record in caplog.records] == [
        r"the broker\nis away; messages wait in the log",
        "the target accepts messages again",
    ]
