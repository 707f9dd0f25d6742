"""The fast lane: unary calls are received in the thread that polls grpc's queue, and answered there where they can be.

grpc's public server hands every call to a thread and back, which costs more than a Check does. For an event that isn't
its own, its polling thread calls the event's tag: so methods can be served inside the standard server, without its
threads. What would have to wait goes to them all the same (`WouldWait`). A call without a message holds no thread.

This module alone uses names that are private to grpcio; `lane_probe` tries them all. Health, reflection, streams, TLS
and shutdown stay the standard server's.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from contextlib import suppress
from typing import Any, Protocol

import grpc
import structlog
from google.rpc import status_pb2
from grpc_status import rpc_status

from rolecall.errors import RateLimited
from rolecall.server.calls import REQUEST_ID, GivenUp, Incoming, Method, peer_of
from rolecall.server.status import status_of
from rolecall.storage import WouldWait

try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
except ImportError:
    # The probe says so.
    cygrpc = None

__all__ = ["Answering", "FastLane"]

# So many calls of each method may come in at once; more wait in grpc.
READY = 32
# A call whose message takes longer is cancelled; of more that wait for theirs, the oldest go.
MESSAGE_SECONDS = 10.0
MAX_WITHOUT_MESSAGE = 10_000
# So many calls wait for threads, with so many bytes of messages; more are refused.
MAX_WAITING = 10_000
MAX_WAITING_BYTES = 64 * 1024 * 1024
LARGE_BYTES = 4096
# How many threads each method that takes no credential has to itself.
STRANGERS = 4
# What is larger takes long to parse.
MAX_AT_ONCE_BYTES = 64 * 1024

_NOTHING: tuple[None, tuple[()]] = (None, ())
_NO_FLAGS = 0
_TOO_MANY = "Too many calls are waiting: try again in a moment."


class Answering(Protocol):
    """What answers calls, as `Calls` does."""

    def request_id(self, metadata: Any) -> str:
        """A call's id."""
        ...

    def admit(self, method: Method, incoming: Incoming) -> status_pb2.Status | None:
        """Why the call isn't let in; None where it is."""
        ...

    def answer(self, method: Method, incoming: Incoming) -> bytes | status_pb2.Status:
        """The answer to a call that was let in."""
        ...


_log = structlog.get_logger("rolecall.fastlane")


