"""How a figure and what it was measured on are written, in tables and in pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or isinstance(value, int) else f"{value:.2f}"


def measured_on(where: Mapping[str, Any]) -> str:
    """Return in a line what the figures mean nothing without."""
    postgres = where["postgres"]
    settings = ", ".join(f"{name} {postgres[name]}" for name in ("fsync", "shared_buffers"))
    return (
        f"{where['cores']} cores ({where['cpu']}) and {where['memory']} shared by all, "
        f"Postgres {postgres['server_version']}, {settings}, Python {where['python']}"
    )
