"""The demo's world over real HTTP: how it fails, that a seed fixes it, and that it keeps count."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from outbox.demo.world import MOODS, World, serve

from kit.servers import wait_for


class Clock:
    """A clock that stands until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def running(world: World) -> Iterator[httpx.Client]:
    """A client of that world, served on a free port."""
    server = serve(world)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{server.server_address[1]}", timeout=30, trust_env=False
        ) as client:
            yield client
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def kind(**options: Any) -> World:
    """A world without moods and without delay."""

    class Kind(World):
        def draw(self, number: int) -> str:
            return "fine"

    return Kind(work_seconds=0, **options)


def moody(mood: str, **options: Any) -> World:
    class Moody(World):
        def draw(self, number: int) -> str:
            return mood

    return Moody(work_seconds=0, slow_seconds=0.2, **options)


def answers(seed: int, requests: int) -> list[int | str]:
    """What a world of that seed answers to so many requests, one after the other."""
    seen: list[int | str] = []
    with running(World(seed=seed, work_seconds=0, slow_seconds=0)) as client:
        for _ in range(requests):
            try:
                seen.append(client.post("/enrich", json={"content": "fine"}).status_code)
            except httpx.HTTPError as error:
                seen.append(type(error).__name__)
    return seen


def test_the_same_seed_gives_the_same_answers() -> None:
    first = answers(seed=3, requests=120)
    assert first == answers(seed=3, requests=120)
    assert first != answers(seed=4, requests=120)
    assert {200, 429, 503, "RemoteProtocolError"} <= set(first)


def test_every_mood_is_drawn_about_as_often_as_it_says() -> None:
    world = World(seed=1)
    drawn = [world.draw(number) for number in range(5_000)]
    for mood, percent in MOODS.items():
        assert abs(drawn.count(mood) / 50 - percent) < 2


def test_enrich_scores_sentiment_and_finds_hashtags() -> None:
    with running(kind()) as client:
        glad = client.post("/enrich", json={"content": "I love it! #happy #ünï"}).json()
        angry = client.post("/enrich", json={"content": "I hate this horrible scam"}).json()
    assert glad["sentiment"] > 0.5 > -0.5 > angry["sentiment"]
    assert glad["hashtags"] == ["happy", "ünï"]


def test_a_rate_limit_says_when_to_come_back() -> None:
    with running(moody("429")) as client:
        answer = client.post("/enrich", json={"content": "x"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")


def test_a_malformed_answer_is_noticed_by_the_client() -> None:
    with running(moody("malformed")) as client, pytest.raises(httpx.RemoteProtocolError):
        client.post("/enrich", json={"content": "x"})


@pytest.mark.parametrize("mood", ["slow", "malformed"])
def test_a_notification_whose_answer_is_lost_counts_once_when_it_is_repeated(mood: str) -> None:
    with running(moody(mood)) as client:
        for _ in range(3):
            with pytest.raises(httpx.HTTPError):
                client.post("/notify", json={"entity_id": "a/1"}, headers={"Idempotency-Key": "k"}, timeout=0.1)

        def counted() -> tuple[int, int]:
            stats = client.get("/stats").json()
            return stats["notifications"], stats["duplicates"]

        # Who gave up was not waited for: the world may be about to count the last of them.
        wait_for(lambda: sum(counted()) == 3, what="three notifications")
        assert counted() == (1, 2)


def test_notifications_are_counted_for_those_who_ask_about_them() -> None:
    with running(kind()) as client:
        for entity in ("a/1", "a/2", "b/1"):
            answer = client.post("/notify", json={"entity_id": entity}, headers={"Idempotency-Key": entity})
            assert answer.json() == {"received": True, "duplicate": False}
        found = {
            about: client.get("/stats", params={"about": about}).json()["notifications"]
            for about in ("a/", "b/", "c/", "")
        }
    assert found == {"a/": 2, "b/": 1, "c/": 0, "": 3}


def test_the_outage_begins_after_so_many_requests_and_ends_in_time() -> None:
    clock = Clock()
    with running(kind(outage_after=2, outage_seconds=5, clock=clock)) as client:

        def post() -> int | None:
            try:
                answer: int = client.post("/enrich", json={"content": "x"}).status_code
            except httpx.RemoteProtocolError:
                return None
            return answer

        assert [post(), post(), post(), post()] == [200, 200, None, None]
        clock.now = 4.9
        assert client.get("/stats").json()["is_out"]
        assert post() is None
        clock.now = 5.0
        assert post() == 200
        stats = client.get("/stats").json()
    assert (stats["requests"], stats["outage"], stats["outage_seconds"], stats["is_out"]) == (
        6,
        3,
        5.0,
        False,
    )


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/enrich", b"not json", 400), ("/enrich", b"[]", 400), ("/enrich", b"{}", 400), ("/other", b"{}", 404)],
)
def test_a_senseless_request_is_refused_and_the_world_goes_on(path: str, body: bytes, status: int) -> None:
    with running(kind()) as client:
        assert client.post(path, content=body).status_code == status
        assert client.post("/enrich", json={"content": "x"}).status_code == 200
