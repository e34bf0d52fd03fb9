"""Effects: a call that must not happen twice is made once, or looked up, or asked about. See tests/faults for kills."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

import outbox as api
from kit.commands import Outbox
from kit.pipelines import LATER, QUICK, Post, deployed, drain, one_stage, status_of, value
from kit.servers import wait_for
from outbox import Ask, Backoff, Done, NotDone, NothingAsked, Pipeline, Reject, Retry, Run, TooLate, approvals, decide
from outbox.engine import effects
from outbox.engine.apart import ALL
from outbox.engine.checkpoint import MAX_RESULT
from outbox.engine.retention import SQL as RETENTION

Conn = psycopg.Connection[Any]
Connect = Callable[..., Conn]
ONCE = Backoff(attempts=1)


class Receipt(BaseModel):
    id: str


bank: list[str] = []
"""The keys of the payments that have been made."""


@pytest.fixture(autouse=True)
def empty_bank() -> None:
    bank.clear()


async def charge(cents: int, *, idempotency_key: str) -> Receipt:
    bank.append(idempotency_key)
    return Receipt(id=f"r{len(bank)} of {cents}")


async def charge_and_fail(cents: int, *, idempotency_key: str) -> Receipt:
    await charge(cents, idempotency_key=idempotency_key)
    raise TimeoutError("the bank has not answered")


def once_failing(function: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """Returns a function that does what this one does, and raises the first time."""
    failed: list[bool] = []

    async def failing(*args: Any, idempotency_key: str) -> Receipt:
        made: Receipt = await function(*args, idempotency_key=idempotency_key)
        if not failed:
            failed.append(True)
            raise error
        return made

    return failing


def paying(conn: Conn, dsn: str, handler: Any, *, transaction: bool = False, **options: Any) -> Pipeline[Any]:
    """Deploys a stage, submits "a", and runs until nothing is due, retries included."""
    pipeline = deployed(conn, one_stage(handler, transaction=transaction, **options))
    pipeline.submit(conn, "a", Post())
    run(conn, dsn, pipeline)
    return pipeline


def run(conn: Conn, dsn: str, pipeline: Pipeline[Any]) -> None:
    """Runs until every job is done, dead, or waits for a person."""
    drain(pipeline, dsn)
    while value(conn, "SELECT count(*) FROM outbox.jobs WHERE due IS NOT NULL AND stage IS NOT NULL"):
        drain(pipeline, dsn)


def state(conn: Conn, name: str = "charge") -> str:
    return str(value(conn, "SELECT outbox.effect_state(e) FROM outbox.effects AS e WHERE e.name = %s", name))


def unknown(policy: Any, seen: list[Any] | None = None, function: Any = None) -> Any:
    """Returns a handler whose first call raises after it has happened."""
    failing = function or once_failing(charge, TimeoutError("no answer"))

    async def work(run: Run[Post]) -> None:
        receipt = await run.effect("charge", failing, 900, on_unknown=policy)
        if seen is not None:
            seen.append(receipt)

    return work


# What is known is not repeated.


@pytest.mark.parametrize("transaction", [False, True])
def test_an_effect_happens_once_over_all_attempts(conn: Conn, dsn: str, transaction: bool) -> None:
    seen: list[Any] = []

    async def work(run: Run[Post]) -> None:
        seen.append(await run.effect("charge", charge, 900))
        if run.attempt < 3:
            raise ValueError("after the call")

    paying(conn, dsn, work, transaction=transaction)
    assert seen == [Receipt(id="r1 of 900")] * 3
    assert status_of(conn, "a") == "DONE"
    kept = conn.execute("SELECT name, state, calls, attempt, known_by, result FROM outbox.effects").fetchall()
    assert kept == [("charge", "done", 1, 1, "call", {"id": "r1 of 900"})]


@pytest.mark.parametrize("transaction", [False, True])
@pytest.mark.parametrize("looked_up", [False, True])
def test_a_large_result_is_a_blob_that_goes_with_the_work(
    conn: Conn, dsn: str, outbox: Outbox, looked_up: bool, transaction: bool
) -> None:
    large = ["☃" * 1_000] * 400  # 1.2 MB
    seen: list[Any] = []

    def report() -> list[str]:
        bank.append("made")
        if looked_up:
            raise TimeoutError
        return large

    async def work(run: Run[Post]) -> None:
        with suppress(TimeoutError):
            seen.append(await run.effect("report", report, on_unknown=lambda key: Done(large)))
        if run.attempt < 3:
            raise ValueError("after the call")

    paying(conn, dsn, work, transaction=transaction)
    assert (status_of(conn, "a"), len(bank)) == ("DONE", 1)
    assert seen == [large] * (2 if looked_up else 3)
    assert value(conn, "SELECT result IS NULL AND state = 'done' FROM outbox.effects")
    digest = value(conn, "SELECT encode(blob, 'hex') FROM outbox.effects")
    assert value(conn, "SELECT convert_from(outbox.blob(%s), 'UTF8')::jsonb", digest) == large
    (shown,) = outbox("show", "a", "--json").json["effects"]
    assert shown["result"] == {"blob": digest}

    conn.execute("SELECT outbox.blob_uses_sweep(-1, 100), outbox.blobs_sweep(-1, 100)")
    assert value(conn, "SELECT outbox.blob(%s) IS NULL", digest), "no work has it any more"
    assert outbox("show", "a", "--json").json["effects"] == [shown]


@pytest.mark.parametrize("transaction", [False, True])
def test_plain_handlers_have_it_without_await(conn: Conn, dsn: str, transaction: bool) -> None:
    def pay(cents: int) -> int:
        bank.append("plain")
        return cents

    def work(run: Run[Post]) -> None:
        assert run.effect("pay", pay, 900) == 900  # type: ignore[comparison-overlap]
        if run.attempt == 1:
            raise ValueError("after the call")

    paying(conn, dsn, work, transaction=transaction)
    assert (bank, status_of(conn, "a")) == (["plain"], "DONE")


def test_its_key_is_the_same_in_every_attempt_and_another_one_for_each_effect(conn: Conn, dsn: str) -> None:
    keys: list[str] = []

    async def note(key: str) -> NotDone:
        keys.append(key)
        return NotDone()

    failing = once_failing(charge, OSError())

    async def work(run: Run[Post]) -> None:
        keys.append(run.effect_key("charge"))
        await run.effect("charge", failing, 1, on_unknown=note)
        await run.effect("other", charge, 2)

    pipeline = paying(conn, dsn, work)
    id_ = pipeline.get(conn, "a").id  # type: ignore[union-attr]
    assert set(keys) == {f"{id_}:1:charge"}
    assert bank == [f"{id_}:1:charge", f"{id_}:1:charge", f"{id_}:1:other"]


def test_a_dead_job_that_is_retried_is_the_same_work(conn: Conn, dsn: str) -> None:
    tries: list[int] = []

    async def work(run: Run[Post]) -> None:
        await run.effect("charge", charge, 900)
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("dead")

    pipeline = paying(conn, dsn, work, retry=ONCE)
    assert api.retry(conn, pipeline, "a")
    run(conn, dsn, pipeline)
    assert (len(bank), status_of(conn, "a")) == (1, "DONE")


def test_another_visit_to_the_stage_is_another_effect(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Post] = Pipeline("p", data=Post, initial="NEW", final={"DONE"})

    @pipeline.stage("pay", on="NEW", to="PAID")
    async def pay(run: Run[Post]) -> None:
        await run.effect("charge", charge, 900)

    pipeline.allow("PAID", to={"NEW", "DONE"})
    deployed(conn, pipeline).submit(conn, "a", Post())
    drain(pipeline, dsn)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'NEW'")
    drain(pipeline, dsn)
    assert len(set(bank)) == 2


# What is unknown: the function has raised, or the process was gone.


def test_what_a_function_raises_leaves_the_effect_unknown_and_a_person_is_asked(conn: Conn, dsn: str) -> None:
    seen: list[Any] = []
    pipeline = paying(conn, dsn, unknown("ask", seen))
    assert (status_of(conn, "a"), state(conn), len(bank)) == ("NEW", "asked", 1)
    (asked,) = approvals(conn)
    assert asked.question == 'Has effect "charge" happened?'
    assert asked.options == {"yes": "NEW", "no": "NEW", "repeat": "NEW"}
    assert asked.data["error"].startswith("TimeoutError: no answer (test_effects.py:")
    assert asked.data["idempotency_key"] == bank[0]
    assert api.why(conn, pipeline, "a").cause == "person"
    assert value(conn, "SELECT attempt FROM outbox.jobs") == 0, "to ask costs no attempt"
    assert decide(conn, pipeline, "a", "yes", by="ann", about={"result": {"id": "r77"}}) == "NEW"
    run(conn, dsn, pipeline)
    assert (status_of(conn, "a"), seen, len(bank)) == ("DONE", [Receipt(id="r77")], 1)
    assert value(conn, "SELECT known_by FROM outbox.effects") == "ann"


@pytest.mark.parametrize("answer", ["no", "repeat"])
def test_after_no_and_repeat_the_call_is_made_with_the_same_key(conn: Conn, dsn: str, answer: str) -> None:
    seen: list[Any] = []
    pipeline = paying(conn, dsn, unknown("ask", seen))
    decide(conn, pipeline, "a", answer, by="ann", reason="looked")
    run(conn, dsn, pipeline)
    assert (status_of(conn, "a"), seen) == ("DONE", [Receipt(id="r2 of 900")])
    assert (len(bank), len(set(bank))) == (2, 1)
    assert value(conn, "SELECT calls FROM outbox.effects") == 2


def test_nothing_is_committed_while_an_effect_is_unknown_whatever_the_handler_does(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        try:
            await run.effect("charge", charge_and_fail, 900)
        except Exception:
            run.publish("paid", {})

    async def looking(run: Run[Post]) -> None:
        with suppress(TimeoutError):
            await run.effect("charge", charge_and_fail, 900, on_unknown="repeat")

    paying(conn, dsn, work)
    assert (status_of(conn, "a"), state(conn), value(conn, "SELECT count(*) FROM outbox.messages")) == (
        "NEW",
        "asked",
        0,
    )
    conn.execute("DELETE FROM outbox.workflow_states")
    paying(conn, dsn, looking, retry=ONCE)
    assert "not known whether this has happened: charge" in value(conn, "SELECT error FROM outbox.dead_jobs")
    assert state(conn) == "unknown"


def test_a_handler_that_catches_not_done_goes_on(conn: Conn, dsn: str) -> None:
    async def refused() -> None:
        raise NotDone("no money")

    async def work(run: Run[Post]) -> Post:
        try:
            await run.effect("charge", refused)
        except NotDone as error:
            return Post(content=str(error))
        raise AssertionError

    paying(conn, dsn, work)
    assert (status_of(conn, "a"), state(conn)) == ("DONE", "not done")
    assert value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states") == "no money"


def test_not_done_is_tried_again_by_the_back_off_of_the_stage(conn: Conn, dsn: str) -> None:
    async def busy(cents: int, *, idempotency_key: str) -> Receipt:
        bank.append(idempotency_key)
        if len(bank) < 3:
            raise NotDone("503")
        return Receipt(id="r")

    async def work(run: Run[Post]) -> None:
        await run.effect("charge", busy, 900)

    paying(conn, dsn, work)
    assert (status_of(conn, "a"), len(bank), state(conn)) == ("DONE", 3, "done")


def test_an_effect_that_has_not_happened_may_be_tried_again_in_the_same_attempt(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        failing = once_failing(charge, NotDone())
        for _ in range(2):
            try:
                await run.effect("charge", failing, 900)
            except NotDone:
                continue

    paying(conn, dsn, work)
    assert (status_of(conn, "a"), len(bank), value(conn, "SELECT max(calls) FROM outbox.effects")) == ("DONE", 2, 2)


def test_look_up_says_that_it_is_done(conn: Conn, dsn: str) -> None:
    seen: list[Any] = []
    keys: list[str] = []

    async def look_up(key: str) -> Done[Receipt]:
        keys.append(key)
        return Done(Receipt(id="found"))

    paying(conn, dsn, unknown(look_up, seen))
    assert (status_of(conn, "a"), seen, len(bank), keys) == ("DONE", [Receipt(id="found")], 1, bank)
    assert value(conn, "SELECT known_by FROM outbox.effects") == "look_up"


@pytest.mark.parametrize("raised", [False, True])
def test_look_up_says_that_it_is_not_done(conn: Conn, dsn: str, raised: bool) -> None:
    def look_up(key: str) -> NotDone:  # plain, in an async handler
        if raised:
            raise NotDone
        return NotDone()

    paying(conn, dsn, unknown(look_up))
    assert (status_of(conn, "a"), len(bank), state(conn)) == ("DONE", 2, "done")


def test_a_process_that_has_stood_still_since_the_intention_makes_no_call(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own clock: nothing has told it yet that its lease is over, and another attempt may have begun."""
    trusted, looked_up = iter([False]), []
    monkeypatch.setattr(effects.Ledger, "trusted", lambda _: next(trusted, True))

    def look_up(key: str) -> NotDone:
        looked_up.append((key, list(bank)))
        return NotDone()

    async def work(run: Run[Post]) -> None:
        await run.effect("pay", charge, 5, on_unknown=look_up)

    paying(conn, dsn, work, retry=QUICK)
    assert status_of(conn, "a") == "DONE"
    assert [made for _, made in looked_up] == [[]], "nothing had been paid when it was looked up"
    assert len(bank) == 1


