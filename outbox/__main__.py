"""`python -m outbox` is the command `outbox`."""

from .cli import main

main(prog_name="outbox")
