"""Gates: TCP connections through a process of the test, which can cut them as a partition does.

A gate that is shut forwards nothing either way and answers nothing, as a network that loses every packet; connections
stay open and go on where they stood if it opens again before anybody gave up.
"""

from __future__ import annotations

import contextlib
import socket
import threading

CHUNK_BYTES = 64 << 10
DIAL_TIMEOUT_S = 5.0


class Gate:
    """Forwards from a port of its own to `target` (host:port). `address` is what the parties dial."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._open = threading.Event()
        self._open.set()
        self._closed = False
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="gate", daemon=True).start()

    def shut(self) -> None:
        """Forward nothing from now on."""
        self._open.clear()

    def open(self) -> None:
        """Forward again."""
        self._open.set()

    def close(self) -> None:
        """End everything."""
        self._closed = True
        self._open.set()
        self._end(self._listener)
        with self._lock:
            left = list(self._sockets)
        for each in left:
            self._end(each)

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(near,), name="gate", daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        self._open.wait()
        try:
            far = socket.create_connection(self._target, timeout=DIAL_TIMEOUT_S)
        except OSError:
            self._end(near)
            return
        far.settimeout(None)
        with self._lock:
            self._sockets |= {near, far}
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._pump, args=(source, sink), name="gate", daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                self._open.wait()
                sink.sendall(data)
        self._open.wait()  # nobody hears of an end through a partition
        for each in (source, sink):
            self._end(each)

    def _end(self, each: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(each)
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
