"""Tests the checker: it is silent about a good run, and for each anomaly there is a history with that one only."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import pytest

from chaos.checker import check, recoveries, story
from chaos.history import Arrival, Call, Change, Effect, History, Job
from chaos.script import BEGAN, Script, moment, told, write


def names(history: History) -> set[str]:
    return {anomaly.name for anomaly in check(history).anomalies}


def tour() -> Script:
    """Returns a run in which everything happens that may happen."""
    run = Script()
    run.through("reviewed", "CHECKED", "REVIEW")
    run.hand("reviewed", "APPROVED")
    run.claim("reviewed")
    run.finish("reviewed", "SHIPPED")
    run.claim("reviewed")
    run.finish("reviewed", "DONE")
    run.submit("troubled")
    run.claim("troubled")
    run.start("troubled")
    run.outside("troubled")
    run.fail("troubled")
    run.claim("troubled", 2)
    run.outside("troubled")
    run.give_back("troubled")  # because its worker was told to end
    run.claim("troubled", 1)
    run.outside("troubled")
    run.commit(write("workers", "delete", id=1))
    run.sweep("troubled")
    run.commit(write("workers", "insert", id=3))
    run.claim("troubled", 3)
    run.outside("troubled")
    run.finish("troubled", "CHECKED")
    run.claim("troubled", 3)
    run.hand("troubled", "CANCELLED")
    run.through("touched", "CHECKED", "APPROVED")
    for released in (1, 2):
        run.claim("touched", 3)
        run.put_back("touched", released)
    run.claim("touched", 3)
    run.hand("touched", "CANCELLED")
    run.through("rejected", "CHECKED", "APPROVED", "SHIPPED")
    run.claim("rejected")
    run.die("rejected")
    run.make_anew("rejected")
    run.claim("rejected")
    run.finish("rejected", "DONE")
    run.through("dead", "CHECKED", "APPROVED", "SHIPPED")
    run.claim("dead")
    run.die("dead")
    run.commit(write("workflow_states", "update", **{**run.states["dead"], "version": 6}))  # data, by someone else
    run.through("waiting", "CHECKED", "REVIEW")
    run.through("expired", "CHECKED", "REVIEW")
    run.expire("expired")
    return run


def later() -> Script:
    """Returns a run in which workflows wait for all that they may wait for, are cancelled, and renamed."""
    run = Script()
    run.submit("called")
    run.signal("called")  # too early: it is kept
    run.claim("called")
    run.cancel("called")
    run.through("rung", "CHECKED", "CALLED")
    run.signal("rung")
    run.cancel("rung")
    run.through("parent", "CHECKED")
    run.claim("parent")
    run.spawn("parent", "first", "second")
    run.cancel("first")
    run.claim("second")
    run.cancel("second")
    run.join("parent", run.calls[-1].client)
    run.cancel("parent")
    run.through("dying", "CHECKED", "APPROVED", "SHIPPED")
    run.claim("dying")
    run.die("dying")
    run.cancel("dying")
    run.through("left", "CHECKED")
    run.claim("left")
    run.spawn("left", "child")
    run.cancel("left")
    run.orphan("child")
    for name in ("one", "two", "three"):
        run.through(name, "CHECKED", "REVIEW")
    run.cancel("three")
    run.rename("one", "two")
    run.hand("one", "REJECTED")
    run.put("two", deadline=run.now)
    run.change("two", "LATE", "outbox", None, [])
    run.drop("messages")
    return run


def test_a_good_run_has_no_anomaly() -> None:
    history = tour().end()
    call = history.calls[0]
    history.calls.append(dataclasses.replace(call, client="k1/again", said="exists"))
    history.calls.append(Call("k1/none", "submit", "nobody", "failed", BEGAN, BEGAN + 1, None, "refused"))
    again = history.arrivals[3]
    history.arrivals.append(dataclasses.replace(again, wire_id="m4/2"))  # a message that is sent again comes late
    verdict = check(history)
    assert verdict.anomalies == []
    assert verdict.ok


def test_cancellations_and_renames_are_no_anomaly() -> None:
    verdict = check(later().end())
    assert verdict.anomalies == []
    told = ("cancelled", "its children have ended", "its parent has ended", "renamed", "signal", "spawned")
    assert [verdict.counts[kind] for kind in told] == [8, 1, 1, 2, 1, 3]


def test_counts_say_how_much_there_was() -> None:
    history = tour().end()
    history.arrivals.append(history.arrivals[0])
    assert check(history).counts == {
        "workflows": 7,
        "jobs": 25,
        "changes": 36,
        "transactions": len(history.transactions),
        "messages": 28,
        "arrivals": 29,
        "effects outside": 10,
        "effects inside": 3,
        "effects of consumers": 28,
        "effects of the ledger": 0,
        "of these called": 0,
        "of these looked up": 0,
        "of these asked": 0,
        "of these charged again": 0,
        "commits of several handlers": 0,
        "dead": 1,
        "parked": 0,
        "calls ok": 11,
        "calls failed": 0,
        "calls unknown": 0,
        "retried attempts": 3,
        "effects repeated": 3,
        "deliveries repeated": 1,
        "redeliveries to consumers": 0,
    }


def test_a_quorum_of_as_many_as_are_asked_for_has_no_anomaly() -> None:
    run = Script()
    run.through("w", "CHECKED", "REVIEW")
    run.vote("w")
    run.quorum("w")
    assert check(run.end()).anomalies == []


def test_a_vote_in_the_place_of_who_has_delegated_has_no_anomaly() -> None:
    run = Script()
    run.through("w", "CHECKED", "REVIEW")
    run.vote_in_place("w")
    run.quorum("w")
    assert check(run.end()).anomalies == []


def sharing(run: Script) -> None:
    """Has two handlers end in one transaction."""
    for name in ("v", "w"):
        run.through(name, "CHECKED", "APPROVED")
        run.claim(name)
    for name in ("v", "w"):
        run.finish(name, "SHIPPED")
    run.join_commits(2)


def test_handlers_that_share_a_commit_have_no_anomaly() -> None:
    run = Script()
    sharing(run)
    verdict = check(run.end())
    assert {anomaly.name for anomaly in verdict.anomalies} <= {"stuck"}, "no worker goes on with them"
    assert verdict.counts["commits of several handlers"] == 1


def unpaid(run: Script, name: str = "charge-ask", id_: str = "w") -> None:
    """Has an attempt intend an effect."""
    run.through(id_, "CHECKED", "UNPAID")
    run.claim(id_)
    run.intend(id_, name)


def asked(run: Script, *book: str) -> None:
    """Has an attempt fail in the middle of a call, and the next one ask what has become of it."""
    unpaid(run)
    run.bank("w", *book)
    run.fail("w")
    run.claim("w", 2)
    run.ask("w")


def paid(run: Script) -> None:
    """Has the last attempt find what is known of the effect, and end well."""
    run.claim("w", 2)
    run.finish("w", "PAID")


def test_effects_that_are_looked_up_asked_about_and_called_late_have_no_anomaly() -> None:
    run = Script()
    run.through("good", "CHECKED", "UNPAID", "PAID")
    unpaid(run, "charge-look-up", "late")
    unpaid(run, "charge-look-up", "found")
    run.bank("found", "charge")
    unpaid(run, "charge-repeat", "again")
    run.bank("again", "charge")
    unpaid(run, id_="refused")
    run.bank("refused", "refuse")
    run.note("refused", "not done")
    run.fail("refused")
    asked(run, "charge")
    for id_ in ("late", "found", "again"):
        run.fail(id_)
    for id_ in ("late", "found", "again", "refused"):
        run.claim(id_, 2)
    run.bank("late", "look")
    run.intend("late", "charge-look-up")
    run.bank("late", "charge", "charge")
    run.note("late", "done")
    run.bank("found", "look")
    run.note("found", "done", "look_up")
    run.pay("again", "charge-repeat")
    run.pay("refused")
    for id_ in ("late", "found", "again", "refused"):
        run.finish(id_, "PAID")
    run.answer("w", "yes")
    run.claim("w", 2)
    run.ask("w")  # the result that was given can't be used
    run.answer("w", "repeat")
    run.claim("w", 2)
    run.pay("w")
    run.finish("w", "PAID")
    verdict = check(run.end())
    assert verdict.anomalies == []
    told = (
        "effects of the ledger",
        "of these called",
        "of these looked up",
        "of these charged again",
        "of these asked",
    )
    assert [verdict.counts[what] for what in told] == [6, 10, 2, 3, 2]


def test_an_effect_that_is_unknown_when_its_workflow_is_cancelled_has_no_anomaly() -> None:
    run = Script()
    asked(run, "charge")
    run.cancel("w")
    unpaid(run, "charge-repeat", "v")
    run.cancel("v")
    assert check(run.end()).anomalies == []


def test_an_empty_run_has_no_anomaly() -> None:
    assert check(Script().end()).ok


# What was never answered may have happened or not.


def test_an_unknown_call_may_have_happened() -> None:
    run = Script()
    run.submit("w", outcome="unknown")
    run.claim("w")
    run.start("w")
    run.outside("w")
    run.finish("w", "CHECKED")
    run.hand("w", "CANCELLED", outcome="unknown")
    run.through("d", "CHECKED", "APPROVED", "SHIPPED")
    run.claim("d")
    run.die("d")
    run.make_anew("d", outcome="unknown")
    run.claim("d")
    run.finish("d", "DONE")
    assert names(run.end()) == set()


def test_an_unknown_call_may_not_have_happened() -> None:
    run = Script()
    run.call("submit", "never", None, "unknown", "")
    run.through("w", "CHECKED", "REVIEW")
    run.call("change", "entity of w", "REJECTED", "unknown", "")
    run.through("d", "CHECKED", "APPROVED", "SHIPPED")
    run.claim("d")
    run.die("d")
    run.call("retry", "entity of d", None, "unknown", "")
    assert names(run.end()) == set()


# One thing is wrong: an engine that does it, ...

Broken = Callable[[Script], None]
BROKEN: list[tuple[str, Broken]] = []


def broken(name: str) -> Callable[[Broken], Broken]:
    """Registers an engine that did something wrong, which makes the anomaly of this name, and no other."""

    def note(do: Broken) -> Broken:
        BROKEN.append((name, do))
        return do

    return note


@broken("lost")
def no_job_for_the_next_stage(run: Script) -> None:
    run.through("w", "CHECKED")
    run.drop("jobs")


@broken("lost")
def no_first_job(run: Script) -> None:
    run.submit("w")
    run.drop("jobs")


@broken("lost")
def a_job_that_vanishes(run: Script) -> None:
    run.through("w", "CHECKED")
    run.commit(write("jobs", "delete", workflow_id="w"))


@broken("lost")
def a_dead_job_that_vanishes(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED", "SHIPPED")
    run.claim("w")
    run.die("w")
    run.commit(write("dead_jobs", "delete", workflow_id="w"))


@broken("lost")
def dead_before_its_attempts_are_used_up(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w")
    run.die("w")


@broken("lost")
def a_change_without_its_message(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.drop("messages")


@broken("lost")
def a_submit_without_its_message(run: Script) -> None:
    run.submit("w")
    run.drop("messages")
    run.claim("w")
    run.start("w")
    run.outside("w")
    run.finish("w", "CHECKED")
    run.hand("w", "CANCELLED")


@broken("lost")
def an_act_without_its_effect_inside(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED", "SHIPPED", "DONE")
    run.drop("inside", number=-3)


@broken("leftover")
def an_act_that_finds_what_another_has_left(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED")
    run.claim("w")
    run.finish("w", "SHIPPED")
    run.rewrite("inside", found="TimeZone is Asia/Tokyo")
    run.claim("w")
    run.finish("w", "DONE")


@broken("lost")
def a_turn_that_was_rolled_back_and_its_outcome_was_committed(run: Script) -> None:
    sharing(run)
    writes = run.drop("inside")
    run._replace(-1, [writes[0], *run.transactions[-1].writes])
    for name in ("v", "w"):
        run.claim(name)
        run.finish(name, "DONE")


@broken("effect twice")
def a_turn_that_was_tried_again_and_not_rolled_back(run: Script) -> None:
    sharing(run)
    writes = run.drop("inside")
    run._replace(-1, [*writes, writes[1], *run.transactions[-1].writes])
    for name in ("v", "w"):
        run.claim(name)
        run.finish(name, "DONE")


@broken("phantom")
def a_turn_that_was_committed_without_its_outcome(run: Script) -> None:
    for name in ("v", "w"):
        run.through(name, "CHECKED", "APPROVED")
        run.claim(name)
    run.finish("v", "SHIPPED")
    run.commit(run.inside("w"))
    run.join_commits(2)
    run.claim("v")
    run.finish("v", "DONE")
    run.hand("w", "CANCELLED")


@broken("zombie write")
def a_fence_that_was_checked_for_the_first_turn_only(run: Script) -> None:
    for name in ("v", "w"):
        run.through(name, "CHECKED", "APPROVED")
        run.claim(name)
    run.commit(write("workers", "delete", id=1))
    run.sweep("w")
    run.claim("w", 2)
    run.jobs["w"].update(owner=1, attempt=1)
    for name in ("v", "w"):
        run.finish(name, "SHIPPED")
    run.join_commits(2)
    for name in ("v", "w"):
        run.claim(name)
        run.finish(name, "DONE")


@broken("lost")
def finished_without_running_the_handler(run: Script) -> None:
    run.submit("w")
    run.claim("w")
    run.start("w")
    run.finish("w", "CHECKED")
    run.claim("w")
    run.finish("w", "REVIEW")


@broken("lost")
def an_answered_submit_that_was_not_committed(run: Script) -> None:
    run.call("submit", "gone", None, "ok", "created")


@broken("lost")
def an_answered_submit_that_was_lost_and_made_again(run: Script) -> None:
    run.call("submit", "entity of w", None, "ok", "created")
    run.through("w", "CHECKED", "REVIEW")


@broken("lost")
def an_answered_change_that_was_not_committed(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.call("change", "entity of w", "APPROVED", "ok", "REVIEW to APPROVED")


@broken("lost")
def an_answered_retry_that_was_not_committed(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED", "SHIPPED")
    run.claim("w")
    run.die("w")
    run.call("retry", "entity of w", None, "ok", "made again")


@broken("phantom")
def a_submit_that_was_told_to_have_failed(run: Script) -> None:
    run.submit("w", outcome="failed")
    run.claim("w")
    run.start("w")
    run.outside("w")
    run.finish("w", "CHECKED")
    run.claim("w")
    run.finish("w", "REVIEW")


@broken("phantom")
def a_workflow_that_nobody_asked_for(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.calls.pop()


@broken("phantom")
def a_change_that_was_told_to_have_failed(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.hand("w", "REJECTED", outcome="failed")


@broken("phantom")
def a_change_that_nobody_asked_for(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.hand("w", "REJECTED")
    run.calls.pop()


@broken("phantom")
def a_change_to_something_else_than_was_asked(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.hand("w", "REJECTED")
    run.calls[-1] = dataclasses.replace(run.calls[-1], to_status="APPROVED")


@broken("phantom")
def a_retry_that_nobody_asked_for(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED", "SHIPPED")
    run.claim("w")
    run.die("w")
    run.make_anew("w", outcome="failed")
    run.claim("w")
    run.finish("w", "DONE")


@broken("phantom")
def a_message_of_a_finish_that_was_fenced(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.commit(run.message("w"))


@broken("phantom")
def a_message_twice_in_one_commit(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.transactions[-1] = dataclasses.replace(
        run.transactions[-1], writes=(*run.transactions[-1].writes, run.message("w"))
    )


@broken("torn commit")
def a_job_where_people_decide(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.rewrite("jobs", stage="decide")
    run.hand("w", "REJECTED")


@broken("phantom")
def an_effect_outside_that_no_attempt_made(run: Script) -> None:
    run.submit("w")
    run.commit(write("outside", "insert", workflow_id="w", stage="check", attempt=2, key="w:check:1", at=run.now))
    run.claim("w")
    run.start("w")
    run.outside("w")
    run.finish("w", "CHECKED")
    run.hand("w", "CANCELLED")


@broken("phantom")
def an_effect_inside_of_an_attempt_that_failed(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED")
    run.claim("w")
    run.commit(run.inside("w"))
    run.hand("w", "CANCELLED")


@broken("illegal change")
def a_worker_goes_where_its_stage_may_not(run: Script) -> None:
    run.through("w", "CHECKED", "REJECTED")


@broken("illegal change")
def a_worker_goes_on_without_the_in_progress_status(run: Script) -> None:
    run.submit("w")
    run.claim("w")
    run.outside("w")
    run.finish("w", "CHECKED")
    run.hand("w", "CANCELLED")


@broken("illegal change")
def a_person_goes_where_only_a_worker_may(run: Script) -> None:
    run.through("w", "CHECKED")
    run.hand("w", "REVIEW")


@broken("illegal change")
def a_workflow_that_starts_in_the_middle(run: Script) -> None:
    run.submit("w")
    run.rewrite("workflow_states", current_status="CANCELLED")
    run.rewrite("state_changes", to_status="CANCELLED")
    run.drop("jobs")


@broken("illegal change")
def a_version_that_is_left_out(run: Script) -> None:
    run.through("w", "CHECKED")
    run.states["w"]["version"] += 1
    run.hand("w", "CANCELLED")


@broken("illegal change")
def history_that_tells_another_change(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.hand("w", "APPROVED")
    run.rewrite("state_changes", from_status="CHECKED")
    run.claim("w")
    run.hand("w", "CANCELLED")


@broken("resurrection")
def a_final_status_left_by_hand(run: Script) -> None:
    run.through("w", "CHECKED")
    run.hand("w", "CANCELLED")
    run.hand("w", "REVIEW")


@broken("resurrection")
def a_job_for_a_finished_workflow(run: Script) -> None:
    run.through("w", "CHECKED")
    job = dict(run.jobs["w"])
    run.hand("w", "CANCELLED")
    run.commit(write("jobs", "insert", **job))
    run.commit(write("jobs", "delete", workflow_id="w"))


@broken("resurrection")
def a_job_that_outlives_the_final_change(run: Script) -> None:
    run.through("w", "CHECKED")
    run.hand("w", "CANCELLED")
    run.tear("jobs", "delete")


@broken("zombie write")
def a_finish_by_a_worker_whose_job_was_swept(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w", 1)
    stale = dict(run.jobs["w"])
    run.commit(write("workers", "delete", id=1))
    run.sweep("w")
    run.jobs["w"], swept = stale, run.jobs["w"]
    run.finish("w", "REVIEW")
    assert swept["owner"] is None


@broken("zombie write")
def a_finish_by_a_worker_while_another_one_holds_the_job(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w", 1)
    run.commit(write("workers", "delete", id=1))
    run.sweep("w")
    run.claim("w", 2)
    run.jobs["w"]["owner"] = 1
    run.finish("w", "REVIEW")
    run.rewrite("state_changes", stage=None, attempt=None)  # as the trigger would record it


@broken("zombie write")
def a_finish_by_the_same_worker_in_an_attempt_that_is_over(run: Script) -> None:
    run.submit("w")
    run.claim("w")
    run.start("w")
    run.outside("w")
    run.fail("w")
    run.claim("w")
    run.finish("w", "CHECKED")  # the second attempt has done nothing yet
    run.hand("w", "CANCELLED")


@broken("zombie write")
def an_effect_inside_of_an_attempt_that_is_over(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED")
    run.claim("w")
    run.fail("w")
    run.claim("w")
    run.finish("w", "SHIPPED")
    run.rewrite("inside", attempt=1)
    run.claim("w")
    run.finish("w", "DONE")


@broken("zombie write")
def a_failure_told_of_a_job_that_nobody_holds(run: Script) -> None:
    run.through("w", "CHECKED")
    run.put("w", due=False, error="late", run_at=run.now)
    run.promote("w")
    run.hand("w", "CANCELLED")


@broken("zombie write")
def a_job_given_back_twice(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w")
    run.fail("w")
    run.give_back("w")
    run.hand("w", "CANCELLED")


@broken("zombie write")
def a_death_of_a_job_that_nobody_holds(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED", "SHIPPED")
    run.die("w")


@broken("two holders")
def a_job_claimed_while_it_is_held(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w", 1)
    run.claim("w", 2)
    run.finish("w", "REVIEW")


@broken("two holders")
def a_job_taken_from_a_worker_that_is_alive(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w")
    run.sweep("w")
    run.claim("w", 2)
    run.finish("w", "REVIEW")


@broken("two holders")
def an_attempt_that_is_not_counted(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w")
    run.fail("w")
    run.put("w", owner=1)
    run.finish("w", "REVIEW")


@broken("two holders")
def attempts_that_are_counted_when_they_fail(run: Script) -> None:
    run.through("w", "CHECKED")
    run.put("w", owner=1, claimed_at=run.now)
    run.put("w", owner=None, claimed_at=None, attempt=1)
    run.hand("w", "CANCELLED")


@broken("two holders")
def more_attempts_than_there_are(run: Script) -> None:
    run.through("w", "CHECKED")
    for _ in range(3):
        run.claim("w")
        run.fail("w")
    run.claim("w")
    run.finish("w", "REVIEW")


@broken("two holders")
def a_next_job_that_does_not_begin_anew(run: Script) -> None:
    run.through("w", "CHECKED")
    run.rewrite("jobs", attempt=2)
    run.hand("w", "CANCELLED")


@broken("too many")
def more_at_work_than_there_may_be(run: Script) -> None:
    for other in ("one", "two", "w"):
        run.through(other, "CHECKED")
        run.claim(other)
    for other in ("one", "two", "w"):
        run.finish(other, "REVIEW")


@broken("too many")
def more_of_a_partition_at_work_than_there_may_be(run: Script) -> None:
    for other in ("one", "w"):
        run.through(other, "CHECKED")
        run.put(other, partition="acme")
        run.claim(other)
    for other in ("one", "w"):
        run.finish(other, "REVIEW")


@broken("too early")
def a_wait_that_ends_before_its_deadline(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.change("w", "EXPIRED", "outbox", None, [])
    run.drop("messages")


@broken("illegal change")
def a_wait_that_ends_elsewhere(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.put("w", deadline=run.now)
    run.change("w", "REJECTED", "outbox", None, [])
    run.drop("messages")


@broken("illegal change")
def a_deadline_that_moves_what_does_not_wait(run: Script) -> None:
    run.through("w", "CHECKED")
    run.change("w", "CANCELLED", "outbox", None, [])
    run.drop("messages")


@broken("lost")
def a_wait_without_its_deadline(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.drop("jobs")
    run.jobs.pop("w")


@broken("torn commit")
def a_question_that_is_asked_before_its_status(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.tear("approvals")


@broken("torn commit")
def a_decision_in_a_transaction_of_its_own(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.hand("w", "REJECTED")
    run.tear("approvals", "update")


@broken("torn commit")
def a_question_that_stays_open(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.hand("w", "REJECTED")
    run.drop("approvals", "update")


@broken("torn commit")
def a_decision_that_leads_elsewhere(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.hand("w", "REJECTED")
    run.rewrite("approvals", "update", to_status="APPROVED")


@broken("miscounted")
def a_quorum_of_one(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.quorum("w")


@broken("miscounted")
def an_askers_vote(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.vote("w")
    run.rewrite("approval_votes", person=run.submitted["w"])
    run.quorum("w")


@broken("miscounted")
def a_vote_by_a_delegation_that_is_over(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.vote_in_place("w", seconds=0)


@broken("miscounted")
def a_vote_by_a_delegation_that_was_ended(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.vote_in_place("w", end=True)


@broken("miscounted")
def a_vote_in_anothers_place_without_a_delegation(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.vote("w")
    run.rewrite("approval_votes", person="another")


@broken("miscounted")
def a_vote_of_who_asks_in_anothers_place(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.vote_in_place("w")
    run.rewrite("approval_votes", cast_by=run.submitted["w"])
    run.calls.pop()


@broken("lost")
def a_delegation_that_was_not_committed(run: Script) -> None:
    run.call("delegate", "gone", None, "ok", "delegated")


@broken("lost")
def an_end_of_a_delegation_that_was_not_committed(run: Script) -> None:
    run.call("end", "gone", None, "ok", "ended")


@broken("lost")
def an_answered_vote_that_was_not_committed(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.vote("w")
    run.drop("approval_votes")


@broken("lost")
def a_cancellation_that_was_not_committed(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.call("cancel", "entity of w", "CANCELLED", "ok", "cancelled")


@broken("phantom")
def a_cancellation_that_was_refused(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.cancel("w", outcome="failed")


@broken("resurrection")
def a_cancellation_that_leaves_the_job(run: Script) -> None:
    run.through("w", "CHECKED")
    run.cancel("w")
    run.commit(*run.drop("jobs", "delete"))


@broken("resurrection")
def a_cancellation_of_what_has_ended(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED", "SHIPPED", "DONE")
    run.cancel("w")


@broken("torn commit")
def a_cancellation_that_leaves_the_question(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.cancel("w")
    run.drop("approvals", "update")


@broken("torn commit")
def a_cancellation_that_leaves_the_wait(run: Script) -> None:
    run.through("w", "CHECKED", "CALLED")
    run.cancel("w")
    run.drop("waits", "delete")


@broken("torn commit")
def a_cancellation_that_leaves_the_dead_job(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED", "SHIPPED")
    run.claim("w")
    run.die("w")
    run.cancel("w")
    run.drop("dead_jobs", "delete")


@broken("phantom")
def a_message_of_an_attempt_whose_workflow_was_cancelled(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED")
    run.claim("w")
    run.cancel("w")
    run.commit(run.message("w"))


@broken("phantom")
def an_effect_inside_of_an_attempt_whose_workflow_was_cancelled(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED")
    run.claim("w")
    effect = run.inside("w")
    run.cancel("w")
    run.commit(effect)


@broken("resurrection")
def a_result_of_an_attempt_whose_workflow_was_cancelled(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w")
    job = run.jobs["w"]
    run.cancel("w")
    run.change("w", "REVIEW", "worker-1", job, [])


@broken("torn commit")
def a_cancellation_that_forgets_the_children(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w")
    run.spawn("w", "gone")
    run.cancel("w")
    run.drop("children", "update")
    run.orphan("gone")
    run.rewrite("state_changes", reason=None, actor=run.call("cancel", "entity of gone", "CANCELLED", "ok", ""))


@broken("stuck")
def a_child_that_goes_on_when_its_parent_is_cancelled(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w")
    run.spawn("w", "gone")
    run.cancel("w")
    for to in ("CHECKED", "REVIEW"):
        run.claim("gone")
        if to == "CHECKED":
            run.start("gone")
            run.outside("gone")
        run.finish("gone", to)


@broken("phantom")
def a_child_that_is_cancelled_though_its_parent_waits(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w")
    run.spawn("w", "gone")
    run.orphan("gone")


@broken("too early")
def a_parent_that_does_not_wait_for_all(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w")
    run.spawn("w", "first", "gone")
    run.cancel("first")
    run.join("w", run.calls[-1].client)
    run.cancel("gone")
    run.cancel("w")


@broken("phantom")
def a_child_of_nobody(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w")
    run.spawn("w", "gone")
    run.drop("children")
    run.cancel("gone")
    run.cancel("w")
    run.drop("children", "update")


@broken("torn commit")
def a_wait_that_never_begins(run: Script) -> None:
    run.through("w", "CHECKED", "CALLED")
    run.drop("waits")


@broken("lost")
def an_answered_signal_that_was_not_committed(run: Script) -> None:
    run.through("w", "CHECKED", "CALLED")
    run.call("signal", "entity of w", None, "ok", "sent")


@broken("phantom")
def a_signal_that_moves_two_times(run: Script) -> None:
    run.through("w", "CHECKED", "CALLED")
    run.signal("w")
    run.drop("signals", "update")
    run.cancel("w")


@broken("lost")
def a_rename_that_forgets_where_a_deadline_leads(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.rename("other", "w")
    _renames_but(run, "jobs", on_deadline="EXPIRED")


@broken("torn commit")
def a_rename_that_loses_the_deadline(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.rename("other", "w")
    _renames_but(run, "jobs", deadline=None)
    run.cancel("w")


@broken("lost")
def a_rename_that_forgets_the_question(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.rename("other", "w")
    _renames_but(run, "approvals", status="REVIEW")


@broken("lost")
def a_rename_that_forgets_where_an_answer_leads(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.rename("other", "w")
    _renames_but(run, "approvals", options='{"reject": "EXPIRED"}')


@broken("lost")
def a_rename_that_forgets_a_workflow(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.rename("other")


@broken("torn commit")
def a_rename_without_its_history(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.rename("other", "w")
    _drop_of("w", run, "state_changes")


@broken("illegal change")
def a_rename_that_history_tells_otherwise(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.rename("other", "w")
    _renames_but(run, "state_changes", from_status="CHECKED")


@broken("illegal change")
def a_rename_without_a_deploy(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.commit(*run.renamed("w"))
    _renames_but(run, "jobs", on_deadline="EXPIRED")


@broken("illegal change")
def a_former_name_after_the_rename(run: Script) -> None:
    run.rename("other")
    run.through("w", "CHECKED", "REVIEW")


@broken("phantom")
def a_rename_that_sends_a_message(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.rename("other", "w")
    run.commit(run.message("w"))


def _renames_but(run: Script, table: str, **columns: str | None) -> None:
    """Makes the last transaction, which renames, write something else of the workflow w."""
    last = run.transactions[-1]
    writes = [
        dataclasses.replace(each, row={**each.row, **columns})
        if each.table == table and each.row.get("workflow_id") == "w"
        else each
        for each in last.writes
    ]
    run.transactions[-1] = dataclasses.replace(last, writes=tuple(writes))


def _drop_of(id_: str, run: Script, table: str) -> None:
    last = run.transactions[-1]
    writes = [each for each in last.writes if each.table != table or each.row.get("workflow_id") != id_]
    run.transactions[-1] = dataclasses.replace(last, writes=tuple(writes))


@broken("lost")
def an_end_without_the_effect(run: Script) -> None:
    run.through("w", "CHECKED", "UNPAID")
    run.claim("w")
    run.finish("w", "PAID")


@broken("lost")
def an_end_though_the_effect_is_unknown(run: Script) -> None:
    unpaid(run)
    run.bank("w", "charge")
    run.finish("w", "PAID")


@broken("lost")
def an_effect_that_is_done_and_that_the_bank_does_not_know(run: Script) -> None:
    unpaid(run)
    run.note("w", "done")
    run.finish("w", "PAID")


@broken("lost")
def an_end_with_the_result_of_another_effect(run: Script) -> None:
    unpaid(run)
    run.bank("w", "charge")
    run.note("w", "done")
    run.rewrite("effects", "update", result='"another"')
    run.finish("w", "PAID")


@broken("lost")
def an_answer_that_is_ignored(run: Script) -> None:
    asked(run, "charge")
    run.answer("w", "yes")
    run.rewrite("effects", "update", state="started", known_by=None)
    run.claim("w", 2)
    run.cancel("w")


@broken("lost")
def an_effect_that_is_not_done_and_was_charged(run: Script) -> None:
    unpaid(run)
    run.bank("w", "charge")
    run.note("w", "not done")
    run.cancel("w")


@broken("lost")
def a_job_that_is_parked_and_of_which_nobody_is_asked(run: Script) -> None:
    asked(run, "charge")
    run.drop("approvals")
    run.cancel("w")


@broken("lost")
def an_effect_that_is_forgotten(run: Script) -> None:
    run.through("w", "CHECKED", "UNPAID", "PAID")
    row = run.ledger["w"]
    run.commit(write("effects", "delete", **row))
    run.commit(write("effects", "insert", **row))


@broken("phantom")
def an_effect_that_is_done_of_what_was_cancelled_and_that_the_bank_does_not_know(run: Script) -> None:
    unpaid(run)
    run.note("w", "done")
    run.cancel("w")


@broken("phantom")
def a_call_that_nobody_intended(run: Script) -> None:
    unpaid(run)
    run.bank("w", "charge")
    run.transactions.pop()
    run.cancel("w")


@broken("phantom")
def a_question_about_what_is_known(run: Script) -> None:
    asked(run, "charge")
    run.rewrite("effects", "update", state="done", known_by="somebody")
    run.cancel("w")


@broken("phantom")
def an_answer_of_who_was_told_that_it_failed(run: Script) -> None:
    asked(run, "charge")
    run.answer("w", "yes", outcome="failed")
    paid(run)


@broken("phantom")
def an_answer_that_nobody_gave(run: Script) -> None:
    asked(run, "charge")
    run.answer("w", "yes", by="nobody")
    paid(run)


@broken("zombie write")
def an_intention_of_an_attempt_whose_job_was_taken_away(run: Script) -> None:
    run.through("w", "CHECKED", "UNPAID")
    run.claim("w")
    run.fail("w")
    run.intend("w")
    run.cancel("w")


@broken("zombie write")
def a_result_of_an_attempt_whose_job_was_taken_away(run: Script) -> None:
    unpaid(run)
    run.bank("w", "charge")
    run.fail("w")
    run.note("w", "done")
    paid(run)


@broken("effect twice")
def a_call_before_its_intention(run: Script) -> None:
    unpaid(run)
    run.bank("w", "charge", "charge")
    run.note("w", "done")
    run.finish("w", "PAID")


@broken("effect twice")
def a_call_that_is_made_again_though_it_is_not_known_what_has_become_of_it(run: Script) -> None:
    unpaid(run)
    run.bank("w", "charge")
    run.fail("w")
    run.claim("w", 2)
    run.pay("w")
    run.finish("w", "PAID")


@broken("effect twice")
def a_look_up_that_has_found_the_effect_and_is_not_believed(run: Script) -> None:
    unpaid(run, "charge-look-up")
    run.bank("w", "charge")
    run.fail("w")
    run.claim("w", 2)
    run.bank("w", "look")
    run.pay("w", "charge-look-up")
    run.finish("w", "PAID")


@broken("effect twice")
def an_effect_that_is_done_and_is_made_again(run: Script) -> None:
    unpaid(run, "charge-repeat")
    run.bank("w", "charge")
    run.note("w", "done")
    run.fail("w")
    run.claim("w")
    run.pay("w", "charge-repeat")
    run.finish("w", "PAID")


@broken("effect twice")
def another_key_in_the_next_attempt(run: Script) -> None:
    unpaid(run)
    run.bank("w", "charge")
    run.note("w", "done")
    run.fail("w")
    run.claim("w")
    run.ledger.clear()
    run.pay("w", "another")
    run.finish("w", "PAID")


@broken("too early")
def a_parked_job_that_is_made_ready_before_the_answer(run: Script) -> None:
    asked(run, "charge")
    run.promote("w")
    run.cancel("w")


@broken("stuck")
def a_question_about_an_effect_that_nobody_answers(run: Script) -> None:
    asked(run, "charge")


@broken("torn commit")
def a_cancellation_that_leaves_the_question_about_an_effect(run: Script) -> None:
    asked(run, "charge")
    run.cancel("w")
    run.drop("approvals", "update")


@broken("too early")
def a_failure_that_is_tried_again_at_once(run: Script) -> None:
    run.submit("w")
    run.claim("w")
    run.start("w")
    run.outside("w")
    run.put("w", owner=None, claimed_at=None, run_at=run.now)
    run.claim("w")
    run.outside("w")
    run.finish("w", "CHECKED")
    run.hand("w", "CANCELLED")


@broken("too early")
def a_failure_that_waits_for_less_than_its_back_off(run: Script) -> None:
    run.submit("w")
    run.claim("w")
    claimed = BEGAN + len(run.transactions) - 1
    run.start("w")
    run.outside("w")
    run.put("w", owner=None, claimed_at=None, due=False, run_at=moment(claimed + 0.1))
    run.promote("w")
    run.claim("w")
    run.outside("w")
    run.finish("w", "CHECKED")
    run.hand("w", "CANCELLED")


@broken("too early")
def a_job_that_is_made_ready_before_its_time(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w")
    run.put("w", owner=None, claimed_at=None, due=False, run_at=moment(BEGAN + 99))
    run.promote("w")
    run.claim("w")
    run.finish("w", "REVIEW")


@broken("too early")
def a_job_that_is_claimed_before_it_is_due(run: Script) -> None:
    run.through("w", "CHECKED")
    run.claim("w")
    run.fail("w")
    run.transactions.pop()
    run.jobs["w"]["due"] = False
    run.claim("w")
    run.finish("w", "REVIEW")


@broken("torn commit")
def a_change_without_its_history(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.drop("state_changes")


@broken("torn commit")
def history_in_another_transaction(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.tear("state_changes")


@broken("torn commit")
def history_of_a_change_that_was_rolled_back(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.commit(told("w", "REVIEW", "REJECTED", 5, "k1/1"))


@broken("torn commit")
def the_next_job_in_another_transaction(run: Script) -> None:
    run.through("w", "CHECKED")
    run.tear("jobs")
    run.hand("w", "CANCELLED")


@broken("resurrection")
def the_end_of_the_job_in_another_transaction(run: Script) -> None:
    run.through("w", "CHECKED")
    run.hand("w", "CANCELLED")
    run.tear("jobs", "delete")


@broken("torn commit")
def the_message_in_another_transaction(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.tear("messages")


@broken("torn commit")
def the_message_before_the_change(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.commit(run.message("w"))
    run.hand("w", "REJECTED")
    run.drop("messages")


@broken("torn commit")
def the_effect_inside_before_the_change(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED")
    run.claim("w")
    run.commit(run.inside("w"))
    run.finish("w", "SHIPPED")
    run.drop("inside")
    run.claim("w")
    run.finish("w", "DONE")


@broken("torn commit")
def a_dead_job_that_stays_when_the_workflow_goes_on(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED")
    for _ in range(3):
        run.claim("w")
        run.fail("w")
    run.transactions = run.transactions[:-2]
    run.jobs["w"]["owner"] = 1
    run.die("w")
    run.hand("w", "CANCELLED")
    run.drop("dead_jobs", "delete")


@broken("torn commit")
def a_dead_job_beside_the_live_one(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED", "SHIPPED")
    run.claim("w")
    run.die("w")
    run.drop("jobs", "delete")
    run.commit(write("jobs", "delete", workflow_id="w"))


@broken("torn commit")
def the_in_progress_status_without_its_job(run: Script) -> None:
    run.submit("w")
    run.claim("w")
    run.start("w")
    run.tear("jobs", "update")
    run.outside("w")
    run.finish("w", "CHECKED")
    run.hand("w", "CANCELLED")


@broken("torn commit")
def a_consumer_effect_before_its_record(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.consume("m1")
    run.tear("inbox")


@broken("torn commit")
def a_consumer_effect_without_any_record(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.consume("m1")
    run.drop("inbox")


@broken("effect twice")
def an_effect_inside_committed_by_an_attempt_that_failed(run: Script) -> None:
    run.through("w", "CHECKED", "APPROVED")
    run.claim("w")
    run.commit(run.inside("w"))
    run.fail("w")
    run.claim("w")
    run.finish("w", "SHIPPED")
    run.claim("w")
    run.finish("w", "DONE")


@broken("effect twice")
def a_handler_that_is_run_twice_in_one_attempt(run: Script) -> None:
    run.submit("w")
    run.claim("w")
    run.start("w")
    run.outside("w")
    run.outside("w")
    run.finish("w", "CHECKED")
    run.hand("w", "CANCELLED")


@broken("effect twice")
def another_idempotency_key_in_the_next_attempt(run: Script) -> None:
    run.submit("w")
    run.claim("w")
    run.start("w")
    run.outside("w")
    run.fail("w")
    run.claim("w")
    run.outside("w")
    run.rewrite("outside", key="w:check:2")
    run.finish("w", "CHECKED")
    run.hand("w", "CANCELLED")


@broken("effect twice")
def a_consumer_that_does_not_know_a_duplicate(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.consume("m1")
    run.consume("m1")


@broken("free put-back")
def an_attempt_that_had_begun_is_given_back_and_counts_nowhere(run: Script) -> None:
    run.submit("w")
    for _ in range(2):
        run.claim("w")
        if run.states["w"]["current_status"] == "NEW":
            run.start("w")
        run.outside("w")
        run.give_back("w")
    run.claim("w", 2)
    run.outside("w")
    run.finish("w", "CHECKED")
    run.hand("w", "CANCELLED")


@broken("too early")
def a_second_put_back_that_waits_for_nothing(run: Script) -> None:
    run.through("w", "CHECKED")
    for released in (1, 2):
        run.claim("w")
        run.put_back("w", released, waits=False)
    run.hand("w", "CANCELLED")


@broken("marked early")
def a_record_in_the_inbox_without_an_effect(run: Script) -> None:
    run.through("w", "CHECKED", "REVIEW")
    run.consume("m1")
    run.drop("consumed")
    run.not_consumed.add("m1")


@pytest.mark.parametrize(("name", "do"), BROKEN, ids=[do.__name__ for _, do in BROKEN])
def test_what_an_engine_does_wrong_is_named(name: str, do: Broken) -> None:
    run = Script()
    run.through("other", "CHECKED", "REVIEW")
    do(run)
    found = check(run.end()).anomalies
    assert {anomaly.name for anomaly in found} == {name}, found
    assert all(anomaly.subject in {"w", "gone", *(f"m{n}" for n in range(99))} for anomaly in found)


# ... or a witness saw something other than what was committed.

Seen = Callable[[History], None]
SEEN: list[tuple[str, str, Seen]] = []


def seen(name: str, subject: str) -> Callable[[Seen], Seen]:
    def note(do: Seen) -> Seen:
        SEEN.append((name, subject, do))
        return do

    return note


@seen("lost", "reviewed")
def a_workflow_is_gone(history: History) -> None:
    history.workflows = [workflow for workflow in history.workflows if workflow.id != "reviewed"]


@seen("lost", "reviewed")
def a_workflow_was_set_back(history: History) -> None:
    workflow = next(workflow for workflow in history.workflows if workflow.id == "reviewed")
    history.workflows[history.workflows.index(workflow)] = dataclasses.replace(workflow, status="SHIPPED", version=6)


@seen("lost", "reviewed")
def a_row_of_history_is_gone(history: History) -> None:
    history.changes.remove(next(change for change in history.changes if change.workflow_id == "reviewed"))


@seen("lost", "dead")
def a_dead_job_is_gone(history: History) -> None:
    history.dead_jobs.clear()


@seen("lost", "reviewed")
def an_effect_is_gone(history: History) -> None:
    history.effects.remove(next(effect for effect in history.effects if effect.workflow_id == "reviewed"))


@seen("lost", "m2")
def a_message_never_arrives(history: History) -> None:
    _never_arrives(history)
    _relay_stands_before_everything(history)


@seen("lost", "m2")
def a_record_of_the_inbox_is_gone(history: History) -> None:
    history.inbox.remove("m2")


@seen("phantom", "m-none")
def a_message_of_an_aborted_transaction_arrives(history: History) -> None:
    history.arrivals.append(Arrival("m-none", "m-none/1", "chaos", "entity of reviewed", {}))
    history.parked.append(("m-none", "taken out of the queue"))


@seen("phantom", "m2")
def a_message_arrives_with_another_payload(history: History) -> None:
    history.arrivals[1] = dataclasses.replace(history.arrivals[1], payload={"entity": "another"})


@seen("phantom", "m2")
def a_message_arrives_with_another_topic(history: History) -> None:
    history.arrivals[1] = dataclasses.replace(history.arrivals[1], topic="other")


@seen("phantom", "m-none")
def a_message_is_parked_that_nobody_wrote(history: History) -> None:
    history.parked.append(("m-none", "unroutable"))


@seen("phantom", "nobody's")
def a_workflow_is_there_that_nobody_made(history: History) -> None:
    history.workflows.append(dataclasses.replace(history.workflows[0], id="nobody's"))


@seen("phantom", "reviewed")
def history_is_there_that_nobody_made(history: History) -> None:
    history.changes.append(Change(99, "reviewed", "DONE", "NEW", 99, "k1/1", None, None, BEGAN))


@seen("phantom", "reviewed")
def history_was_rewritten(history: History) -> None:
    change = next(change for change in history.changes if change.workflow_id == "reviewed")
    history.changes[history.changes.index(change)] = dataclasses.replace(change, actor="somebody")


@seen("phantom", "reviewed")
def an_effect_is_there_that_no_transaction_made(history: History) -> None:
    history.effects.append(Effect("inside", "reviewed", "act", 1, None, None, BEGAN))


@seen("marked early", "m2")
def the_cursor_passed_a_message_that_never_arrived(history: History) -> None:
    _never_arrives(history)


@seen("marked early", "m2")
def the_cursor_stands_in_a_window_behind_a_message_that_never_arrived(history: History) -> None:
    _never_arrives(history)
    _relay_stands_before_everything(history, window_end="99:99:", position="2")


@seen("marked early", "m2")
def a_delivery_was_acknowledged_and_had_no_effect(history: History) -> None:
    _without_consumption(history, {"inbox", "consumed"})
    history.inbox.remove("m2")


@seen("inversion", "reviewed")
def a_key_arrives_out_of_order(history: History) -> None:
    first, second = (n for n, arrival in enumerate(history.arrivals[:3]) if arrival.message_id in ("m2", "m3"))
    history.arrivals[first], history.arrivals[second] = history.arrivals[second], history.arrivals[first]


@seen("stuck", "the run")
def the_relay_is_behind(history: History) -> None:
    _never_arrives(history)
    _relay_stands_before_everything(history)
    history.not_drained.append("the relay is behind")


@seen("held up", "the run")
def rows_that_somebody_held_have_held_up_all_others(history: History) -> None:
    history.held_up.append("no worker has changed anything")


def _never_arrives(history: History) -> None:
    history.arrivals = [arrival for arrival in history.arrivals if arrival.message_id != "m2"]


def _without_consumption(history: History, tables: set[str]) -> None:
    for n, done in enumerate(history.transactions):
        writes = [each for each in done.writes if each.table not in tables or each.row["message_id"] != "m2"]
        history.transactions[n] = dataclasses.replace(done, writes=tuple(writes))
    history.effects = [effect for effect in history.effects if effect.message_id != "m2"]


def _relay_stands_before_everything(history: History, window_end: str | None = None, position: str = "0") -> None:
    relay = write("relays", "update", name="default", window_start="0:0:", window_end=window_end, position=position)
    last = history.transactions[-1]
    history.transactions.append(dataclasses.replace(last, writes=(relay,)))


@pytest.mark.parametrize(("name", "subject", "do"), SEEN, ids=[do.__name__ for _, _, do in SEEN])
def test_what_a_witness_saw_otherwise_is_named(name: str, subject: str, do: Seen) -> None:
    history = tour().end()
    do(history)
    assert {(anomaly.name, anomaly.subject) for anomaly in check(history).anomalies} == {(name, subject)}


def test_a_job_that_is_due_in_the_end_is_stuck() -> None:
    run = Script()
    run.through("w", "CHECKED")
    history = run.end()
    assert [(found.name, found.subject) for found in check(history).anomalies] == [("stuck", "w")]
    run.claim("w")
    history = run.end()
    assert history.jobs == [Job(0, "w", "decide", "CHECKED", 1, "1", None)]
    assert [(found.name, found.subject) for found in check(history).anomalies] == [("stuck", "w")]


def test_a_parked_message_is_not_lost() -> None:
    history = tour().end()
    _never_arrives(history)
    _without_consumption(history, {"inbox", "consumed"})
    history.inbox.remove("m2")
    history.parked.append(("m2", "unroutable"))
    assert names(history) == set()


def test_without_strict_order_is_not_asked_for() -> None:
    history = tour().end()
    history.arrivals.reverse()
    assert names(history) == {"inversion"}
    history.strict = False
    assert names(history) == set()


# The story, and the time to recover.


def test_the_story_has_what_every_witness_saw_in_order_of_time() -> None:
    history = tour().end()
    told = story(history, "troubled")
    for what in (
        "entity of troubled",
        "k1/3 asks: submit",
        "k1/3 is told: ok, created",
        "insert workflow_states current_status=NEW version=1",
        "update jobs stage=check status=NEW owner=1 attempt=1",
        "update jobs stage=check status=CHECKING attempt=2 due=t",
        "3: CHECKING to CHECKED by worker-3, check, attempt 3",
        "effect outside of check, attempt 2, key troubled:check:1",
        "insert messages message_id=m7",
        "chaos of entity of troubled arrives: m7/1",
        "a consumer's effect for message m7",
        "message m7 is in the inbox",
        "workflow entity of troubled: CANCELLED, version 4",
    ):
        assert what in told
    assert "reviewed" not in told
    times = [float(line.split()[0]) for line in told.splitlines()[1:]]
    assert times == sorted(times)
    assert told.splitlines()[1].split()[1] == "client"


def test_the_story_of_a_message_is_that_of_its_workflow() -> None:
    assert story(tour().end(), "m7").splitlines()[1:] == story(tour().end(), "troubled").splitlines()[1:]


def test_the_story_of_a_call_without_a_workflow_is_what_the_client_was_told() -> None:
    run = Script()
    run.call("submit", "gone", None, "ok", "created")
    told = story(run.end(), "gone")
    assert "k1/1 is told: ok, created" in told


def test_the_story_of_the_run_says_why_it_is_not_drained() -> None:
    history = Script().end()
    history.not_drained.append("2 jobs are open")
    assert "2 jobs are open" in story(history, "the run")


def test_a_recovery_is_counted_from_the_kill_to_the_next_claim() -> None:
    run = Script()
    run.through("a", "CHECKED")
    run.through("b", "CHECKED")
    run.claim("a", 1)
    run.claim("b", 1)
    killed = BEGAN + len(run.transactions) - 0.5
    run.commit(write("workers", "delete", id=1))
    run.sweep("a")
    run.sweep("b")
    run.claim("b", 2)
    claimed = BEGAN + len(run.transactions) - 1
    run.hand("a", "CANCELLED")  # nobody has to claim it again
    run.finish("b", "REVIEW")
    history = run.end()
    assert recoveries(history, [("worker-1", killed)]) == [claimed - killed]
    assert recoveries(history, [("worker-2", killed)]) == []
    assert recoveries(history, [("worker-1", BEGAN)]) == []


def test_a_long_run_is_checked_in_linear_time() -> None:
    def takes(workflows: int) -> float:
        run = Script()
        for n in range(workflows):
            run.through(f"w{n}", "CHECKED", "APPROVED", "SHIPPED", "DONE")
            for message in range(5 * n + 1, 5 * n + 6):
                run.consume(f"m{message}")
        history = run.end()
        began = time.process_time()
        assert check(history).ok
        return time.process_time() - began

    takes(100)
    assert takes(2_000) < 40 * takes(200)
