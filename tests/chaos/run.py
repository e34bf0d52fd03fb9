"""Runs one test: starts servers, processes and clients, injects faults, heals all, waits until it is drained, checks.

`make chaos DURATION=180 SEED=7` runs every configuration. What a run prints, above all its seed, repeats it, within the
limits of processes, networks and two cores, which never do the same twice.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from .cast import Cast, Config
from .checker import Verdict, check, recoveries, story
from .nemesis import Injected, Nemesis
from .witnesses import LogReader, Tap, gather, remaining

# By who made the change: a mutant may lose the stage.
JOBS = "SELECT count(*) FROM outbox.state_changes WHERE actor LIKE 'worker-%'"

DRAIN = 60.0
"""Seconds without any progress, after which what is still due when the last fault is healed will never be done."""

LONGEST_DRAIN = 600.0
"""Seconds after which it is given up anyhow."""

PROGRESS = """
    SELECT (SELECT count(*) FROM outbox.state_changes) + (SELECT count(*) FROM outbox.dead_jobs)
         + (SELECT count(*) FROM outbox.inbox)
"""


@dataclass(slots=True)
class Result:
    """The result of a run."""

    config: str
    seed: int
    seconds: float
    verdict: Verdict
    counts: dict[str, int]
    kills: Counter[str]
    faults: Counter[str]
    recoveries: list[float]
    drained: float
    exits: list[str]
    stories: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.verdict.ok and not self.exits

    def document(self) -> dict[str, Any]:
        """The result as JSON data."""
        found = sorted(self.recoveries)
        return {
            "config": self.config,
            "seed": self.seed,
            "seconds": round(self.seconds),
            "ok": self.ok,
            "anomalies": [asdict(anomaly) for anomaly in self.verdict.anomalies[:50]],
            "counts": self.counts,
            "kills": dict(self.kills),
            "faults": dict(self.faults),
            "recovery_p50": round(statistics.median(found), 2) if found else None,
            "recovery_p99": round(found[min(len(found) - 1, int(len(found) * 0.99))], 2) if found else None,
            "drained_after": round(self.drained, 1),
            "exits": self.exits,
        }


def run(
    config: Config,
    *,
    seconds: float,
    seed: int,
    rate: float,
    trouble: float = 0.03,
    drain: float = DRAIN,
    keep: Path | None = None,
    jobs: int = 0,
    faults: int = 0,
) -> Result:
    """Runs one configuration and checks it. With `keep`, logs of a run that isn't clean are moved there.

    It runs on until it has had this many `jobs` and `faults`: see LONGEST in nemesis.py.
    """
    folder = Path(tempfile.mkdtemp(prefix="chaos", dir="/tmp"))
    began = time.time()
    cast = Cast(config, folder, seed, trouble)
    tap = None

    def say(what: str) -> None:
        print(f"  {time.time() - began:6.1f} s  {what}", file=sys.stderr, flush=True)

    try:
        cast.start()
        reader, tap = LogReader(cast), Tap(cast.broker.url)
        say(f"{config.name}, seed {seed}: Postgres {config.postgres}, {config.workers} workers")
        cast.play(rate)
        time.sleep(2)
        nemesis = Nemesis(cast, seed, config.faults, say)
        nemesis.run(time.time() + seconds, lambda: len(nemesis.injected) >= faults and _jobs(cast) >= jobs)
        cast.calm()
        cast.stop_clients()
        say("healed; what is due is to be done")
        healed = time.time()
        left = _drain(cast, tap, drain)
        drained = time.time() - healed
        say(f"drained after {drained:.1f} s" if not left else f"not drained: {', '.join(left)}")
        cast.end()
        tap.end()
        reader.end()
        history = gather(cast, tap, left)
        verdict = check(history)
        result = Result(
            config.name, seed, time.time() - began, verdict, verdict.counts, cast.kills, _faults(nemesis.injected),
            recoveries(history, _with_an_heir(cast)), drained, [*cast.exits, *nemesis.failed],
        )  # fmt: skip
        for anomaly in verdict.anomalies[:3]:
            result.stories.append(story(history, anomaly.subject))
        if keep is not None and not result.ok:
            kept = shutil.ignore_patterns("image", "volume")
            shutil.copytree(folder, keep / f"{config.name}-{seed}", dirs_exist_ok=True, ignore=kept)
            say(f"logs are in {keep / f'{config.name}-{seed}'}")
        return result
    finally:
        cast.remove()
        shutil.rmtree(folder, ignore_errors=True)


def _jobs(cast: Cast) -> int:
    """Returns how many jobs there were so far; 0 if the database can't be asked just now."""
    try:
        with psycopg.connect(cast.direct, autocommit=True, connect_timeout=5) as conn:
            (made,) = conn.execute(JOBS).fetchone() or (0,)
            return int(made)
    except psycopg.Error:
        return 0