def test_look_up_does_not_know_and_a_person_is_asked(conn: Conn, dsn: str) -> None:
    pipeline = paying(conn, dsn, unknown(lambda key: Ask("Was card 17 charged?", assignee="ann")))
    (asked,) = approvals(conn, assignee="ann")
    assert asked.question == "Was card 17 charged?"
    decide(conn, pipeline, "a", "yes", about={"result": {"id": "r"}})
    run(conn, dsn, pipeline)
    assert (status_of(conn, "a"), len(bank)) == ("DONE", 1)


def test_look_up_that_raises_is_tried_again_and_the_call_is_not(conn: Conn, dsn: str) -> None:
    looks: list[str] = []

    async def look_up(key: str) -> Done[Receipt]:
        looks.append(key)
        if len(looks) == 1:
            raise Retry(after=0, message="too early to say")
        return Done(Receipt(id="found"))

    paying(conn, dsn, unknown(look_up))
    assert (status_of(conn, "a"), len(bank), len(looks)) == ("DONE", 1, 2)


def test_look_up_that_answers_nonsense_is_told(conn: Conn, dsn: str) -> None:
    paying(conn, dsn, unknown(lambda key: True), retry=Backoff(first=0, attempts=2))
    error = value(conn, "SELECT error FROM outbox.dead_jobs")
    assert "look_up of effect 'charge' returned True: return Done(result), NotDone() or Ask()" in error
    assert (state(conn), len(bank)) == ("unknown", 1)


