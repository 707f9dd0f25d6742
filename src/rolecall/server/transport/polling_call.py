"""Call that grpc's polling thread receives: a state machine, advanced by its events and its queries.

All code that runs in an event catches every exception: one that escapes would end the polling thread and all calls.
"""

import time
from concurrent.futures import Executor, Future
from contextlib import suppress
from enum import Enum, auto
from typing import Any, Protocol

import grpc
import structlog
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from rolecall.errors import RateLimited
from rolecall.identity.batch_loader import Miss
from rolecall.server.error_status import status_of
from rolecall.server.handler import CALL_ID, Call, CallCancelled, Metadata, Method
from rolecall.server.transport import cygrpc
from rolecall.server.transport.call_limits import CallLimits

__all__ = ["Handler", "Poller", "PollingCall", "State", "Tag", "cancel", "log_failure"]

# Larger messages take long to parse: an executor does.
MAX_POLLED_BYTES = 64 * 1024

_TOO_MANY = "Too many calls are queued: try again in a second."
_log = structlog.get_logger("rolecall.transport")


class Handler(Protocol):
    """The methods of `CallHandler` that a call uses. None of them raises."""

    def read_metadata(self, metadata: Metadata) -> tuple[str, str]:
        """Return the call's id and its `authorization`."""
        ...

    def authenticate_cached(self, method: Method, call: Call) -> Status | Miss[Status | None] | None:
        """Authenticate without blocking."""
        ...

    def authenticate(self, method: Method, call: Call) -> Status | None:
        """Authenticate; may block."""
        ...

    def answer_cached(self, method: Method, call: Call) -> bytes | Status | Miss[bytes] | None:
        """Answer without blocking."""
        ...

    def answer(self, method: Method, call: Call) -> bytes | Status:
        """Answer; may block."""
        ...

    def finish(self, method: Method, call: Call, miss: Miss[Any], loaded: Future[Any]) -> Any:
        """Compute the answer to a miss whose query is done."""
        ...

    def fail(self, method: Method, call: Call, error: Exception) -> Status:
        """Return the status for an error."""
        ...


class Poller(Protocol):
    """The parts of `PollingServer` that a call uses."""

    handler: Handler
    limits: CallLimits
    sent: "Tag"

    def run_events(self, event: Any) -> tuple[object, tuple[()]]:
        """Run this event, and all that are pending."""
        ...

    def enqueue(self, call: "PollingCall") -> None:
        """Have the polling thread answer a call whose message has arrived."""
        ...

    def resume(self, call: "PollingCall") -> bool:
        """Have the polling thread answer a call whose query is done; False where that thread is asleep."""
        ...


class Tag:
    """Tag of a completion-queue event. grpc calls it with the first event; it runs that and all pending events."""

    __slots__ = ()

    poller: Poller

    def __call__(self, event: Any) -> tuple[object, tuple[()]]:
        return self.poller.run_events(event)

    def on_event(self, event: Any) -> None:
        """Run the event. Raises nothing."""
        raise NotImplementedError


class State(Enum):
    """The state of a call. CANCELLED and SENT are final."""

    AUTHENTICATING = auto()  # its credential is being looked up
    RECEIVING = auto()  # its request message is awaited
    READY = auto()  # the polling thread answers it next, from the cache
    LOADING = auto()  # the database is read for what the cache misses
    LOADED = auto()  # the query is done, and the answer can be computed
    QUEUED = auto()  # an executor is to run it
    RUNNING = auto()  # an executor runs it
    SENT = auto()
    CANCELLED = auto()