def _drain(cast: Cast, tap: Tap, seconds: float) -> list[str]:
    """Wait until nothing is due, as long as there is progress; return what is still due then.

    A busy machine makes everything slow, and a hung thread keeps what is behind it waiting. Neither is a verdict.
    """
    began, moved, done = time.time(), time.time(), 0
    left = ["nobody could be asked"]
    while left and time.time() < min(moved + seconds, began + LONGEST_DRAIN):
        time.sleep(0.3)
        try:
            with psycopg.connect(cast.direct, autocommit=True, connect_timeout=5) as conn:
                # A person's part: messages that were refused for a while are sent again.
                conn.execute("UPDATE outbox.parked_messages SET retry = true WHERE NOT retry")
                left = remaining(conn, cast, tap)
                (now_done,) = conn.execute(PROGRESS).fetchone() or (0,)
                if now_done + len(tap.seen) > done:
                    moved, done = time.time(), now_done + len(tap.seen)
        except (psycopg.Error, OSError, RuntimeError) as error:
            left = [repr(error)]
    return left


def _with_an_heir(cast: Cast) -> list[tuple[str, float]]:
    """Returns workers that were killed, and when, while another one was running and lived on.

    Where all are killed, the start of new processes takes long, on two cores that they share with everything else.
    """
    workers = [death for death in cast.deaths if death.kind == "worker"]
    lives = [(death.begun, death.at) for death in workers] + [(role.begun, math.inf) for role in cast.of("worker")]
    return [
        (death.worker, death.at)
        for death in workers
        if death.worker and death.point != "SIGTERM"
        and any(begun + 2 < death.at < end - 3 for begun, end in lives)
    ]  # fmt: skip


def _faults(injected: list[Injected]) -> Counter[str]:
    return Counter(name for each in injected for name in each.names)


def report(result: Result) -> str:
    """Returns a run in a few lines."""
    found = result.document()
    kills = ", ".join(f"{point} {count}" for point, count in sorted(result.kills.items()))
    lines = [
        f"{'✔' if result.ok else '✘'} {result.config} (seed {result.seed}, {result.seconds:.0f} s): "
        f"{len(result.verdict.anomalies)} anomalies",
        "    " + ", ".join(f"{name} {count}" for name, count in result.counts.items()),
        f"    kills: {kills or 'none'}; faults: {', '.join(f'{n} {c}' for n, c in sorted(result.faults.items()))}",
        f"    next attempt after a kill beside a living worker: p50 {found['recovery_p50']} s, p99 {found['recovery_p99']} s; drained after {result.drained:.1f} s",
    ]
    lines += [f"    {anomaly.name}: {anomaly.subject}: {anomaly.why}" for anomaly in result.verdict.anomalies[:20]]
    lines += [f"    exit: {text}" for text in result.exits[:5]]
    lines += [f"\n{text}" for text in result.stories]
    return "\n".join(lines)


def dump(results: list[Result], file: Path) -> None:
    file.write_text(json.dumps([result.document() for result in results], indent=1) + "\n", encoding="utf-8")
