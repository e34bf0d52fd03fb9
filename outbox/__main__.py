"""Runs the command `outbox` for `python -m outbox`."""

from .cli import main

main(prog_name="outbox")
