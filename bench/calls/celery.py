"""Runs the job on Celery with RabbitMQ: commits the status change, sends the next task, acknowledges this one.

Settings: the gevent pool, which its guide to concurrency recommends for waiting on the network, as wide as there are
workflows; late acknowledgement, a prefetch of one a slot, no results. A refusal is `retry(countdown=)`.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402  (what waits must be imported after the patch)
import sys  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from celery import Celery  # noqa: E402
from psycopg_pool import ConnectionPool  # noqa: E402

from ..peers.job import NEXT, STATUS_AFTER  # noqa: E402
from .work import CONNECTIONS, PAUSE, TRIES, Busy, Work, leave  # noqa: E402


def main() -> None:
    dsn, port, workflows = sys.argv[1:]
    work = Work(dsn, int(port), int(workflows))
    pool = ConnectionPool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, open=True, timeout=300)
    app = Celery("bench", broker=os.environ["OUTBOX_AMQP_URL"])
    app.conf.update(
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        task_ignore_result=True,
        worker_redirect_stdouts=False,  # the process that measures reads what is printed
        broker_transport_options={"confirm_publish": True},
    )

    def step(task: Any, workflow: int, stage: str) -> None:
        try:
            work.ask_sync(workflow, stage)
        except Busy as error:
            raise task.retry(exc=error, countdown=PAUSE) from error
        with pool.connection() as connection:
            connection.execute(
                "UPDATE workflows SET status = %s, steps = steps + 1 WHERE id = %s", (STATUS_AFTER[stage], workflow)
            )
        if stage in NEXT:
            act.delay(workflow)
        else:
            work.end(workflow)

    @app.task(bind=True, max_retries=TRIES, name="enrich")
    def enrich(task: Any, workflow: int) -> None:
        step(task, workflow, "enrich")

    @app.task(bind=True, max_retries=TRIES, name="act")
    def act(task: Any, workflow: int) -> None:
        step(task, workflow, "act")

    for number in range(work.workflows):
        enrich.delay(number)
    worker = app.Worker(
        pool="gevent", concurrency=work.workflows, loglevel="WARNING", quiet=True,
        without_gossip=True, without_mingle=True, without_heartbeat=True,
    )  # fmt: skip
    gevent.spawn(worker.start)
    while not work.is_done:
        gevent.sleep(0.01)
    leave(work, "celery")


if __name__ == "__main__":
    main()
