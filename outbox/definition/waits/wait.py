"""Defines the protocol of waits. A handler returns a wait when its workflow waits for something other than a worker.

A wait is a status that no stage takes. A decision, a signal, a deadline, or a person who sets the status by hand ends
the wait by changing the status. The change and the end of the wait are one transaction.

Each kind is one class in one module of this package, and one section of sql/functions/waits.sql. The rest of the engine
knows only this protocol.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

Data = TypeVar("Data")

WaitJson = dict[str, Any]
"""A wait as JSON for the database. `waits_begin` in sql/functions/waits.sql reads it."""


class Wait(ABC, Generic[Data]):
    """A handler's result that says where its workflow goes and what it waits for there.

    The class is a frozen dataclass. It checks its values when it is made, and raises InvalidInput if they can't be
    stored.
    """

    __slots__ = ()

    delays_a_stage: ClassVar[bool] = False
    """Whether a stage takes the status in which the workflow waits. Such a wait only delays the job of that stage."""

    @property
    @abstractmethod
    def status(self) -> str | None:
        """The status to wait in. None stands for the only next status of the handler's stage."""

    @property
    @abstractmethod
    def data(self) -> Data | None:
        """The workflow's new data. None leaves the data as it is."""

    @property
    @abstractmethod
    def leads_to(self) -> Sequence[str]:
        """The statuses that the end of this wait may lead to. Each must be a legal change from `status`."""

    @abstractmethod
    def as_wait(self) -> WaitJson | None:
        """Returns the wait as JSON for the database. None means that there is nothing to wait for."""
