"""All that the fast lane uses of grpcio that is private to it. `lane_probe` tries it before it is relied upon."""

from typing import Any

import grpc

try:
    from grpc import _server
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
except ImportError:
    # The probe says so.
    _server: Any = None  # type: ignore[no-redef]
    cygrpc = None

__all__ = ["NOTHING", "Queue", "send_answer", "send_status", "take_message", "watch"]

# What a tag answers to grpc's polling thread: no state of grpc's own, no callbacks.
NOTHING: tuple[None, tuple[()]] = (None, ())

_NO_FLAGS = 0
_LONG_AGO = 0


class Queue:
    """The queue of events of a standard server, which grpc polls in one thread; it calls the tag of each event."""

    def __init__(self, server: grpc.Server) -> None:
        """The server isn't started yet."""
        self._state: Any = server._state  # type: ignore[attr-defined]  # noqa: SLF001 - see the module's docstring
        self._server = self._state.server
        self._queue = self._state.completion_queue
        self._none_there = cygrpc.CompletionType.queue_timeout

    def register(self, method: str) -> None:
        """Have calls of the method come in by `request` alone."""
        self._server.register_method(method)

    def request(self, method: str, tag: object) -> None:
        """Be ready for one more call of the method. Raises `ValueError` while the server shuts down.

        The lock is the one under which a stop begins: what is asked for in the midst of that is never answered, and
        grpc ends the process for it once all else is over.
        """
        with self._state.lock:
            self._server.request_registered_call(self._queue, self._queue, method, tag)

    def poll(self) -> Any:
        """The next event, if there is one now. For the polling thread only."""
        event = self._queue.poll(_LONG_AGO)
        return None if event.completion_type == self._none_there else event

    def pass_on(self, event: Any) -> tuple[object, tuple[()]]:
        """Have grpc do what belongs to an event of its own. The present tag is to answer what this answers.

        Whether the polling thread goes on then is up to grpc: it asks itself when a call of its own is over, and such a
        one it takes this for.
        """
        held = object()
        with self._state.lock:
            self._state.rpc_states.add(held)
        _server._process_event_and_continue(self._state, event)  # noqa: SLF001 - see the module's docstring
        return held, ()


def take_message(call: Any, tag: object) -> None:
    """Ask for a call's message: the event's one operation has it, or None."""
    call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), tag)


def watch(call: Any, tag: object) -> None:
    """Ask to be told of a call's end: the event's one operation says whether it was `cancelled`."""
    call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), tag)


def send_answer(call: Any, answer: bytes, trailers: tuple[Any, ...], tag: object) -> None:
    """End a call with its answer."""
    operations = (
        cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
        cygrpc.SendMessageOperation(answer, _NO_FLAGS),
        cygrpc.SendStatusFromServerOperation(trailers, 0, b"", _NO_FLAGS),
    )
    call.start_server_batch(operations, tag)


def send_status(call: Any, code: int, details: bytes, trailers: tuple[Any, ...], tag: object) -> None:
    """End a call without an answer."""
    operations = (
        cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
        cygrpc.SendStatusFromServerOperation(trailers, code, details, _NO_FLAGS),
    )
    call.start_server_batch(operations, tag)