def test_repeat_makes_the_call_again(conn: Conn, dsn: str) -> None:
    paying(conn, dsn, unknown("repeat"))
    assert (status_of(conn, "a"), len(bank), len(set(bank))) == ("DONE", 2, 1)


def test_a_dead_job_keeps_its_unknown_effect_and_retry_asks(conn: Conn, dsn: str) -> None:
    async def look_up(key: str) -> Ask:
        raise Reject("the bank is closed")

    policies: list[Any] = [look_up, "ask"]
    failing = once_failing(charge, OSError("cut off"))

    async def work(run: Run[Post]) -> None:
        await run.effect("charge", failing, 900, on_unknown=policies[0])

    pipeline = paying(conn, dsn, work)
    assert (state(conn), value(conn, "SELECT error FROM outbox.dead_jobs")) == ("unknown", "the bank is closed")
    policies.pop(0)
    assert api.retry(conn, pipeline, "a")
    run(conn, dsn, pipeline)
    assert (state(conn), len(bank)) == ("asked", 1)


@pytest.mark.parametrize("result", [object, lambda: "x" * MAX_RESULT, lambda: float("nan"), lambda: "a\0b"])
def test_a_result_that_can_not_be_kept_is_asked_for(conn: Conn, dsn: str, result: Callable[[], Any]) -> None:
    def pay() -> Any:
        bank.append("key")
        return result()

    async def work(run: Run[Post]) -> None:
        await run.effect("charge", pay)

    pipeline = paying(conn, dsn, work)
    (asked,) = approvals(conn)
    assert asked.data["error"].startswith("InvalidInput: effect('charge')")
    decide(conn, pipeline, "a", "yes")
    run(conn, dsn, pipeline)
    assert (status_of(conn, "a"), len(bank)) == ("DONE", 1)


