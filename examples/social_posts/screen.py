"""Shows the progress of a run: as moving bars on a terminal, otherwise as a line every two seconds."""

import time
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

PATH = ["RECEIVED", "ENRICHED", "WAITING_FOR_REVIEW", "APPROVED", "COMPLETED", "REJECTED"]
PLAIN_EVERY = 2.0  # seconds between two lines, if there is no terminal


class Screen:
    """Shows the number of posts in each status, and prints events with their time."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total = console, total
        self.began = time.monotonic()
        self.printed = self.began
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def say(self, event: str) -> None:
        seconds = time.monotonic() - self.began
        self.console.print(f"{seconds:5.1f} s  {event}", markup=False, highlight=False, soft_wrap=True)

    def show(self, counts: dict[str, int]) -> None:
        if self.live:
            self.live.update(self.bars(counts), refresh=True)
        elif time.monotonic() - self.printed >= PLAIN_EVERY:
            self.printed = time.monotonic()
            self.say(" · ".join(f"{status} {counts[status]}" for status in PATH if counts.get(status)))

    def bars(self, counts: dict[str, int]) -> Table:
        """Returns a bar for each status, as long as its share of the posts."""
        grid = Table.grid(padding=(0, 1))
        for status in PATH:
            number = counts.get(status, 0)
            grid.add_row(status, str(number), "█" * round(40 * number / self.total))
        return grid
