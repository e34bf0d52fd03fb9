"""Runs a TCP proxy before Postgres that loses an answer: the request takes effect, then the connection is cut."""

from __future__ import annotations

import contextlib
import select
import socket
import threading


class LossyProxy:
    """Forwards to a Postgres on loopback. It drops the answer to the first message that contains `marker`.

    With `prepared`, it drops the answer to the message after that: psycopg sends a statement's text to prepare it, and
    executes it with the next message.
    """

    def __init__(self, port: int, marker: bytes, *, prepared: bool) -> None:
        self._target = port
        self._marker = marker
        self._prepared = prepared
        self._armed = True
        self.lost = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server, contextlib.suppress(OSError):
            losing = marked = False
            while True:
                readable, _, _ = select.select([client, server], [], [])
                if server in readable:
                    data = server.recv(65536)
                    if losing or not data:
                        self.lost += losing
                        return
                    client.sendall(data)
                if client in readable:
                    data = client.recv(65536)
                    if not data:
                        return
                    losing = losing or marked
                    if self._armed and self._marker in data:
                        self._armed = False
                        marked, losing = self._prepared, not self._prepared
                    server.sendall(data)
