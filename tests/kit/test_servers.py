"""Tests that the tests' own servers keep out of each other's way."""

from __future__ import annotations

import random

import pytest

from kit import servers


def test_a_port_that_a_test_has_been_given_is_given_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_dice", random.Random(7))
    first = servers.free_port()
    monkeypatch.setattr(servers, "_dice", random.Random(7))  # another process that throws the same
    assert servers.free_port() != first
