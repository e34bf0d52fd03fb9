"""Simulates the outside world: a small HTTP service that, as real ones do, may answer late, wrongly or not at all.

    python -m outbox.demo.world --port 0 --seed 7 --outage-after 60

`POST /enrich` scores a post. `POST /notify` takes a notification. `GET /stats?about=demo-1/` returns counts; its
notifications are those about entities whose id begins with `demo-1/`. The first line on standard output is the URL.
"""

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import click
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

# How often the world misbehaves in each way, in percent of requests. It answers all others properly.
MOODS = {"429": 6, "503": 5, "slow": 3, "malformed": 4}
# The scorer's time grows with the square of the length, so a very long post could block the world.
SCORED_CHARACTERS = 5_000


@dataclass
class World:
    """Decides how each request is answered, and counts. With the same seed, the n-th request gets the same answer."""

    seed: int = 7
    outage_after: int | None = None  # requests; None: no outage
    outage_seconds: float = 5.0
    slow_seconds: float = 1.5
    work_seconds: float = 0.05
    clock: Callable[[], float] = time.monotonic
    counts: Counter[str] = field(default_factory=Counter)
    told: dict[str, str] = field(default_factory=dict)  # by key: the entity that a notification is about
    outage_began: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    scorer: SentimentIntensityAnalyzer = field(default_factory=SentimentIntensityAnalyzer)

    def mood(self) -> str:
        """Draws how the next request is answered: one of MOODS, "outage" or "fine"."""
        with self.lock:
            self.counts["requests"] += 1
            mood = "outage" if self.is_out() else self.draw(self.counts["requests"])
            self.counts[mood] += 1
            return mood

    def is_out(self) -> bool:
        """Tells whether the outage is on. It begins with the first request after `outage_after` requests."""
        if self.outage_after is None or self.counts["requests"] <= self.outage_after:
            return False
        if self.outage_began is None:
            self.outage_began = self.clock()
        return self.clock() - self.outage_began < self.outage_seconds

    def draw(self, number: int) -> str:
        fine = 100 - sum(MOODS.values())
        draw = random.Random(f"{self.seed}/{number}")
        return draw.choices([*MOODS, "fine"], [*MOODS.values(), fine])[0]

    def enrich(self, content: str) -> dict[str, object]:
        scores = self.scorer.polarity_scores(content[:SCORED_CHARACTERS])
        return {"sentiment": scores["compound"], "hashtags": re.findall(r"#(\w+)", content)}

    def notify(self, key: str, entity: str) -> dict[str, object]:
        """Takes a notification. A notification whose key was seen before has no effect."""
        with self.lock:
            duplicate = key in self.told
            self.told.setdefault(key, entity)
            self.counts["duplicates"] += duplicate
        return {"received": True, "duplicate": duplicate}

    def stats(self, about: str = "") -> dict[str, float]:
        """Returns the counts, how long the outage has lasted, and whether it is still on."""
        names = ["requests", "fine", *MOODS, "outage", "duplicates"]
        with self.lock:
            since = 0.0 if self.outage_began is None else self.clock() - self.outage_began
            counts = {name: self.counts[name] for name in names}
            lasted = min(since, self.outage_seconds)
            is_out = 0 < lasted < self.outage_seconds
            told = sum(entity.startswith(about) for entity in self.told.values())
            return counts | {"notifications": told, "outage_seconds": lasted, "is_out": is_out}


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP for the world: keep-alive, one thread for each connection, an answer in one packet."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    world: World

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/stats":
            about = parse_qs(url.query).get("about", [""])[0]
            self.answer(HTTPStatus.OK, json.dumps(self.world.stats(about)))
        else:
            self.answer(HTTPStatus.NOT_FOUND, "{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        mood = self.world.mood()
        if mood == "outage":
            self.close_connection = True  # without an answer
        elif mood == "429":
            self.answer(HTTPStatus.TOO_MANY_REQUESTS, "{}", {"Retry-After": "1"})
        elif mood == "503":
            self.answer(HTTPStatus.SERVICE_UNAVAILABLE, "upstream connect error")
        else:
            self.work(body, mood)

    def work(self, body: bytes, mood: str) -> None:
        """Does what was asked, then answers. From a slow or malformed answer, callers can't tell that it was done."""
        time.sleep(self.world.work_seconds)
        key = self.headers.get("Idempotency-Key", "")
        try:
            if self.path == "/enrich":
                result = self.world.enrich(str(json.loads(body)["content"]))
            elif self.path == "/notify" and key:
                result = self.world.notify(key, str(json.loads(body)["entity_id"]))
            else:
                return self.answer(HTTPStatus.NOT_FOUND, "{}")
        except (ValueError, KeyError, TypeError):
            return self.answer(HTTPStatus.BAD_REQUEST, '{"error": "a JSON object with content or entity_id is needed"}')
        if mood == "slow":
            time.sleep(self.world.slow_seconds)
        text = json.dumps(result)
        if mood == "malformed":
            self.answer(HTTPStatus.OK, text[: len(text) // 2], {"Content-Length": str(len(text))})
            self.close_connection = True
        else:
            self.answer(HTTPStatus.OK, text)

    def answer(self, status: HTTPStatus, text: str, headers: dict[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True  # the caller gave up or was killed, which is not worth a log line

    def finish(self) -> None:
        with suppress(ConnectionError):  # as above, with an answer still in the buffer
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass  # the counts are enough


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def serve(world: World, port: int = 0) -> Server:
    """Returns a server of that world on the loopback interface, bound and ready for `serve_forever()`."""
    handler = type("WorldHandler", (Handler,), {"world": world})
    return Server(("127.0.0.1", port), handler)


@click.command()
@click.option("--port", default=0, show_default=True, help="The port; 0 means any free one.")
@click.option("--seed", default=7, show_default=True)
@click.option("--outage-after", type=int, help="Number of requests before the outage begins. Default: no outage.")
@click.option("--outage-seconds", default=5.0, show_default=True)
def main(port: int, seed: int, outage_after: int | None, outage_seconds: float) -> None:
    """Serve the world until killed."""
    server = serve(World(seed=seed, outage_after=outage_after, outage_seconds=outage_seconds), port)
    click.echo(f"http://127.0.0.1:{server.server_address[1]}")
    server.serve_forever()


if __name__ == "__main__":
    main()
