"""A web page on which people see, decide and repair. It needs the extra `ui`."""

from .app import dashboard
from .person import Person

__all__ = ["Person", "dashboard"]
