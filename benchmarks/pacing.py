"""Load generator with calls evenly spaced in time, over many connections: `pacing.py ADDRESS FILE SECONDS`.

h2load sends the calls that one of its clients owes every 10 ms in one burst, and ghz uses up a core at 4,400 calls a
second: so neither measures latency at a steady rate. A call's latency begins when the call is due, not when it could be
sent. FILE has the flows as JSON; the latencies, in microseconds, are printed as JSON.
"""

import base64
import gc
import json
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

__all__ = ["framed"]

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW_SIZE = 4
_LARGEST_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535
# Entries of HPACK's static table, and the first index of the dynamic table, whose newest entry comes first.
_POST, _HTTP, _PATH, _AUTHORITY = b"\x83", b"\x86", 4, 1
_FIRST_ADDED = 62
# How long the last calls are waited for after the last one was sent.
_PATIENCE_SECONDS = 5.0


def framed(message: bytes) -> bytes:
    """Frame a message as gRPC sends it."""
    return b"\0" + struct.pack(">I", len(message)) + message


@dataclass
class Flow:
    """Calls of one method: `rate` per second in all, with the messages in turn, over `connections` connections.

    With the rate 0, each connection always has one call in flight. The tokens are presented in turn too.
    """

    name: str
    path: str
    tokens: list[str]
    rate: float
    connections: int
    messages: list[bytes]
    latencies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Encode the headers that differ from call to call."""
        several = len(self.tokens) > 1
        self.bearers = cycle(
            [_literal(0, "authorization", f"Bearer {token}") if several else b"" for token in self.tokens]
        )


class _Connection:
    """HTTP/2 connection with the due times of its calls in flight."""

    def __init__(self, address: str, flow: Flow) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.flow = flow
        self.due: dict[int, float] = {}
        self._next = 1
        self._rest = b""
        window = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
        more = struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW)
        begin = (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, window) + _frame(_WINDOW_UPDATE, 0, 0, more)
        )
        self.socket.sendall(begin)
        named = [
            _added(_PATH, "", f"/{flow.path}"),
            _added(_AUTHORITY, "", address),
            _added(0, "content-type", "application/grpc"),
            _added(0, "te", "trailers"),
        ]
        # A single token is indexed too.
        if len(flow.tokens) == 1:
            named.append(_added(0, "authorization", f"Bearer {flow.tokens[0]}"))
        self._headers = _POST + _HTTP + b"".join(named)
        # From the second call on, headers are sent by their index.
        self._again = _POST + _HTTP + bytes(0x80 | _FIRST_ADDED + place for place in range(len(named)))

    def send(self, message: bytes, due: float) -> None:
        """Send a call."""
        stream, self._next = self._next, self._next + 2
        self.due[stream] = due
        headers = _frame(_HEADERS, _END_HEADERS, stream, self._headers + next(self.flow.bearers))
        self._headers = self._again
        self.socket.sendall(headers + _frame(_DATA, _END_STREAM, stream, message))

    def receive(self) -> None:
        """Read from the socket, and record the latencies of the calls that have ended."""
        data = self._rest + self.socket.recv(1 << 16)
        if len(data) == len(self._rest):
            raise SystemExit("The server closed a connection.")
        at, place, at_most = time.perf_counter(), 0, len(data) - 9
        while place <= at_most:
            size = int.from_bytes(data[place : place + 3], "big")
            end = place + 9 + size
            if end > len(data):
                break
            kind, flags = data[place + 3], data[place + 4]
            stream = int.from_bytes(data[place + 5 : place + 9], "big")
            if kind == _HEADERS and flags & _END_STREAM:
                self.flow.latencies.append(1e6 * (at - self.due.pop(stream)))
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self.socket.sendall(_frame(kind, _ACK, 0, data[place + 9 : end] if kind == _PING else b""))
            elif kind in (_RST_STREAM, _GOAWAY):
                raise SystemExit(f"The server broke off: {data[:end]!r}.")
            place = end
        self._rest = data[place:]


def main() -> None:
    """Make the calls, and print their latencies."""
    address, file, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    flows = [_flow(each) for each in json.loads(file.read_text())]
    gc.disable()
    _run(address, flows, seconds)
    print(json.dumps({flow.name: [round(each, 1) for each in flow.latencies] for flow in flows}))


def _flow(fields: dict[str, Any]) -> Flow:
    return Flow(**fields | {"messages": [framed(base64.b64decode(each)) for each in fields["messages"]]})


def _run(address: str, flows: list[Flow], seconds: float) -> None:
    connections = {flow.name: [_Connection(address, flow) for _ in range(flow.connections)] for flow in flows}
    poller = select.epoll()
    by_number = {}
    for each in (each for several in connections.values() for each in several):
        poller.register(each.socket, select.EPOLLIN)
        by_number[each.socket.fileno()] = each
    began = time.perf_counter()
    paced = [flow for flow in flows if flow.rate]
    turns = [(cycle(connections[flow.name]), cycle(flow.messages), 1 / flow.rate) for flow in paced]
    # Flows of the same rate are offset, so that they don't send at the same time.
    due = [began + place / len(turns) * every for place, (_, _, every) in enumerate(turns)]
    steady = [(connections[flow.name], cycle(flow.messages)) for flow in flows if not flow.rate]
    end = began + seconds
    while (at := time.perf_counter()) < end:
        for place, (whose, what, every) in enumerate(turns):
            while due[place] <= at:
                next(whose).send(next(what), due[place])
                due[place] += every
        for several, what in steady:
            for each in several:
                if not each.due:
                    each.send(next(what), at)
        # The process has a core of its own, and never sleeps.
        for number, _ in poller.poll(0):
            by_number[number].receive()
    until = time.perf_counter() + _PATIENCE_SECONDS
    while any(each.due for each in by_number.values()):
        if time.perf_counter() > until:
            raise SystemExit("Calls were never answered.")
        for number, _ in poller.poll(0):
            by_number[number].receive()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(place: int, name: str, value: str) -> bytes:
    """Encode a header that isn't added to the dynamic table."""
    return bytes([place]) + (b"" if place else _text(name)) + _text(value)


def _added(place: int, name: str, value: str) -> bytes:
    """Encode a header that is added to the dynamic table; `place` is its name's index in the static table, or 0."""
    return _literal(0x40 | place, name, value) if place else b"\x40" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    raw = text.encode()
    size = len(raw)
    return (bytes([size]) if size < 127 else bytes([127, size - 127])) + raw


if __name__ == "__main__":
    main()
