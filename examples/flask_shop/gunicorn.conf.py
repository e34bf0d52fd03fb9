"""Runs a worker in each of gunicorn's processes. The worker's grace time is below gunicorn's `graceful_timeout`."""

from contextlib import ExitStack
from typing import Any

graceful_timeout = 30

running = ExitStack()


def post_worker_init(process: Any) -> None:
    """Starts the worker when the process has loaded the application. A database that isn't ready ends the process."""
    from examples.flask_shop.app import worker

    running.enter_context(worker)


def worker_exit(server: Any, process: Any) -> None:
    """Stops the worker, and gives running handlers its grace time."""
    running.close()