class FastLane:
    """Serves unary methods of a server that isn't started yet."""

    def __init__(
        self,
        server: grpc.Server,
        methods: Iterable[Method],
        calls: Answering,
        threads: futures.Executor,
        on_poller: Callable[[int], None] = lambda _ident: None,
    ) -> None:
        """`calls` raise nothing but `WouldWait`, and that only in the thread whose id `on_poller` is told.

        What must wait runs in `threads`.
        """
        state: Any = server._state  # type: ignore[attr-defined]  # noqa: SLF001 - see the module's docstring
        self._server = state.server
        self._queue = state.completion_queue
        self.calls = calls
        self.threads = threads
        self._on_poller = on_poller
        # The calls whose message isn't there yet, and since when; the oldest first.
        self.without_message: dict[_Call, float] = {}
        # What should be ready for one more call, and failed to be.
        self.missing: list[_Reception] = []
        # The calls that wait for a thread, or have one, and the bytes of their messages.
        self.waiting: dict[_Call, int] = {}
        self._poller: threading.Thread | None = None
        self._receptions = [_Reception(self, method) for method in methods]
        for reception in self._receptions:
            self._server.register_method(reception.method.name)
        self._stopped = threading.Event()
        self._watch = threading.Thread(target=self._look_after, name="fastlane", daemon=True)

    def start(self) -> None:
        """Receive calls, once the server is started."""
        for reception in self._receptions:
            for _ in range(READY):
                self.request(reception)
        self._watch.start()

    def stop(self) -> None:
        """Look after nothing any more; the server is to be stopped by its own means."""
        self._stopped.set()

    def request(self, reception: "_Reception") -> None:
        """Be ready for one more call of the method. Raises `ValueError` while the server shuts down."""
        self._server.request_registered_call(self._queue, self._queue, reception.method.name, reception.tag)

    def has_room(self, size: int) -> bool:
        """Whether one more call with so large a message may wait for a thread."""
        if len(self.waiting) >= MAX_WAITING:
            return False
        # Reckoned anew each time, but for large ones only: the small ones of all that may wait have 40 MB.
        return size < LARGE_BYTES or sum(list(self.waiting.values())) + size <= MAX_WAITING_BYTES

    def meet_poller(self) -> None:
        """Remember the thread that polls, which is the present one."""
        if self._poller is None:
            self._poller = threading.current_thread()
            self._on_poller(threading.get_ident())

    def _request_missing(self) -> None:
        for _ in range(len(self.missing)):
            reception = self.missing.pop()
            try:
                self.request(reception)
            except Exception:  # noqa: BLE001 - whatever it is, it may pass
                self.missing.append(reception)

    def _look_after(self) -> None:
        """Cancel what waits for its message too long; end the process where the polling thread is dead."""
        while not self._stopped.wait(0.5):
            self._request_missing()
            try:
                waiting = list(self.without_message.items())
            except RuntimeError:
                # It changed meanwhile.
                continue
            overdue = time.monotonic() - MESSAGE_SECONDS
            for number, (call, since) in enumerate(waiting):
                if since < overdue or len(waiting) - number > MAX_WITHOUT_MESSAGE:
                    self.without_message.pop(call, None)
                    call.cancel()
            if self._poller is not None and not self._poller.is_alive() and not self._stopped.is_set():
                # Every method would hang while the port still accepts: whoever supervises us starts anew.
                try:
                    _log.critical("the polling thread is dead: the process ends")
                finally:
                    os._exit(70)


class _Reception:
    """Receives the calls of one method."""

    def __init__(self, lane: FastLane, method: Method) -> None:
        self.lane = lane
        self.method = method
        # Strangers hold up strangers only.
        self.threads: futures.Executor = (
            futures.ThreadPoolExecutor(STRANGERS, thread_name_prefix=method.action) if method.open else lane.threads
        )
        self.tag = self._arrived

    def _arrived(self, event: Any) -> tuple[None, tuple[()]]:
        lane = self.lane
        if not event.success:
            return _NOTHING
        try:
            lane.request(self)
        except ValueError:
            # The server shuts down: this one is still answered.
            pass
        except Exception as error:  # noqa: BLE001 - it would end the thread that polls for all
            lane.missing.append(self)
            _tell("a call can't be received", self.method, error)
        try:
            lane.meet_poller()
            _Call(self, event).arrived()
        except Exception as error:  # noqa: BLE001 - as above
            _cut_off(event.call)
            _tell("a call failed as it came", self.method, error)
        return _NOTHING