@pytest.mark.parametrize("by", ["sarah", effects.CALL, effects.LOOK_UP])
def test_an_answer_whose_result_does_not_fit_is_asked_for_again(conn: Conn, dsn: str, by: str) -> None:
    pipeline = paying(conn, dsn, unknown("ask"))
    decide(conn, pipeline, "a", "yes", by=by)
    run(conn, dsn, pipeline)
    (asked,) = approvals(conn)
    assert "the result that was given doesn't fit" in asked.data["error"]
    assert state(conn) == "asked"
    decide(conn, pipeline, "a", "yes", about={"result": {"id": "r"}})
    run(conn, dsn, pipeline)
    assert (status_of(conn, "a"), len(bank)) == ("DONE", 1)


@pytest.mark.parametrize("about", ["r1", ["r1"], {"results": "r1"}])
def test_an_answer_whose_result_is_in_the_wrong_place_is_refused(conn: Conn, dsn: str, about: Any) -> None:
    pipeline = paying(conn, dsn, unknown("ask"))
    with pytest.raises(api.EditRefused, match="has no result"), conn.transaction():
        decide(conn, pipeline, "a", "yes", about=about)
    assert state(conn) == "asked"


def test_an_attempt_that_times_out_in_the_call_is_asked_about(conn: Conn, dsn: str) -> None:
    async def hang(cents: int, *, idempotency_key: str) -> Receipt:
        bank.append(idempotency_key)
        await asyncio.sleep(3600)
        raise AssertionError

    async def work(run: Run[Post]) -> None:
        await run.effect("charge", hang, 900)

    paying(conn, dsn, work, timeout=0.1)
    assert (state(conn), len(bank)) == ("asked", 1)


# Names.


def test_two_effects_of_one_name_in_an_attempt_are_an_error(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        for cents in (1, 2):
            await run.effect("charge", charge, cents)

    paying(conn, dsn, work, retry=ONCE)
    assert "has two effects 'charge' in one attempt" in value(conn, "SELECT error FROM outbox.dead_jobs")
    assert len(bank) == 1


def test_a_name_is_one_functions(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        if run.attempt == 1:
            await run.effect("charge", charge, 1)
            raise ValueError("next")
        await run.effect("charge", charge_and_fail, 1)

    paying(conn, dsn, work, retry=Backoff(first=0, attempts=2))
    assert "give another function another name" in value(conn, "SELECT error FROM outbox.dead_jobs")
    assert len(bank) == 1


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("", "ask"),
        (7, "ask"),
        ("x" * 300, "ask"),
        ("charge", "never"),
        ("charge", None),
        ("charge", Ask),
        ("charge", NotDone),
    ],
)
def test_bad_names_and_policies_are_refused_before_the_call(conn: Conn, dsn: str, name: Any, policy: Any) -> None:
    async def work(run: Run[Post]) -> None:
        await run.effect(name, charge, 1, on_unknown=policy)

    paying(conn, dsn, work, retry=ONCE)
    assert value(conn, "SELECT error FROM outbox.dead_jobs").startswith("InvalidInput: ")
    assert bank == []


def test_what_can_not_be_called_is_refused_before_the_intention(conn: Conn, dsn: str) -> None:
    told: list[str] = []

    def plain(run: Any) -> None:
        for function, arguments in ((charge, (1,)), (len, ()), (7, ())):
            try:
                run.effect("charge", function, *arguments)
            except (api.InvalidInput, TypeError) as error:
                told.append(str(error))

    paying(conn, dsn, plain)
    assert status_of(conn, "a") == "DONE"
    assert told[0] == "function: is async, and the handler is a plain function"
    assert told[1:] == ["missing a required argument: 'obj'", "function: must be a function, not 7"]
    assert value(conn, "SELECT count(*) FROM outbox.effects") == 0


def test_a_result_of_a_type_that_can_not_be_kept_is_refused_before_the_intention(conn: Conn, dsn: str) -> None:
    def connect() -> ThreadPoolExecutor:
        bank.append("called")
        return ThreadPoolExecutor()

    def work(run: Run[Post]) -> None:
        for make in (run.effect, run.once):
            with pytest.raises(api.HandlerError, match="ThreadPoolExecutor'>, which can't be kept"):
                make("charge", connect)

    paying(conn, dsn, work)
    assert (status_of(conn, "a"), bank) == ("DONE", [])
    assert value(conn, "SELECT count(*) FROM outbox.effects") == 0


def test_an_async_function_that_a_plain_handler_can_not_call_is_not_done(conn: Conn, dsn: str) -> None:
    def work(run: Run[Post]) -> None:
        run.effect("charge", lambda: charge(1, idempotency_key="k"))  # type: ignore[arg-type,return-value]

    paying(conn, dsn, work, retry=ONCE)
    assert "the function is async" in value(conn, "SELECT error FROM outbox.dead_jobs")
    assert (state(conn), bank) == ("not done", [])


