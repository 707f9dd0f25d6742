"""Unix socket that workers share: the supervisor forwards each connection to a socket of the least busy worker.

The kernel distributes connections among processes only for TCP ports (SO_REUSEPORT).
"""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rolecall.server.transport import socket_file

__all__ = ["forwarding"]

BACKLOG = 1000
# Seconds in which one end may read what is left of a connection that the other end has closed.
CLOSE_SECONDS = 5.0


@contextmanager
def forwarding(path: Path, mode: int, workers: Sequence[str]) -> Iterator[None]:
    """Within the block, accept connections at `path`, and forward each to one of the sockets at `workers`.

    Raises `ConfigError` where the path can't be listened on.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        with socket_file.claim(path, mode):
            listening.bind(os.fspath(path))
            listening.listen(BACKLOG)
        listening.setblocking(False)
        forwarder = _Forwarder(listening, workers)
        try:
            yield
        finally:
            # Before it stops listening: until then the file can't be another server's.
            path.unlink(missing_ok=True)
            forwarder.stop()


class _Forwarder:
    """Event loop that forwards connections, in a thread of its own."""

    def __init__(self, listening: socket.socket, workers: Sequence[str]) -> None:
        self._listening = listening
        # Open connections to each worker.
        self._connections = dict.fromkeys(workers, 0)
        # The loop itself holds only weak references.
        self._connecting: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="socket-forwarder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Accept and forward nothing more. Open connections end with the process."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        server = self._loop.create_unix_server(lambda: _End(on_made=self._connect), sock=self._listening)
        self._loop.run_until_complete(server)
        self._loop.run_forever()

    def _connect(self, client: "_End") -> None:
        # Nothing is read from the client before a worker can take it.
        client.transport.pause_reading()
        task = self._loop.create_task(self._connect_to_worker(client))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect_to_worker(self, client: "_End") -> None:
        """Connect a client to the worker with the fewest connections; close it where none listens."""
        for worker in sorted(self._connections, key=self._connections.__getitem__):
            self._connections[worker] += 1
            end = _End(on_made=partial(_join, client), on_lost=partial(self._release, worker))
            try:
                await self._loop.create_unix_connection(lambda end=end: end, worker)  # type: ignore[misc]
            except OSError:
                # The worker is starting, or has died.
                self._release(worker)
            else:
                return
        client.transport.abort()

    def _release(self, worker: str) -> None:
        self._connections[worker] -= 1


class _End(asyncio.Protocol):
    """One end of a forwarded connection: what it receives is sent to the other end."""

    transport: asyncio.Transport

    def __init__(self, on_made: Callable[["_End"], None], on_lost: Callable[[], None] = lambda: None) -> None:
        self.other: _End | None = None
        # What was received before there was another end: Python 3.11.2 reads although it was paused when it connected.
        self.early = bytearray()
        self._on_made = on_made
        self._on_lost = on_lost

    def connection_made(self, transport: Any) -> None:
        """Implement `asyncio.Protocol`, as do the other methods."""
        self.transport = transport
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        """Send the data to the other end."""
        if self.other:
            self.other.transport.write(data)
        else:
            self.early += data
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        """Read no more from the other end while this one reads too slowly."""
        if self.other:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read from the other end again."""
        if self.other:
            self.other.transport.resume_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        """Close the other end, once it has read what is left."""
        self._on_lost()
        if self.other:
            self.other.transport.close()
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.other.transport.abort)


def _join(client: _End, worker: _End) -> None:
    """Join two ends. A client that has left meanwhile closes the worker's end."""
    if client.transport.is_closing():
        worker.transport.abort()
        return
    client.other, worker.other = worker, client
    if client.early:
        worker.transport.write(bytes(client.early))
        client.early.clear()
    client.transport.resume_reading()
