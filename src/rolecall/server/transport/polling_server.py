"""Polling transport: unary calls are received in the thread that polls grpc's queue, and answered there if cached.

grpc's public server hands every call to a thread and back, which costs more than a Check does. For an event that isn't
its own, its polling thread calls the event's tag: so methods can be served inside the standard server without its
threads. What the cache misses is loaded, or run in an executor. A call without a message holds no thread.

Under load, pending calls are answered in batches: the Python part of one takes a third as long right behind another's,
as grpc's and the kernel's work between two calls evicts it from the processor's caches.

Health's Watch, reflection, streams, TLS and shutdown stay the standard server's.
"""

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import structlog

from rolecall.server.handler import Method
from rolecall.server.transport.call_limits import CallLimits
from rolecall.server.transport.cygrpc import NOTHING, CompletionQueue
from rolecall.server.transport.executors import Executors
from rolecall.server.transport.polling_call import Handler, PollingCall, Tag, cancel, log_failure

__all__ = ["WATCHDOG_SECONDS", "PollingServer"]

# Calls of each method that are requested in advance; further calls wait in grpc.
REQUESTED = 32
# Maximum calls answered in one batch. A batch is answered earlier after EMPTY_POLLS polls in a row without an event:
# in each poll grpc reads one socket, and not each socket has a call.
BATCH = 32
EMPTY_POLLS = 3
# Empty polls before the thread blocks, about 20 µs in all: waking a sleeping processor for the next call takes longer,
# and as much processor time (one call in flight: p50 89 to 56 µs, CPU 68 to 62 µs a call).
IDLE_POLLS = 16
# Seconds after which the polling thread counts as stuck in one step.
STUCK_SECONDS = 30.0
# Seconds between two rounds of the watchdog that calls `PollingServer.check`.
WATCHDOG_SECONDS = 0.5

_log = structlog.get_logger("rolecall.transport")