@pytest.mark.parametrize("caught", [False, True])
def test_a_handler_that_gives_up_its_effect_or_does_not_wait_for_it_commits_nothing(
    conn: Conn, dsn: str, caught: bool
) -> None:
    async def slow(*, idempotency_key: str) -> None:
        bank.append(idempotency_key)
        await asyncio.sleep(3600)

    async def work(run: Run[Post]) -> None:
        tasks.append(asyncio.create_task(run.effect("charge", slow)))
        while not bank:
            await asyncio.sleep(0)
        if caught:
            tasks[-1].cancel()
            with suppress(asyncio.CancelledError):
                await tasks[-1]

    tasks: list[Any] = []  # else they would be gone
    paying(conn, dsn, work, retry=Backoff(first=0, attempts=2))
    assert (state(conn), status_of(conn, "a"), len(bank)) == ("asked" if caught else "unknown", "NEW", 1)


# Several at once.


def test_effects_at_once_are_told_apart_and_one_that_fails_cuts_off_no_other(conn: Conn, dsn: str) -> None:
    begun = asyncio.Event()
    failing = once_failing(charge, OSError())

    async def slow(*, idempotency_key: str) -> str:
        begun.set()
        await asyncio.sleep(0.05)
        bank.append(idempotency_key)
        return "slow"

    async def fail(*, idempotency_key: str) -> Receipt:
        await begun.wait()
        made: Receipt = await failing(1, idempotency_key=idempotency_key)
        return made

    async def work(run: Run[Post]) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(run.effect("fails", fail))
            group.create_task(run.effect("slow", slow))

    pipeline = paying(conn, dsn, work)
    assert (state(conn, "fails"), state(conn, "slow")) == ("asked", "done")
    decide(conn, pipeline, "a", "no")
    run(conn, dsn, pipeline)
    assert (status_of(conn, "a"), sorted(each.split(":")[2] for each in bank)) == ("DONE", ["fails", "fails", "slow"])


def test_an_effect_within_an_effect_that_fails_does_not_wait_for_it(conn: Conn, dsn: str) -> None:
    failing = once_failing(charge, OSError())

    async def work(run: Run[Post]) -> None:
        async def outer() -> None:
            await run.effect("inner", failing, 1)

        await run.effect("outer", outer)

    pipeline = paying(conn, dsn, work)
    inner, outer = approvals(conn)
    assert (inner.name, outer.name) == ("inner", "outer")
    decide(conn, pipeline, "a", "yes", question=inner.id, about={"result": {"id": "r"}})
    decide(conn, pipeline, "a", "no", question=outer.id)
    run(conn, dsn, pipeline)
    assert (status_of(conn, "a"), len(bank)) == ("DONE", 1)


def test_in_a_batch_one_that_fails_cuts_off_no_other(conn: Conn, dsn: str) -> None:
    begun = asyncio.Event()
    failed: list[bool] = []

    async def pay(entity: str, *, idempotency_key: str) -> None:
        if entity == "a":
            await begun.wait()
            if not failed:
                failed.append(True)
                raise NotDone
        else:
            begun.set()
            await asyncio.sleep(0.05)
        bank.append(entity)

    async def work(runs: list[Run[Post]]) -> None:
        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(run.effect("pay", pay, run.entity_id))

    pipeline = deployed(conn, one_stage(work, transaction=True, batch=2))
    pipeline.submit_many(conn, ((name, Post()) for name in "ab"))
    run(conn, dsn, pipeline)
    assert (status_of(conn, "a"), status_of(conn, "b"), bank) == ("DONE", "DONE", ["b", "a"])


def test_a_job_waits_for_the_answers_to_all_its_questions(conn: Conn, dsn: str) -> None:
    functions = {name: once_failing(charge, OSError()) for name in ("one", "two")}

    async def work(run: Run[Post]) -> None:
        await asyncio.gather(
            *(run.effect(name, function, 1) for name, function in functions.items()), return_exceptions=True
        )

    pipeline = paying(conn, dsn, work)
    first, second = approvals(conn)
    assert {first.name, second.name} == {"one", "two"}
    decide(conn, pipeline, "a", "yes", question=first.id, about={"result": {"id": "r"}})
    drain(pipeline, dsn)
    assert value(conn, "SELECT due IS NULL FROM outbox.jobs"), "the other one is open"
    decide(conn, pipeline, "a", "no", question=second.id)
    run(conn, dsn, pipeline)
    assert (status_of(conn, "a"), len(bank)) == ("DONE", 3)


@pytest.mark.parametrize("options", [{"batch": 3}, {"share": 3}], ids=["batch", "share"])
def test_one_of_several_in_a_transaction_is_asked_about_and_the_others_are_done(
    conn: Conn, dsn: str, options: dict[str, int]
) -> None:
    failing = once_failing(charge, OSError())

    async def one(run: Run[Post]) -> None:
        await run.effect("charge", failing if run.entity_id == "b" else charge, 1)

    async def several(runs: list[Run[Post]]) -> None:
        for run in runs:
            await one(run)

    pipeline = deployed(conn, one_stage(several if "batch" in options else one, transaction=True, **options))
    pipeline.submit_many(conn, ((name, Post()) for name in "abc"))
    run(conn, dsn, pipeline)
    assert [status_of(conn, name) for name in "abc"] == ["DONE", "NEW", "DONE"]
    assert (len(bank), len(set(bank))) == (3, 3)
    decide(conn, pipeline, "b", "yes", about={"result": {"id": "r"}})
    run(conn, dsn, pipeline)
    assert (status_of(conn, "b"), len(bank)) == ("DONE", 3)


