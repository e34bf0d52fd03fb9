"""Formats figures, and what they were measured on, for tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or isinstance(value, int) else f"{value:.2f}"


def measured_on(where: Mapping[str, Any]) -> str:
    """Returns the machine and the settings in one line, without which the figures mean nothing."""
    postgres = where["postgres"]
    settings = ", ".join(f"{name} {postgres[name]}" for name in ("fsync", "shared_buffers"))
    return (
        f"{where['cores']} cores ({where['cpu']}) and {where['memory']} shared by all, "
        f"Postgres {postgres['server_version']}, {settings}, Python {where['python']}"
    )
