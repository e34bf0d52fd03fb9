"""What the command sets in the process of a worker, which is its own."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from kit.pipelines import Conn, deployed, drain
from outbox.commands import worker


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    before = gc.get_threshold()
    gc.unfreeze()  # what tests/conftest.py has frozen
    yield
    gc.enable()
    gc.freeze()
    gc.set_threshold(*before)


def test_the_garbage_collector_passes_over_what_is_loaded_and_looks_less_often() -> None:
    worker._collect_rarely()
    assert gc.isenabled()
    assert gc.get_threshold() == worker.COLLECT_AFTER
    assert gc.get_freeze_count() > 10_000


@pytest.mark.parametrize("chosen", [gc.disable, lambda: gc.set_threshold(5_000), lambda: gc.set_threshold(0)])
def test_what_the_application_has_set_stays(chosen: Callable[[], None]) -> None:
    chosen()
    before = gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()
    worker._collect_rarely()
    assert (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()) == before


def test_an_embedded_worker_leaves_the_garbage_collector_alone(conn: Conn, dsn: str) -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    drain(deployed(conn), dsn)
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
