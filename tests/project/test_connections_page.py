"""docs/connections.md works as printed, and the calls that it names are those that take a connection."""

from __future__ import annotations

import asyncio
import inspect
import re
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import sqlalchemy
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

import outbox
from kit import django_project
from kit.drivers import url
from kit.pipelines import deployed, drain, status_of
from outbox import Backoff, Inbox, Pipeline, Run, WaitForApproval

Conn = psycopg.Connection[Any]
PAGE = (Path(__file__).parents[2] / "docs" / "connections.md").read_text(encoding="utf-8")


def block(with_: str) -> str:
    """Returns the block of Python that has these words in it."""
    (found,) = [text for text in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if with_ in text]
    return str(found)


class Post(BaseModel):
    content: str


def made() -> Pipeline[Post]:
    posts = Pipeline("posts", data=Post, initial="RECEIVED", final={"PUBLISHED", "REJECTED"})

    @posts.stage("check", on="RECEIVED", to="WAITING", retry=Backoff(attempts=1))
    def check(run: Run[Post]) -> WaitForApproval[Post]:
        if not run.data.content:
            raise ValueError("no customer 17")
        return WaitForApproval("Publish it?", options={"approve": "APPROVED", "reject": "REJECTED"}, assignee="sarah")

    @posts.stage("publish", on="APPROVED", to="PUBLISHED")
    def publish(run: Run[Post]) -> None: ...

    posts.allow("WAITING", to={"APPROVED", "REJECTED"})
    return posts


@pytest.fixture
def posts(conn: Conn) -> Pipeline[Post]:
    conn.execute("CREATE TABLE outbox.post_rows (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text)")
    return deployed(conn, made())


class Base(DeclarativeBase):
    pass


class PostRow(Base):
    __tablename__ = "post_rows"
    __table_args__ = ({"schema": "outbox"},)
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def test_a_session_submits(conn: Conn, dsn: str, posts: Pipeline[Post]) -> None:
    names: dict[str, Any] = {"posts": posts, "Post": Post, "PostRow": PostRow}
    exec(block("AsyncSession"), names)

    async def create() -> None:
        engine = create_async_engine(url(dsn, "asyncpg"), poolclass=NullPool)
        async with AsyncSession(engine) as session:
            await names["create_post"](session, "Hello")

    asyncio.run(create())
    assert status_of(conn, "post_1") == "RECEIVED"


def test_django_submits(conn: Conn, dsn: str, posts: Pipeline[Post]) -> None:
    names: dict[str, Any] = {"posts": posts, "Post": Post, "PostRow": SimpleNamespace(objects=OfDjango)}
    exec(block("from django.db"), names)
    with django_project.database(dsn):
        names["create_post"]("Hello")
    assert status_of(conn, "post_1") == "RECEIVED"


class OfDjango:
    """Stands for the manager of a model."""

    @staticmethod
    def create(text: str) -> Any:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO outbox.post_rows (text) VALUES (%s) RETURNING id", [text])
            return SimpleNamespace(id=cursor.fetchone()[0])


def test_an_application_operates_and_waits(
    conn: Conn, dsn: str, posts: Pipeline[Post], capsys: pytest.CaptureFixture[str]
) -> None:
    posts.submit_many(conn, [("post_7", Post(content="Hello")), ("post_8", Post(content=""))])
    drain(posts, dsn)
    exec(block("outbox.pause"), {"outbox": outbox, "posts": posts, "conn": conn})
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "post_7 Publish it? ['approve', 'reject']"
    assert [line for line in told[1:] if line.startswith("posts APPROVED")] == ["posts APPROVED 1 1 0"]
    actions = "SELECT array_agg(action ORDER BY action) FROM outbox.actions WHERE actor = 'sarah'"
    assert conn.execute(actions).fetchone() == (["pause", "resume", "retry"],)
    assert conn.execute("SELECT topic, key FROM outbox.messages").fetchall() == [("posts.seen", "post_7")]
    drain(posts, dsn)
    exec(block("posts.wait("), {"posts": posts, "dsn": dsn, "timedelta": timedelta})
    assert capsys.readouterr().out == "PUBLISHED content='Hello'\n"


def test_a_worker_asks_for_its_dsn(conn: Conn, dsn: str, posts: Pipeline[Post]) -> None:
    names: dict[str, Any] = {
        "sqlalchemy": sqlalchemy, "posts": posts, "Worker": outbox.Worker,
        "settings": SimpleNamespace(database_url=sqlalchemy.make_url(url(dsn, "asyncpg"))),
        "vault": SimpleNamespace(current_password=lambda: "of today"),
    }  # fmt: skip
    exec(block("vault"), names)
    posts.submit(conn, "post_9", Post(content="Hello"))
    with names["worker"]:
        assert posts.wait(dsn, "post_9", "WAITING", timeout=30).status == "WAITING"


def test_the_calls_that_the_page_names_take_a_connection_and_no_other_does() -> None:
    paragraph = PAGE.split("\n\n")[1]
    calls = {
        function.__name__
        for of in (outbox, Pipeline, Inbox)
        for name, function in inspect.getmembers(of, inspect.isfunction)
        if name in (outbox.__all__ if of is outbox else vars(of))
        and not name.startswith("_")
        and {"conn", "where"} & set(inspect.signature(function).parameters)
    }
    named = {name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", paragraph)} - {"conn"}
    assert named == calls