class PollingServer:
    """Server of unary methods within a grpc server, to be created before that is started."""

    def __init__(
        self,
        server: grpc.Server,
        methods: Iterable[Method],
        handler: Handler,
        executors: Executors,
        limits: CallLimits,
        on_poller: Callable[[int], None] = lambda _ident: None,
    ) -> None:
        """`on_poller` gets the id of the polling thread with its first event."""
        self.queue = CompletionQueue(server)
        self.handler = handler
        self.limits = limits
        self.executors = executors
        self.sent: Tag = _SentTag(self)
        # Receivers whose next call is to be requested, once for each call, and those where that failed.
        self.to_request: list[_MethodReceiver] = []
        self.failed: list[_MethodReceiver] = []
        self._on_poller = on_poller
        self._poller: threading.Thread | None = None
        # Calls to be answered in the next batch, and whether a call came since the queue was last empty.
        self._ready: list[PollingCall] = []
        self._is_busy = False
        # Steps of the polling thread, and whether it is in one: for the watchdog.
        self._steps = 0
        self._is_working = False
        self._seen_steps = 0
        self._idle_rounds = 0
        # Loaded calls, which other threads hand over while the polling thread is awake.
        self._is_awake = False
        self._loaded: list[PollingCall] = []
        self._lock = threading.Lock()
        self._stopping = False
        self._receivers = [_MethodReceiver(self, method) for method in methods]
        for receiver in self._receivers:
            self.queue.register(receiver.method.name)

    def start(self) -> None:
        """Request calls, once the grpc server is started."""
        for receiver in self._receivers:
            for _ in range(REQUESTED):
                receiver.request()

    def stop(self) -> None:
        """Expect the polling thread to end. The caller stops the grpc server itself."""
        self._stopping = True

    def run_events(self, event: Any) -> tuple[object, tuple[()]]:
        """Run an event and all that are pending. grpc's polling thread calls it.

        An event must be released before the next poll: grpc's own loop says why.
        """
        if self._poller is None:
            self._poller = threading.current_thread()
            self._on_poller(threading.get_ident())
        self._is_working = self._is_awake = True
        self._is_busy = False
        result: tuple[object, tuple[()]] = NOTHING
        while event is not None:
            self._steps += 1
            if not isinstance(event.tag, Tag):
                # All calls are answered first: it may be the server's last event.
                while self._ready or not self._fall_asleep():
                    self._answer_ready()
                self.request_next_calls()
                result = self.queue.process_grpc_event(event)
                break
            event.tag.on_event(event)
            event = None
            event = self._next_event()
        self._is_working = False
        return result

    def enqueue(self, call: PollingCall) -> None:
        """Answer a READY call: at once where it comes alone, else in the next batch."""
        if self._is_busy:
            self._ready.append(call)
        else:
            self._is_busy = True
            call.prepare()
            call.proceed()

    def resume(self, call: PollingCall) -> bool:
        """Have the polling thread answer a LOADED call; False where that thread is asleep."""
        with self._lock:
            if self._is_awake:
                self._loaded.append(call)
            return self._is_awake

    def check(self) -> None:
        """Retry failed requests; end the process where the polling thread is dead or stuck. Called by a watchdog.

        Every method would hang then while the port still accepts: the supervisor starts a new process.
        """
        for _ in range(len(self.failed)):
            self.failed.pop().request()
        # Rounds are counted instead of seconds: a process that was halted for a while ran none.
        self._idle_rounds = self._idle_rounds + 1 if self._is_working and self._steps == self._seen_steps else 0
        self._seen_steps = self._steps
        stuck = self._idle_rounds * WATCHDOG_SECONDS > STUCK_SECONDS
        dead = self._poller is not None and not self._poller.is_alive()
        if (dead or stuck) and not self._stopping:
            try:
                _log.critical("polling thread is stuck or dead: the process ends", dead=dead)
            finally:
                os._exit(70)

    def _fall_asleep(self) -> bool:
        """Refuse further loaded calls; False where some are to be answered first."""
        with self._lock:
            self._is_awake = bool(self._loaded)
            return not self._is_awake

    def _next_event(self) -> Any:
        """Return the next event; None once none is pending, and no call is to be answered."""
        if len(self._ready) + len(self._loaded) >= BATCH:
            self._answer_ready()
        poll = self.queue.poll
        polls = 0
        while (event := poll()) is None:
            polls += 1
            if self._ready or self._loaded:
                if polls >= EMPTY_POLLS:
                    self._answer_ready()
                    polls = 0
            elif polls == 1:
                self.request_next_calls()
            elif polls > IDLE_POLLS and self._fall_asleep():
                return None
        return event

    def _answer_ready(self) -> None:
        """Answer the ready calls and at most one batch of loaded ones, so that the next call doesn't wait long."""
        batch, self._ready = self._ready, []
        if self._loaded:
            with self._lock:
                batch += self._loaded[:BATCH]
                del self._loaded[:BATCH]
        # All answers first, then all sends: each part stays in the processor's caches.
        for call in batch:
            call.prepare()
        for call in batch:
            call.proceed()
        self._steps += 1
        self.request_next_calls()

    def request_next_calls(self) -> None:
        """Request one call for each that has arrived since."""
        while self.to_request:
            self.to_request.pop().request()


class _MethodReceiver(Tag):
    """Receiver of one method's calls, and the tag of the events of their arrival."""

    def __init__(self, server: PollingServer, method: Method) -> None:
        self.poller: PollingServer = server
        self.method = method
        # Unauthenticated callers delay only each other.
        self._executor = server.executors.dedicated(method.name) if method.open else server.executors.callers

    def request(self) -> None:
        """Request one more call; where that fails, the watchdog tries again. Raises nothing."""
        try:
            self.poller.queue.request(self.method.name, self)
        except ValueError:
            # The server shuts down.
            pass
        except Exception as error:  # noqa: BLE001 - it would end the polling thread
            self.poller.failed.append(self)
            log_failure("call can't be requested", error, method=self.method.name)

    def on_event(self, event: Any) -> None:
        """Start a call that arrives; an event without one is the server's shutdown. Raises nothing."""
        if not event.success:
            return
        # The next one is requested later, so that this delays no answer.
        self.poller.to_request.append(self)
        if len(self.poller.to_request) > REQUESTED // 2:
            self.poller.request_next_calls()
        try:
            PollingCall(self.poller, self.method, self._executor, event).start()
        except Exception as error:  # noqa: BLE001 - as above
            cancel(event.call)
            log_failure("call failed at its start", error, method=self.method.name)


class _SentTag(Tag):
    """Tag of the events that a response was sent."""

    def __init__(self, server: PollingServer) -> None:
        self.poller: PollingServer = server

    def on_event(self, event: Any) -> None:
        """Do nothing: the call is over."""
