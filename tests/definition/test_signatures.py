"""A function that can't be called with what it will get is refused when it is defined, by its name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from outbox import Consumer, DefinitionError, Pipeline, Run, SyncRun


def nothing() -> None: ...
async def two(run: Any, more: Any) -> None: ...
def keyword(*, run: Any) -> None: ...
async def nothing_async() -> None: ...
def one(run: Any) -> None: ...
def one_and_default(run: Any, more: int = 5, *, other: int = 6) -> None: ...
def star(*runs: Any) -> None: ...
async def one_async(run: Run[Any]) -> None: ...
def of_list(runs: list[Run[Any]]) -> None: ...
def of_run(run: SyncRun[Any]) -> None: ...
def of_later(run: Later) -> None: ...  # noqa: F821


class Handler:
    def __call__(self, run: Any) -> None: ...
    def nothing(self) -> None: ...
    def one(self, run: Any) -> None: ...


WRONG = [nothing, two, keyword, nothing_async, Handler().nothing, Handler.one, functools.partial(one, 5), lambda: None]
RIGHT = [one, one_and_default, star, one_async, Handler(), Handler().one, functools.partial(two, 5), lambda run: None,
         of_later, print]  # fmt: skip


def stage(function: Callable[..., Any], **options: Any) -> Pipeline[Any]:
    posts: Pipeline[Any] = Pipeline("posts", initial="NEW", final={"DONE"})
    decorator: Any = posts.stage("act", on="NEW", to="DONE", **options)
    assert decorator(function) is function
    return posts


def every(function: Callable[..., Any]) -> Pipeline[Any]:
    nightly = Pipeline("nightly")
    decorator: Any = nightly.every("0 3 * * *", name="tick")
    decorator(function)
    return nightly


def on_change(function: Callable[..., Any]) -> Pipeline[Any]:
    posts: Pipeline[Any] = Pipeline("posts", initial="NEW", final={"DONE"})
    decorator: Any = posts.on_change("DONE", name="react")
    decorator(function)
    return posts


def consumer(function: Callable[..., Any]) -> Consumer:
    return Consumer("q", function, dsn="dbname=x", amqp_url="amqp://localhost/")


@pytest.mark.parametrize("define", [stage, every, on_change, consumer])
def test_it_must_take_one_value(define: Callable[..., Any]) -> None:
    takes = {stage: "a Run", every: "a Tick", on_change: "a Run", consumer: "a Delivery"}[define]
    for wrong in WRONG:
        with pytest.raises(DefinitionError, match=f"must take {takes}, and nothing else") as refused:
            define(wrong)
        name = getattr(wrong, "__qualname__", "partial")
        assert name in str(refused.value)
    for right in RIGHT:
        define(right)


def test_the_message_shows_the_function_as_it_is() -> None:
    with pytest.raises(DefinitionError) as refused:
        stage(two)
    assert str(refused.value) == "stage act: two(run, more) must take a Run, and nothing else"


def test_a_handler_of_a_batch_takes_a_list_and_no_other_does() -> None:
    batch = {"transaction": True, "batch": 5}
    stage(of_list, **batch)
    stage(one, **batch)
    stage(of_run)
    for wrong in (of_run, one_async, nothing):
        with pytest.raises(DefinitionError, match="must take a list of Runs, because of batch="):
            stage(wrong, **batch)
    with pytest.raises(DefinitionError, match="of_list must take a Run"):
        stage(of_list)


def test_a_refused_handler_leaves_the_stage_undefined() -> None:
    posts: Pipeline[Any] = Pipeline("posts", initial="NEW", final={"DONE"})
    decorator: Any = posts.stage("act", on="NEW", to="DONE")
    with pytest.raises(DefinitionError):
        decorator(nothing)
    assert posts.stages == {}
    decorator(one)
    assert list(posts.stages) == ["act"]
