"""All private names of grpcio that the polling transport uses. `probe` tries them at the start."""

from typing import Any

import grpc

try:
    from grpc import _server
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
except ImportError:
    # `probe` reports it.
    _server: Any = None  # type: ignore[no-redef]
    cygrpc = None

__all__ = ["NOTHING", "CompletionQueue", "receive_message", "send_response", "send_status", "watch"]

# The value that a tag returns to grpc's polling thread: no state of grpc's own, no callbacks.
NOTHING: tuple[None, tuple[()]] = (None, ())

_NO_FLAGS = 0
_DEADLINE_PASSED = 0


class CompletionQueue:
    """The completion queue of a standard server. grpc polls it in one thread, and calls the tag of each event."""

    def __init__(self, server: grpc.Server) -> None:
        """Take the queue of a server that isn't started yet."""
        self._state: Any = server._state  # type: ignore[attr-defined]  # noqa: SLF001 - see the module's docstring
        self._server = self._state.server
        self._queue = self._state.completion_queue
        self._no_event = cygrpc.CompletionType.queue_timeout

    def register(self, method: str) -> None:
        """Register the method: its calls arrive through `request` only."""
        self._server.register_method(method)

    def request(self, method: str, tag: object) -> None:
        """Request one more call of the method. Raises `ValueError` while the server shuts down.

        The lock is the one under which a stop begins: a call requested in the middle of a stop is never delivered, and
        grpc aborts the process for it at the end (`server.cc: Check failed: queue.Pop() == nullptr`): see
        docs/reproductions/request_during_stop.py.
        """
        with self._state.lock:
            self._server.request_registered_call(self._queue, self._queue, method, tag)

    def poll(self) -> Any:
        """Return the next pending event, or None. For the polling thread only."""
        event = self._queue.poll(_DEADLINE_PASSED)
        return None if event.completion_type == self._no_event else event

    def process_grpc_event(self, event: Any) -> tuple[object, tuple[()]]:
        """Have grpc process an event of its own. The current tag must return the result to grpc.

        grpc decides whether to continue polling when a call of its own ends, and treats this event as such a call.
        """
        placeholder = object()
        with self._state.lock:
            self._state.rpc_states.add(placeholder)
        _server._process_event_and_continue(self._state, event)  # noqa: SLF001 - see the module's docstring
        return placeholder, ()


def receive_message(call: Any, tag: object) -> None:
    """Receive a call's message: the event's one operation holds it, or None."""
    call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), tag)


def watch(call: Any, tag: object) -> None:
    """Watch a call's end: the event's one operation says whether the call was `cancelled`."""
    call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), tag)


def send_response(call: Any, response: bytes, trailers: tuple[Any, ...], tag: object) -> None:
    """End a call with its response."""
    operations = (
        cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
        cygrpc.SendMessageOperation(response, _NO_FLAGS),
        cygrpc.SendStatusFromServerOperation(trailers, 0, b"", _NO_FLAGS),
    )
    call.start_server_batch(operations, tag)


def send_status(call: Any, code: int, details: bytes, trailers: tuple[Any, ...], tag: object) -> None:
    """End a call with a status and no response."""
    operations = (
        cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
        cygrpc.SendStatusFromServerOperation(trailers, code, details, _NO_FLAGS),
    )
    call.start_server_batch(operations, tag)
