"""Definitions are checked when they are made: a wrong one is refused by name, before any database."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from kit.pipelines import Post, make_posts
from outbox import Backoff, DefinitionError, InvalidInput, Pipeline, Retry
from outbox.definition.routes import Route

NAMES = [
    "",
    " x",
    "x ",
    "a" * 64,
    "a\nb",
    "a\0b",
    "'; DROP TABLE x; --",
    "%s",
    "{}",
    "\U0001f600",
    "a\u202eb",
    None,
    5,
    b"x",
]


def work(run: Any) -> None: ...


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_could_be_taken_for_something_else_is_refused(name: Any) -> None:
    with pytest.raises(DefinitionError, match="pipeline"):
        Pipeline(name, initial="NEW")
    if name is not None:  # that of a pipeline with schedules only
        with pytest.raises(DefinitionError, match="initial status"):
            Pipeline("p", initial=name)
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW")
    for wrong in ({"name": name}, {"on": name}, {"to": {name}}):
        with pytest.raises(DefinitionError):
            pipeline.stage(**{"name": "work", "on": "NEW", "to": "DONE", **wrong})
    with pytest.raises(DefinitionError):
        pipeline.allow("NEW", to={name})


def test_names_differ_by_case() -> None:
    pipeline: Pipeline[Any] = Pipeline("p", initial="foo")
    pipeline.stage("work", on="foo", to="Foo")(work)
    pipeline.stage("Work", on="Foo", to="FOO")(work)
    assert set(pipeline.routes()) == {"foo", "Foo", "FOO"}


def test_times_of_attempts_are_seconds_or_timedeltas() -> None:
    assert Backoff(first=timedelta(milliseconds=500), max=timedelta(minutes=5)) == Backoff(first=0.5, max=300)
    assert Backoff(first=timedelta(seconds=2), jitter=0).delay(1) == pytest.approx(2)
    assert Retry(after=timedelta(minutes=1)).after == Retry(after=60).after == 60
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW")
    pipeline.stage("work", on="NEW", to="DONE", timeout=timedelta(seconds=90))(work)
    pipeline.every("* * * * *", name="tick", timeout=timedelta(seconds=90))(work)
    pipeline.on_change("DONE", name="tell", timeout=timedelta(seconds=90))(work)
    assert pipeline.stages["work"].timeout == pipeline.schedules["tick"].timeout == 90
    assert pipeline.reactions["tell"].stages["tell"].timeout == 90


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "1", None, True, 1e300, timedelta(days=-1), timedelta.max])
def test_times_and_factors_out_of_range_are_refused(value: Any) -> None:
    for field in ("first", "max"):
        with pytest.raises(DefinitionError, match=f"Backoff {field}"):
            Backoff(**{field: value})
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW")
    with pytest.raises(DefinitionError, match="timeout"):
        pipeline.stage("work", on="NEW", to="DONE", timeout=value)
    with pytest.raises(DefinitionError, match="timeout"):
        pipeline.every("* * * * *", name="tick", timeout=value)(work)


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, 10**9, math.nan])
def test_attempts_and_concurrency_out_of_range_are_refused(value: Any) -> None:
    with pytest.raises(DefinitionError, match="attempts"):
        Backoff(attempts=value)
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW")
    with pytest.raises(DefinitionError, match="concurrency"):
        pipeline.stage("work", on="NEW", to="DONE", concurrency=value)
    with pytest.raises(DefinitionError, match="batch"):
        pipeline.stage("work", on="NEW", to="DONE", transaction=True, batch=value)


def test_a_batch_is_for_transactions() -> None:
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW")
    with pytest.raises(DefinitionError, match="batch=5 is for stages with transaction=True"):
        pipeline.stage("work", on="NEW", to="DONE", batch=5)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "soon", 1e12, timedelta(seconds=-1), timedelta.max])
def test_retry_after_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput, match="after"):
        Retry(after=value)


def test_backoff_grows_to_its_maximum_and_ends_with_the_attempts() -> None:
    backoff = Backoff(first=1, factor=2, max=10, attempts=6, jitter=0)
    assert [backoff.delay(attempt) for attempt in range(1, 7)] == [
        pytest.approx(1), pytest.approx(2), pytest.approx(4), pytest.approx(8), 10, None,
    ]  # fmt: skip
    assert Backoff(first=1, factor=1000, max=60, attempts=10_000, jitter=0).delay(9_999) == 60
    assert Backoff(first=0, attempts=3).delay(1) == 0
    jittered = {Backoff(first=100, jitter=0.5).delay(1) for _ in range(50)}
    assert all(delay is not None and 50 <= delay <= 100 for delay in jittered)
    assert len(jittered) > 10


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"to": ()}, "to= is empty"),
        ({"to": "NEW"}, "is not a change"),
        ({"on": "END"}, "final"),
        ({"running": "DONE"}, "status of its own"),
        ({"running": "NEW"}, "status of its own"),
        ({"name": "taken", "on": "OTHER"}, "two stages named"),
        ({"on": "TAKEN"}, "taken by two stages"),
        ({"running": "TAKEN"}, "taken by two stages"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(wrong: dict[str, Any], words: str) -> None:
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"END"})
    pipeline.stage("taken", on="TAKEN", to="DONE")(work)
    with pytest.raises(DefinitionError, match=words):
        pipeline.stage(**{"name": "work", "on": "NEW", "to": "DONE", **wrong})


def test_a_handler_must_be_a_function_that_returns() -> None:
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW")

    async def generator(run: Any) -> Any:
        yield 1

    for handler in (5, generator):
        with pytest.raises(DefinitionError, match="handler"):
            pipeline.stage("work", on="NEW", to="DONE")(handler)  # type: ignore[type-var]


def test_final_means_final() -> None:
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"END"})
    with pytest.raises(DefinitionError, match="final"):
        pipeline.allow("END", to="NEW")
    with pytest.raises(DefinitionError, match="not the string"):
        Pipeline("p", initial="NEW", final="END")


def test_data_must_be_a_type_that_pydantic_validates() -> None:
    with pytest.raises(DefinitionError, match="is not a type that pydantic validates"):
        Pipeline("p", data=object(), initial="NEW")


def test_a_definition_says_what_is_deployed() -> None:
    posts = make_posts()
    assert posts.routes()["WAITING_FOR_REVIEW"] == Route(None)
    assert posts.routes()["ENRICHED"] == Route("decide")
    assert posts.routes()["COMPLETED"] == Route(None, final=True)
    assert ("WAITING_FOR_REVIEW", "REJECTED") in posts.legal_changes()
    assert ("RECEIVED", "COMPLETED") not in posts.legal_changes()
    assert posts.load(posts.dump(Post(content="x"))) == Post(content="x")


def test_a_stage_may_take_several_statuses() -> None:
    pipeline: Pipeline[dict[str, Any]] = Pipeline("p", initial="NEW", final={"DONE"})
    pipeline.stage("agent", on={"NEW", "ANSWERED"}, to={"ASKED", "DONE"}, running="WORKING")(work)
    pipeline.allow("ASKED", to="ANSWERED")
    assert {status: route.stage for status, route in pipeline.routes().items() if route.stage} == {
        "NEW": "agent", "ANSWERED": "agent", "WORKING": "agent",
    }  # fmt: skip
    assert pipeline.legal_changes() == {
        ("ASKED", "ANSWERED"), ("NEW", "WORKING"), ("ANSWERED", "WORKING"), ("WORKING", "ASKED"), ("WORKING", "DONE"),
        ("NEW", "ASKED"), ("NEW", "DONE"), ("ANSWERED", "ASKED"), ("ANSWERED", "DONE"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"on": set(), "to": "DONE"}, "on= is empty"),
        ({"on": ["A", "B"], "to": "B"}, "from B to itself is not a change"),
        ({"on": {"A", "DONE"}, "to": "B"}, "takes DONE, which is final"),
        ({"on": {"A", "TAKEN"}, "to": "B"}, "status TAKEN is taken by two stages"),
        ({"on": {"A", "B"}, "to": "DONE", "running": "B"}, "must be a status of its own"),
        ({"on": 5, "to": "DONE"}, "must be statuses, not 5"),
    ],
)
def test_several_statuses_that_make_no_sense_are_refused(wrong: dict[str, Any], words: str) -> None:
    pipeline: Pipeline[dict[str, Any]] = Pipeline("p", initial="NEW", final={"DONE"})
    pipeline.stage("other", on="TAKEN", to="DONE")(work)
    with pytest.raises(DefinitionError, match=words):
        pipeline.stage("work", **wrong)(work)
