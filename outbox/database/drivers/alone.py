"""Keeps a lock for each connection that threads or tasks may share.

psycopg and psycopg2 let the statements of several threads or tasks into one transaction, in any order. A call of
several statements would have others between them, which it doesn't expect.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from weakref import WeakKeyDictionary

_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_async_locks: WeakKeyDictionary[Any, asyncio.Lock] = WeakKeyDictionary()
_making = threading.Lock()


def lock(conn: Any) -> threading.RLock:
    """Returns the lock of a connection whose calls return. The thread that holds it may take it again."""
    found = _locks.get(conn)
    if found is None:
        with _making:
            found = _locks.setdefault(conn, threading.RLock())
    return found


def async_lock(conn: Any) -> asyncio.Lock:
    """Returns the lock of a connection whose calls are awaited."""
    found = _async_locks.get(conn)
    if found is None:
        with _making:
            found = _async_locks.setdefault(conn, asyncio.Lock())
    return found
