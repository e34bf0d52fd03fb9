"""An application whose handlers and ticks misbehave as their entities' names tell, for processes of their own."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from outbox import Backoff, Pipeline, Run, Tick
from outbox.engine import handlers

handlers.LOST_AFTER = float(os.environ.get("LOST_AFTER", handlers.LOST_AFTER))
TIMEOUT = float(os.environ.get("TIMEOUT", "60"))
RETRY = Backoff(first=0.05, factor=1, attempts=int(os.environ.get("ATTEMPTS", "2")))

app: Pipeline[dict[str, Any]] = Pipeline("h", initial="NEW", final={"DONE"})
app.allow("NEW", to={"SYNC", "ASYNC"})


def told(run: Run[Any]) -> None:
    run.log.info("begun")


@app.stage("threaded", on="SYNC", to="DONE", retry=RETRY, timeout=TIMEOUT, concurrency=2)
def threaded(run: Run[Any]) -> None:
    told(run)
    match run.entity_id.rstrip("0123456789"):
        case "hang":
            time.sleep(3600)
        case "fork" if os.fork() == 0:
            return  # the child, too
        case "fork and exit" if os.fork() == 0:
            sys.exit(3)


async def never_ending() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


async def ends_all() -> None:
    sys.exit(3)


@app.stage("looped", on="ASYNC", to="DONE", retry=RETRY, timeout=TIMEOUT)
async def looped(run: Run[Any]) -> None:
    told(run)
    match run.entity_id.rstrip("0123456789"):
        case "block":
            time.sleep(float(os.environ.get("BLOCK", "3600")))  # noqa: ASYNC251
        case "swallow":
            await never_ending()
        case "subtask that swallows":
            asyncio.create_task(never_ending())  # noqa: RUF006
        case "subtask that exits":
            await asyncio.create_task(ends_all())
        case "subtask that exits later":
            asyncio.create_task(ends_all())  # noqa: RUF006
        case "callback that exits":
            asyncio.get_running_loop().call_soon(sys.exit, 3)
            await asyncio.sleep(0.05)
        case "thread":
            threading.Thread(target=time.sleep, args=(3600,), name="its own").start()
        case "executor":
            asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
        case "fork" if os.fork() == 0:
            return  # the child, too
        case "fork and wait" if os.fork() == 0:
            await asyncio.sleep(3600)
        case "process":
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
            child.start()
            child.terminate()
            child.join()
            assert child.exitcode == -signal.SIGTERM, child.exitcode
        case "pool":
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.map(abs, [-1, -2]) == [1, 2]
        case "ignore":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "cancel all":
            for task in asyncio.all_tasks():
                task.cancel()
            await asyncio.sleep(3600)
        case "stop":
            asyncio.get_running_loop().stop()
            await asyncio.sleep(0)
        case "exit":
            os._exit(int(run.entity_id.removeprefix("exit")))
        case "orphan":
            subprocess.run(["sh", "-c", "(sleep 0.2; exit 3) & exit 0"], check=True)  # noqa: ASYNC221


if os.environ.get("TICK"):

    @app.every("* * * * * *", name="tick")
    def tick(tick: Tick) -> None:
        print("ticking", file=sys.stderr, flush=True)
        time.sleep(3600)