# While the question is open.


def test_who_has_lost_the_job_makes_no_call(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        await asyncio.to_thread(conn.execute, "UPDATE outbox.workflow_states SET current_status = 'MOVED'")
        await run.effect("charge", charge, 1)

    paying(conn, dsn, work)
    assert (bank, value(conn, "SELECT count(*) FROM outbox.effects")) == ([], 0)


def test_retry_leaves_a_parked_job_alone(conn: Conn, dsn: str) -> None:
    pipeline = paying(conn, dsn, unknown("ask"))
    assert api.retry(conn, pipeline, "a") is False
    assert api.retry_all(conn) == 0
    drain(pipeline, dsn)
    assert (state(conn), len(bank)) == ("asked", 1)


def test_a_change_by_hand_withdraws_the_question_and_the_ledger_says_unknown(conn: Conn, dsn: str) -> None:
    pipeline = paying(conn, dsn, unknown("ask"))
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'MOVED'")
    assert value(conn, "SELECT ended FROM outbox.approvals") == "withdrawn"
    assert (state(conn), value(conn, "SELECT count(*) FROM outbox.jobs")) == ("unknown", 0)
    with pytest.raises(TooLate):
        decide(conn, pipeline, "a", "yes")


def test_a_deadline_ends_the_question(conn: Conn, dsn: str) -> None:
    pipeline = one_stage(unknown("ask"))
    pipeline.allow("NEW", to="LATE")
    pipeline.deadline("NEW", hours=1, to="LATE")
    deployed(conn, pipeline).submit(conn, "a", Post())
    run(conn, dsn, pipeline)
    assert state(conn) == "asked"
    conn.execute("UPDATE outbox.jobs SET deadline = now()")
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), value(conn, "SELECT ended FROM outbox.approvals")) == ("LATE", "deadline")


def test_an_answer_in_a_paused_stage_waits_for_the_end_of_the_pause(conn: Conn, dsn: str) -> None:
    pipeline = paying(conn, dsn, unknown("ask"))
    api.pause(conn, "p.work")
    decide(conn, pipeline, "a", "yes", about={"result": {"id": "r"}})
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "NEW"
    api.resume(conn, "p.work")
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "DONE"


def test_a_stage_of_another_name_finds_the_effect_and_the_question_stays(conn: Conn, dsn: str) -> None:
    work = unknown("ask")
    paying(conn, dsn, work)
    renamed: Pipeline[Any] = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
    renamed.stage("charging", on="NEW", to="DONE", retry=QUICK)(work)
    renamed.allow("NEW", to="MOVED")
    deployed(conn, renamed)
    drain(renamed, dsn)
    assert (state(conn), value(conn, "SELECT stage FROM outbox.jobs"), len(bank)) == ("asked", "charging", 1)
    decide(conn, renamed, "a", "yes", about={"result": {"id": "r"}})
    run(conn, dsn, renamed)
    assert (status_of(conn, "a"), len(bank)) == ("DONE", 1)


def test_a_status_that_is_renamed_keeps_question_and_effect(conn: Conn, dsn: str) -> None:
    work = unknown("ask")
    paying(conn, dsn, work)
    renamed: Pipeline[Any] = Pipeline("p", data=Post, initial="FRESH", final={"DONE"})
    renamed.stage("work", on="FRESH", to="DONE", retry=QUICK)(work)
    renamed.allow("FRESH", to="MOVED")
    renamed.rename("NEW", "FRESH")
    deployed(conn, renamed)
    assert decide(conn, renamed, "a", "yes", about={"result": {"id": "r"}}) == "FRESH"
    run(conn, dsn, renamed)
    assert (status_of(conn, "a"), len(bank)) == ("DONE", 1)


def test_a_change_of_the_data_leaves_the_question_as_it_is(conn: Conn, dsn: str) -> None:
    pipeline = paying(conn, dsn, unknown("ask"))
    conn.execute("""UPDATE outbox.workflow_states SET metadata = '{"content": "new"}'""")
    (asked,) = approvals(conn)
    assert not asked.changed
    decide(conn, pipeline, "a", "yes", about={"result": {"id": "r"}})
    run(conn, dsn, pipeline)
    assert status_of(conn, "a") == "DONE"


def test_a_stage_with_an_in_progress_status_is_parked_in_it(conn: Conn, dsn: str) -> None:
    pipeline = paying(conn, dsn, unknown("ask"), running="PAYING")
    assert (status_of(conn, "a"), state(conn)) == ("PAYING", "asked")
    decide(conn, pipeline, "a", "no")
    run(conn, dsn, pipeline)
    assert (status_of(conn, "a"), len(bank)) == ("DONE", 2)


def test_limits_count_no_parked_job(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, one_stage(unknown("ask"), concurrency=1))
    pipeline.submit_many(conn, ((name, Post()) for name in "abc"))
    run(conn, dsn, pipeline)
    assert [status_of(conn, name) for name in "bc"] == ["DONE", "DONE"]
    decide(conn, pipeline, "a", "no")
    run(conn, dsn, pipeline)
    assert status_of(conn, "a") == "DONE"