class PollingCall(Call, Tag):
    """Unary call; also the tag of the event that delivers its message."""

    __slots__ = (
        "_answer",
        "_call",
        "_details",
        "_executor",
        "_is_cancelled_by_client",
        "_is_late",
        "_loaded",
        "_message",
        "_method",
        "_miss",
        "poller",
        "state",
    )

    def __init__(self, poller: Poller, method: Method, executor: Executor, event: Any) -> None:
        """`executor` runs what may block."""
        # Set here: a call of `super().__init__` would double the time.
        self.action = method.action
        self.call_id, self.authorization = poller.handler.read_metadata(event.invocation_metadata)
        self.state = State.AUTHENTICATING
        self.poller = poller
        self._method = method
        self._executor = executor
        self._call = event.call
        self._details = event.call_details
        self._message: bytes | None = None
        self._answer: bytes | Status | None = None
        self._miss: Miss[Any] | None = None
        self._loaded: Future[Any] | None = None
        self._is_cancelled_by_client = False
        self._is_late = False

    def message(self) -> bytes | None:
        return self._message

    def peer(self) -> str:
        return str(self._call.peer().decode())

    def confirm(self) -> None:
        if self._is_cancelled():
            raise CallCancelled

    def cancel(self) -> None:
        """Cancel the call. Raises nothing."""
        self.state = State.CANCELLED
        cancel(self._call)

    def start(self) -> None:
        """Authenticate, then receive the message. Raises what fails."""
        refused = self.poller.handler.authenticate_cached(self._method, self)
        if refused is None:
            self._receive()
        elif isinstance(refused, Miss):
            self._load(refused)
        else:
            self._send(refused)

    def _receive(self) -> None:
        self.state = State.RECEIVING
        self.poller.limits.receive(self)
        cygrpc.receive_message(self._call, self)

    def on_event(self, event: Any) -> None:
        """Store the message, None where the client sends none, and enqueue the call. Raises nothing."""
        try:
            self._is_late |= self.poller.limits.received(self)
            if event.success:
                self._message = event.batch_operations[0].message()
            if self._method.run_cached and len(self._message or b"") <= MAX_POLLED_BYTES:
                self.state = State.READY
                self.poller.enqueue(self)
            else:
                self._queue()
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._fail(error)

    def prepare(self) -> None:
        """Compute the answer of a READY or LOADED call, without blocking. Raises nothing."""
        handler, method = self.poller.handler, self._method
        try:
            if self.state is State.LOADED:
                self._prepare_loaded()
                return
            if self._is_late and not self._authenticate_again():
                return
            answer = handler.answer_cached(method, self)
            if isinstance(answer, Miss):
                self._miss = answer
            else:
                self._answer = answer
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._fail(error)

    def proceed(self) -> None:
        """Send the prepared answer, load what is missing, or queue the call for an executor. Raises nothing."""
        if self.state in (State.SENT, State.CANCELLED):
            return
        try:
            if self._answer is not None:
                self._send(self._answer)
            elif self._miss is not None:
                self._load(self._miss)
            else:
                self._queue()
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._fail(error)

    def _prepare_loaded(self) -> None:
        miss, loaded, handler = self._miss, self._loaded, self.poller.handler
        assert miss is not None and loaded is not None  # noqa: S101, PT018 - for the type checker: LOADED
        self._miss = self._loaded = None
        self.poller.limits.dequeue(self)
        if cancelled := self._cancelled_status():
            self._answer = cancelled
            return
        # The query ran for a while.
        if self._authenticate_again():
            self._answer = handler.finish(self._method, self, miss, loaded)

    def _authenticate_again(self) -> bool:
        """Whether the caller is still authenticated, who may have been removed since; a miss is left to an executor."""
        refused = self.poller.handler.authenticate_cached(self._method, self)
        if refused is not None and not isinstance(refused, Miss):
            self._answer = refused
        return refused is None

    def _load(self, miss: Miss[Any]) -> None:
        """Start the query of a miss; the callback of its Future continues the call."""
        limits, is_authenticating = self.poller.limits, self.state is State.AUTHENTICATING
        if not limits.enqueue(self, len(self._message or b"")):
            self._refuse()
            return
        try:
            future = miss.start()
        except Exception as error:  # noqa: BLE001 - a refusal, as RATE_LIMITED
            limits.dequeue(self)
            self._send(self.poller.handler.fail(self._method, self, error))
            return
        if is_authenticating:
            future.add_done_callback(lambda loaded: self._on_authenticated(miss, loaded))
            return
        self.state = State.LOADING
        self._miss = miss
        future.add_done_callback(self._on_loaded)

    def _on_authenticated(self, miss: Miss[Status | None], loaded: Future[Any]) -> None:
        try:
            self.poller.limits.dequeue(self)
            refused = self._cancelled_status() or self.poller.handler.finish(self._method, self, miss, loaded)
            # The query may have read its snapshot a while ago.
            self._is_late = True
            if refused is None:
                self._receive()
            else:
                self._send(refused)
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._fail(error)

    def _on_loaded(self, loaded: Future[Any]) -> None:
        self._loaded = loaded
        self.state = State.LOADED
        # The polling thread answers loaded calls in batches; while it sleeps, the loader's thread answers them.
        if not self.poller.resume(self):
            self.prepare()
            self.proceed()

    def _queue(self) -> None:
        """Have the executor run the call."""
        if not self.poller.limits.enqueue(self, len(self._message or b"")):
            self._refuse()
            return
        self.state = State.QUEUED
        # Its event tells whether the client cancels meanwhile.
        cygrpc.watch(self._call, _EndTag(self))
        try:
            self._executor.submit(self._run)
        except BaseException:
            self.poller.limits.dequeue(self)
            raise

    def _run(self) -> None:
        """Answer the call in an executor, unless its client cancelled. Raises nothing."""
        handler, method = self.poller.handler, self._method
        try:
            self.poller.limits.dequeue(self)
            self.state = State.RUNNING
            # Once more, as its caller may have been removed while the call was queued.
            self._send(self._cancelled_status() or handler.authenticate(method, self) or handler.answer(method, self))
        except Exception as error:  # noqa: BLE001 - nobody looks at the executor's Future
            self._fail(error)

    def on_end(self, event: Any) -> None:
        """Note that the call is over, and whether its client cancelled it."""
        self._is_cancelled_by_client = bool(event.batch_operations[0].cancelled())

    def _refuse(self) -> None:
        self._send(status_of(RateLimited(_TOO_MANY), self.call_id))

    def _send(self, answer: bytes | Status) -> None:
        self.state = State.SENT
        call_id = (CALL_ID, self.call_id)
        if isinstance(answer, bytes):
            cygrpc.send_response(self._call, answer, (call_id,), self.poller.sent)
            return
        status = rpc_status.to_status(answer)
        trailers = (*status.trailing_metadata, call_id)
        cygrpc.send_status(self._call, status.code.value[0], status.details.encode(), trailers, self.poller.sent)

    def _cancelled_status(self) -> Status | None:
        """Return the status of a call whose client gave up while it was queued; None where it didn't."""
        if not self._is_cancelled():
            return None
        code = grpc.StatusCode.DEADLINE_EXCEEDED if self._is_past_deadline() else grpc.StatusCode.CANCELLED
        return Status(code=code.value[0])

    def _is_cancelled(self) -> bool:
        return self._is_cancelled_by_client or self._is_past_deadline()

    def _is_past_deadline(self) -> bool:
        return bool(self._details.deadline < time.time())

    def _fail(self, error: Exception) -> None:
        self.cancel()
        log_failure("call failed", error, method=self._method.name, call_id=self.call_id)
        with suppress(Exception):
            self.poller.limits.dequeue(self)


class _EndTag(Tag):
    """Tag of the event that a call has ended."""

    __slots__ = ("_call", "poller")

    def __init__(self, call: PollingCall) -> None:
        self.poller = call.poller
        self._call = call

    def on_event(self, event: Any) -> None:
        try:
            self._call.on_end(event)
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            log_failure("end of a call not noticed", error, call_id=self._call.call_id)


def cancel(call: Any) -> None:
    """Cancel grpc's `call`, if it isn't over. Raises nothing."""
    with suppress(Exception):
        call.cancel()


def log_failure(what: str, error: Exception, **fields: str) -> None:
    """Log a defect. Raises nothing: the polling thread continues even where logging fails."""
    with suppress(Exception):
        _log.error(what, **fields, exc_info=error)