class _Call(Incoming):
    """One call. Its tags run in the polling thread."""

    __slots__ = ("_call", "_details", "_gone", "_message", "_reception")

    def __init__(self, reception: _Reception, event: Any) -> None:
        metadata = event.invocation_metadata
        # Not by `super`, which takes as long again.
        self.metadata = metadata
        self.request_id = reception.lane.calls.request_id(metadata)
        self.caller = None
        self._reception = reception
        self._call = event.call
        self._details = event.call_details
        self._message: bytes | None = None
        self._gone = False

    def message(self) -> bytes | None:
        return self._message

    def peer(self) -> str:
        return peer_of(self._call.peer().decode())

    def confirm(self) -> None:
        if self._is_given_up():
            raise GivenUp

    def cancel(self) -> None:
        """Cut it off."""
        _cut_off(self._call)

    def arrived(self) -> None:
        """Ask for its message, once its sender is known."""
        reception = self._reception
        try:
            refused = reception.lane.calls.admit(reception.method, self)
        except WouldWait:
            self._hand_over(self._introduce)
            return
        if refused:
            self._send(refused)
        else:
            self._receive()

    def _receive(self) -> None:
        self._reception.lane.without_message[self] = time.monotonic()
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self.received)

    def received(self, event: Any) -> tuple[None, tuple[()]]:
        """The message is there, or none is to come."""
        reception = self._reception
        lane = reception.lane
        try:
            lane.without_message.pop(self, None)
            if event.success:
                self._message = event.batch_operations[0].message()
            if reception.method.at_once and len(self._message or b"") <= MAX_AT_ONCE_BYTES:
                try:
                    self._send(lane.calls.answer(reception.method, self))
                except WouldWait:
                    pass
                else:
                    return _NOTHING
            # It is told when the client gives up.
            self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._closed)
            self._hand_over(self._work)
        except Exception as error:  # noqa: BLE001 - it would end the thread that polls for all
            self.cancel()
            _tell("a call failed", reception.method, error, self.request_id)
        return _NOTHING

    def _closed(self, event: Any) -> tuple[None, tuple[()]]:
        try:
            self._gone = bool(event.batch_operations[0].cancelled())
        except Exception as error:  # noqa: BLE001 - as above
            _tell("a call's end was lost", self._reception.method, error, self.request_id)
        return _NOTHING

    def _hand_over(self, work: Callable[[], None]) -> None:
        """Have it done by a thread that may wait, if there is room."""
        lane = self._reception.lane
        size = len(self._message or b"")
        if not lane.has_room(size):
            self._send(status_of(RateLimited(_TOO_MANY), self.request_id))
            return
        lane.waiting[self] = size
        try:
            self._reception.threads.submit(self._do, work)
        except BaseException:
            lane.waiting.pop(self, None)
            raise

    def _do(self, work: Callable[[], None]) -> None:
        method = self._reception.method
        try:
            if self._is_given_up():
                # Its client gave up while it waited for a thread.
                code = grpc.StatusCode.DEADLINE_EXCEEDED if self._is_late() else grpc.StatusCode.CANCELLED
                self._send(status_pb2.Status(code=code.value[0]))
            else:
                work()
        except Exception as error:  # noqa: BLE001 - nobody looks after a thread's work
            self.cancel()
            _tell("a call failed", method, error, self.request_id)
        finally:
            self._reception.lane.waiting.pop(self, None)

    def _introduce(self) -> None:
        """Learn who calls, and ask for the message then."""
        if refused := self._reception.lane.calls.admit(self._reception.method, self):
            self._send(refused)
        else:
            self._receive()

    def _work(self) -> None:
        calls, method = self._reception.lane.calls, self._reception.method
        # It may have waited for a thread while its caller was removed.
        self._send(calls.admit(method, self) or calls.answer(method, self))

    def _send(self, answer: bytes | status_pb2.Status) -> None:
        request_id = (REQUEST_ID, self.request_id)
        if isinstance(answer, bytes):
            operations: tuple[Any, ...] = (
                cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
                cygrpc.SendMessageOperation(answer, _NO_FLAGS),
                cygrpc.SendStatusFromServerOperation((request_id,), 0, b"", _NO_FLAGS),
            )
        else:
            status = rpc_status.to_status(answer)
            trailers = (*status.trailing_metadata, request_id)
            code, details = status.code.value[0], status.details.encode()
            operations = (
                cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
                cygrpc.SendStatusFromServerOperation(trailers, code, details, _NO_FLAGS),
            )
        self._call.start_server_batch(operations, _sent)

    def _is_given_up(self) -> bool:
        return self._gone or self._is_late()

    def _is_late(self) -> bool:
        return bool(self._details.deadline < time.time())


def _tell(what: str, method: Method, error: Exception, request_id: str = "") -> None:
    """Log it. The thread that polls goes on where even that fails."""
    with suppress(Exception):
        _log.error(what, method=method.name, request_id=request_id, exc_info=error)


def _cut_off(call: Any) -> None:
    try:
        call.cancel()
    except Exception:  # noqa: BLE001 - it may be over
        _log.debug("a call was over already")


def _sent(_event: Any) -> tuple[None, tuple[()]]:
    return _NOTHING