def test_a_workflow_that_others_have_locked_is_asked_about_when_they_let_go(
    conn: Conn, dsn: str, connect: Connect
) -> None:
    holder = connect(autocommit=False)
    pipeline = deployed(conn, one_stage(unknown("ask")))
    pipeline.submit(conn, "a", Post())
    holder.execute("SELECT FROM outbox.workflow_states FOR UPDATE")
    drain(pipeline, dsn)
    assert (value(conn, "SELECT count(*) FROM outbox.approvals"), state(conn)) == (0, "unknown")
    assert value(conn, "SELECT released FROM outbox.jobs") == 1
    holder.rollback()
    run(conn, dsn, pipeline)
    assert (state(conn), len(bank)) == ("asked", 1)


# Answers.


def test_of_two_people_at_once_one_counts(conn: Conn, dsn: str, connect: Connect) -> None:
    pipeline = paying(conn, dsn, unknown("ask"))
    first, second = connect(autocommit=False), connect(autocommit=False)
    decide(first, pipeline, "a", "no", by="ann")
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(decide, second, pipeline, "a", "yes", by="eva")
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        wait_for(lambda: value(conn, waits), what="the second waits for the first")
        first.commit()
        with pytest.raises(TooLate) as told:
            late.result()
    second.rollback()
    assert (told.value.by, told.value.decision) == ("ann", "no")
    run(conn, dsn, pipeline)
    assert (status_of(conn, "a"), len(bank)) == ("DONE", 2)


def test_an_answer_may_be_repeated_by_the_same_person(conn: Conn, dsn: str) -> None:
    pipeline = paying(conn, dsn, unknown("ask"))
    assert decide(conn, pipeline, "a", "no", by="ann") == "NEW"
    assert decide(conn, pipeline, "a", "no", by="ann") == "NEW"
    run(conn, dsn, pipeline)
    assert len(bank) == 2


def test_approvers_vote_on_it(conn: Conn, dsn: str) -> None:
    pipeline = paying(conn, dsn, unknown(Ask(approvers={"finance": 2})))
    assert api.why(conn, pipeline, "a").sentence.startswith("It waits for 2 of finance to answer")
    decide(conn, pipeline, "a", "no", by="ann", groups=["finance"])
    drain(pipeline, dsn)
    assert state(conn) == "asked"
    decide(conn, pipeline, "a", "no", by="eva", groups=["finance"])
    run(conn, dsn, pipeline)
    assert (status_of(conn, "a"), len(bank)) == ("DONE", 2)


def test_the_result_that_an_approver_has_given_counts_when_the_last_one_agrees(conn: Conn, dsn: str) -> None:
    seen: list[Any] = []
    pipeline = paying(conn, dsn, unknown(Ask(approvers={"finance": 2}), seen))
    decide(conn, pipeline, "a", "yes", by="ann", groups=["finance"], about={"result": {"id": "r7"}})
    (asked,) = approvals(conn)
    decide(conn, pipeline, "a", "yes", by="eva", groups=["finance"], shown=asked.shown)
    run(conn, dsn, pipeline)
    assert (status_of(conn, "a"), seen, len(bank)) == ("DONE", [Receipt(id="r7")], 1)


def test_sql_and_the_command_line_answer(conn: Conn, dsn: str, outbox: Outbox) -> None:
    pipeline = deployed(conn, one_stage(unknown("ask", function=charge_and_fail)))
    pipeline.submit_many(conn, [("a", Post()), ("b", Post())])
    run(conn, dsn, pipeline)
    conn.execute("""SELECT outbox.decide('p', 'a', 'yes', 'ann', about => '{"result": {"id": "r"}}')""")
    outbox("decide", "b", "yes", "--about", '{"result": {"id": "r"}}')
    run(conn, dsn, pipeline)
    assert [status_of(conn, name) for name in "ab"] == ["DONE", "DONE"]
    assert len(bank) == 2


def test_a_repeatable_read_that_has_not_seen_the_answer_fails(conn: Conn, dsn: str, connect: Connect) -> None:
    pipeline = paying(conn, dsn, unknown("ask"))
    other = connect(autocommit=False)
    other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    other.execute("SELECT count(*) FROM outbox.approvals")
    decide(conn, pipeline, "a", "no", by="ann")
    with pytest.raises(psycopg.errors.SerializationFailure):
        decide(other, pipeline, "a", "yes", by="eva")


