"""A pause or a signal of a name that nothing has is refused or doubted; and which release a worker runs is told."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

import outbox
from kit.commands import Outbox
from kit.pipelines import Post, deployed, drain, value
from kit.servers import wait_for
from outbox import InvalidInput, Pipeline, Run, WaitForSignal, Worker

Conn = psycopg.Connection[Any]

posts = Pipeline("posts", data=Post, initial="NEW", final={"DONE"})


@posts.stage("enrich", on="NEW", to="WAITING")
async def enrich(run: Run[Post]) -> WaitForSignal[Post]:
    return WaitForSignal(run.data.content, to="DONE")


posts.allow("WAITING", to="DONE")


@pytest.fixture
def command(conn: Conn, dsn: str) -> Outbox:
    deployed(conn, posts)
    return Outbox(dsn)


def test_a_pause_of_an_unknown_stage_is_refused_with_the_nearest(command: Outbox, conn: Conn) -> None:
    said = command.fails("pause", "enrihc")
    assert said == 'outbox: no pipeline that is deployed here has a stage "enrihc"; did you mean enrich?'
    assert command.fails("pause", "post.enrich").endswith("did you mean posts.enrich?")
    assert 'no deployed pipeline "shop" has a stage "enrich"' in command.fails("pause", "enrich", "--pipeline", "shop")
    assert "did you mean" not in command.fails("resume", "zzz")
    pause = "INSERT INTO outbox.pauses (pipeline, stage, paused_by) VALUES (%s, %s, 'ann') ON CONFLICT DO NOTHING"
    for pipeline, stage, nearest in (
        ("posts", "enrihc", "posts.enrich"),
        ("post", "enrich", "posts.enrich"),
        ("a", "b", None),
    ):
        with pytest.raises(psycopg.Error) as refused:
            conn.execute(pause, (pipeline, stage))
        error = outbox.error_of(refused.value)
        assert isinstance(error, outbox.UnknownStage)
        assert (error.pipeline, error.stage, error.nearest) == (pipeline, stage, nearest)
        assert (nearest or "Deploy") in str(refused.value.diag.message_hint)
    conn.execute(pause, ("posts", "enrich"))
    conn.execute(pause, ("posts", "enrich"))
    assert value(conn, "SELECT count(*) FROM outbox.pauses") == 1


def test_a_signal_that_nobody_has_waited_for_is_kept_and_doubted(command: Outbox, conn: Conn, dsn: str) -> None:
    posts.submit_many(conn, [("a", Post(content="payment")), ("b", Post(content="payment"))])
    notices: list[str] = []
    conn.add_notice_handler(lambda told: notices.append(str(told.message_primary)))
    early = outbox.signal(conn, posts, "a", "payment")
    assert early.doubt == 'no workflow of pipeline "posts" has waited for a signal "payment" so far'
    assert notices == [f"the signal is kept: {early.doubt}"]
    drain(posts, dsn)
    notices.clear()
    wrong = outbox.signal(conn, posts, "b", "paymnt")
    assert wrong.doubt is not None
    assert wrong.doubt.endswith('so far; did you mean "payment"?')
    assert len(notices) == 1
    said = command("signal", "b", "paymant")
    assert "kept until it is waited for" in said.out
    assert said.err == (
        'warning: no workflow of pipeline "posts" has waited for a signal "paymant" so far; did you mean "payment"?\n'
    )
    found = command("doctor", "--json", code=None).json
    assert sorted(row["what"] for row in found if "kept for posts" in row["what"]) == [
        f'1 signal kept for posts, such as for b: no workflow of pipeline "posts" has waited for a signal "{name}" '
        'so far; did you mean "payment"?' for name in ("paymant", "paymnt")
    ]  # fmt: skip
    notices.clear()
    assert outbox.signal(conn, posts, "b", "payment").doubt is None
    assert command("signal", "a", "payment").err == "", "a name that was waited for is known, though it is kept"
    assert notices == []
    assert not [row for row in command("doctor", "--json", code=None).json if "kept for" in row["what"]], "b has ended"


def test_a_pipeline_that_makes_a_name_for_each_workflow_is_not_doubted(command: Outbox, conn: Conn, dsn: str) -> None:
    posts.submit_many(conn, [(f"e{n}", Post(content=f"payment of e{n}")) for n in range(120)])
    drain(posts, dsn)
    assert value(conn, "SELECT count(*) FROM outbox.signal_names") <= 100 + 20, "a batch may pass the bound"
    posts.submit(conn, "late", Post(content="x"))
    assert outbox.signal(conn, posts, "late", "payment of late").doubt is None
    conn.execute("DELETE FROM outbox.workflow_states")
    command("drop", "posts", "--yes")
    assert value(conn, "SELECT count(*) FROM outbox.signal_names") == 0


def test_the_release_of_a_worker_is_told(
    command: Outbox, conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "release" not in command("status").out
    with pytest.raises(InvalidInput, match="release"):
        Worker(posts, dsn, release="x" * 201)
    released = "SELECT array_agg(release ORDER BY release) FROM outbox.workers"

    async def main() -> None:
        monkeypatch.setenv("OUTBOX_RELEASE", "v2")
        workers = [Worker(posts, dsn), Worker(posts, dsn, release="v1")]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        try:
            await asyncio.to_thread(
                wait_for, lambda: value(conn, released) == ["v1", "v2"], what="both have registered"
            )
            found = await asyncio.to_thread(command, "status", "--json")
            assert sorted(row["release"] for row in found.json["workers"]) == ["v1", "v2"]
            assert "v1" in (await asyncio.to_thread(command, "status")).out
            found = await asyncio.to_thread(command, "doctor", "--json", code=None)
            told = [row["what"] for row in found.json if "releases" in row["what"]]
            assert told == ["workers of several releases serve posts.enrich: v1, v2"]
        finally:
            for worker in workers:
                worker.stop()
            await asyncio.gather(*running)

    asyncio.run(main())


def test_the_command_takes_a_release(command: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    said = command("worker", "--app", "apps.plain:app", "--drain", "--release", "x" * 201, code=1).err
    assert "release: has 201 characters" in said