def test_nothing_is_asked_of_an_effect_that_is_known(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        await run.effect("charge", charge, 1)

    pipeline = paying(conn, dsn, work)
    with pytest.raises(NothingAsked):
        decide(conn, pipeline, "a", "yes")


# Where it is seen, and how long it is kept.


def test_the_commands_show_it(conn: Conn, dsn: str, outbox: Outbox) -> None:
    assert "no effects" in outbox("effects").out
    paying(conn, dsn, unknown("ask"))
    (listed,) = outbox("effects", "--unknown", "--json").json
    assert (listed["entity_id"], listed["name"], listed["state"], listed["calls"]) == ("a", "charge", "asked", 1)
    assert "Answer those that are asked" in outbox("effects", "--unknown").out
    assert outbox("effects", "--pipeline", "nope", code=1).err.startswith("outbox: pipeline")
    shown = outbox("show", "a", "--json").json
    assert (shown["effects"][0]["state"], shown["job"]["state"]) == ("asked", "waiting")
    assert shown["why"]["cause"] == "person"
    assert "charge" in outbox("show", "a").out
    (row,) = outbox("status", "--json").json["effects_unknown"]
    assert (row["pipeline"], row["stage"], row["unknown"], row["asked"]) == ("p", "work", 1, 1)
    assert "effects unknown" in outbox("status").out
    told = [each["what"] for each in outbox("doctor", "--json", code=None).json if "effect" in each["what"]]
    assert len(told) == 1
    assert told[0].startswith("1 effect of p.work may or may not have happened")
    (overview,) = [each for each in outbox("status", "--json").json["overview"] if each["stage"] == "work"]
    assert (overview["workflows"], overview["ready"], overview["scheduled"]) == (1, 0, 0)
    (found,) = outbox("list", "--waits-for", "approval", "--json").json["workflows"]
    assert (found["entity_id"], found["state"], found["waits_for"]) == ("a", "waiting", "approval")
    assert [each["entity_id"] for each in outbox("list", "--status", "NEW", "--json").json["workflows"]] == ["a"]


def test_an_effect_whose_work_was_given_up_is_listed_and_alarms_nobody(conn: Conn, dsn: str, outbox: Outbox) -> None:
    async def work(run: Run[Post]) -> None:
        await run.effect("pay", charge_and_fail, 5)

    paying(conn, dsn, work)
    assert outbox("status", "--json").json["effects_unknown"]
    assert any("may or may not" in each["what"] for each in outbox("doctor", "--json", code=None).json)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'DONE'")
    assert outbox("status", "--json").json["effects_unknown"] == []
    assert not any("may or may not" in each["what"] for each in outbox("doctor", "--json", code=None).json)
    assert len(outbox("effects", "--unknown", "--json").json) == 1


def test_known_effects_are_not_listed_as_unknown(conn: Conn, dsn: str, outbox: Outbox) -> None:
    paying(conn, dsn, unknown("repeat"))
    assert "no effects" in outbox("effects", "--unknown").out
    assert [each["state"] for each in outbox("effects", "--json").json] == ["done"]


def test_an_effect_under_way_is_not_unknown(conn: Conn, dsn: str, outbox: Outbox) -> None:
    seen: list[Any] = []

    async def look(*, idempotency_key: str) -> None:
        seen.append(await asyncio.to_thread(state, conn))

    async def work(run: Run[Post]) -> None:
        await run.effect("charge", look)

    paying(conn, dsn, work)
    assert seen == ["started"]


def test_effects_go_with_history_and_never_before_their_work_is_over(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, one_stage(unknown("ask")))
    pipeline.submit_many(conn, [("a", Post()), ("b", Post())])
    run(conn, dsn, pipeline)
    conn.execute("UPDATE outbox.effects SET started_at = started_at - interval '100 days'")
    assert conn.execute(RETENTION["retention_effects"], {"days": 90.0, "limit": 10, **ALL}).fetchone() == (1,)
    assert value(conn, "SELECT entity_id FROM outbox.effects JOIN outbox.workflow_states ON id = workflow_id") == "a"


def test_effects_of_a_deleted_workflow_go_along(conn: Conn, dsn: str) -> None:
    paying(conn, dsn, unknown("ask"))
    conn.execute("DELETE FROM outbox.workflow_states")
    left = "SELECT (SELECT count(*) FROM outbox.effects) + (SELECT count(*) FROM outbox.approvals) + (SELECT count(*) FROM outbox.jobs)"
    assert value(conn, left) == 0


def test_a_parked_job_moved_by_time_stays_parked(conn: Conn, dsn: str) -> None:
    from outbox.testing import advance

    pipeline = paying(conn, dsn, unknown("ask"), retry=LATER)
    advance(conn, timedelta(days=2))
    drain(pipeline, dsn)
    assert (state(conn), len(bank)) == ("asked", 1)


# The page.


class Bank:
    def __init__(self) -> None:
        self.receipts = 0

    async def transfer(self, cents: int, key: str) -> str:
        self.receipts += 1
        bank.append(key)
        if self.receipts == 1:
            raise TimeoutError
        return f"receipt {self.receipts - 1}"


def test_the_page_runs_as_printed(
    conn: Conn, dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "effects.md").read_text(encoding="utf-8")
    first, refusals, careful, answer, tests = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    module = ModuleType("effects_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = vars(module)
    names |= {"bank": Bank(), "conn": conn}
    exec(compile(first, "docs/effects.md", "exec", dont_inherit=True), names)
    exec(compile(refusals, "docs/effects.md", "exec", dont_inherit=True), names)
    pipeline = deployed(conn, names["invoices"])
    for entity in ("invoice_17", "invoice_18"):
        pipeline.submit(conn, entity, {"number": 17, "cents": 900})
        drain(pipeline, dsn)
    assert status_of(conn, "invoice_18") == "PAID"
    exec(compile(answer, "docs/effects.md", "exec", dont_inherit=True), names)
    assert capsys.readouterr().out == 'Has effect "charge" happened?\n'
    drain(pipeline, dsn)
    assert pipeline.get(conn, "invoice_17").data.receipt == "receipt 4711"  # type: ignore[union-attr]
    assert len(bank) == 2
    names["bank"].receipts = 1
    exec(compile(tests, "docs/effects.md", "exec", dont_inherit=True), names)
    assert capsys.readouterr().out == "{'charge': Done(result='receipt 1')}\n"
    assert names["again"].data.receipt == "receipt 1"
    assert (names["found"].data.receipt, len(bank)) == ("receipt 7", 3)
    names["invoices"] = Pipeline("invoices", data=names["Invoice"], initial="NEW", final={"PAID"})
    exec(compile(careful, "docs/effects.md", "exec", dont_inherit=True), names)
