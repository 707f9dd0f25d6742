"""grpc.health: whether the server, and each service, answers. Open to everybody.

grpc's own servicer holds a lock while it sends, which waits for the thread that polls, which waits for the lock where a
watcher leaves: two clients that watch and leave again, or one that takes nothing, would halt the whole server
(docs/reproductions/health_watch.py).
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1.health import SERVICE_NAME

from rolecall.errors import ServiceUnknown
from rolecall.server.handler import Call, Method
from rolecall.server.transport.executors import Executors
from rolecall.services.unit_of_work import UnauthenticatedCall

__all__ = ["READY", "SERVICE_NAME", "Health"]

READY = "rolecall.ready"
"""Service that is SERVING while Checks are answered, for readiness probes."""

# Threads that notify watchers, and the seconds that all of them have when the server stops.
NOTIFIERS = 16
NOTIFY_SECONDS = 1.0

_SERVING, _NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING
_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN
_METHODS = pb.DESCRIPTOR.services_by_name["Health"].methods_by_name


class Health:
    """The health service: everything is SERVING until the server stops, but for `READY`. Threads may share it."""

    def __init__(self, services: Iterable[str], is_ready: Callable[[], bool]) -> None:
        """The server itself has the empty name. `is_ready` gives the status of `READY`; it must not block."""
        self._names = frozenset(["", READY, *services])
        self._status: int = _SERVING
        self._is_ready = is_ready
        self._watchers: set[_Watcher] = set()
        self._notifiers = ThreadPoolExecutor(NOTIFIERS, thread_name_prefix="health")

    @property
    def methods(self) -> list[Method]:
        """The unary RPCs, which the transport serves like ours. None of them blocks."""
        return [
            Method(
                f"/{SERVICE_NAME}/{name}", _kinds(name)[0], run, managing=False, open=True, run_cached=_serialized(run)
            )
            for name, run in (("Check", self._check), ("List", self._list))
            # Older versions of the protocol have no List.
            if name in _METHODS
        ]

    def status(self, service: str) -> int:
        """The status of one service."""
        if service == READY and not self._is_ready():
            return _NOT_SERVING
        return self._status if service in self._names else _UNKNOWN

    def notify_watchers(self) -> None:
        """Send watchers each status that has changed. Never blocks; called periodically.

        Clients that don't read hold the threads, and delay this for others, until their connections end.
        """
        for watcher in list(self._watchers):
            if watcher.is_outdated and not watcher.is_queued:
                watcher.is_queued = True
                self._notifiers.submit(watcher.notify_queued)

    def add_watch(self, server: grpc.Server, executors: Executors) -> None:
        """Serve Watch, which streams each change of a status."""

        def watch(request: pb.HealthCheckRequest, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            watcher = _Watcher(self, request.service, context, send)
            self._watchers.add(watcher)
            # Called in grpc's polling thread: it must not block.
            if not context.add_callback(lambda: self._watchers.discard(watcher)):
                self._watchers.discard(watcher)
            watcher.notify()

        # Without this, every watching client would hold a thread.
        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
        executors.run_dedicated("health", watch)
        decode = pb.HealthCheckRequest.FromString
        encode = pb.HealthCheckResponse.SerializeToString
        handlers: dict[str, Any] = {"Watch": grpc.unary_stream_rpc_method_handler(watch, decode, encode)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    def stop(self) -> None:
        """Set every status to NOT_SERVING, notify the watchers, and end their streams.

        Streams of clients that don't read in time end with the server.
        """
        self._status = _NOT_SERVING
        # Not those of `notify_watchers`, which clients may hold.
        notifiers = ThreadPoolExecutor(NOTIFIERS, thread_name_prefix="health-stop")
        wait([notifiers.submit(watcher.end) for watcher in list(self._watchers)], NOTIFY_SECONDS)
        for each in (notifiers, self._notifiers):
            each.shutdown(wait=False, cancel_futures=True)

    def _check(self, request: pb.HealthCheckRequest, _call: UnauthenticatedCall) -> pb.HealthCheckResponse:
        status = self.status(request.service)
        if status != _UNKNOWN:
            return pb.HealthCheckResponse(status=status)
        name = request.service if len(request.service) <= 80 else f"{request.service[:80]}…"
        raise ServiceUnknown(
            f"There is no service {name!r}: ask with an empty name for the whole server, or for one that"
            " `grpcurl … list` shows.",
            field="service",
        )

    def _list(self, _request: Message, _call: UnauthenticatedCall) -> Message:
        statuses = {name: pb.HealthCheckResponse(status=self.status(name)) for name in sorted(self._names)}
        return _kinds("List")[1](statuses=statuses)


def _serialized(run: Callable[[Any, UnauthenticatedCall], Message]) -> Callable[[Any, Call], bytes]:
    """`run` with a serialized response. It doesn't block, and uses nothing of the call."""
    nobody = UnauthenticatedCall("", "", "")
    return lambda request, _: run(request, nobody).SerializeToString()


def _kinds(method: str) -> tuple[type[Message], type[Message]]:
    """Return the classes of a method's request and response."""
    descriptor: Any = _METHODS[method]
    return GetMessageClass(descriptor.input_type), GetMessageClass(descriptor.output_type)


class _Watcher:
    """One client of Watch. Sending to it blocks until the client reads."""

    def __init__(
        self, health: Health, service: str, context: grpc.ServicerContext, send: Callable[[Any], None]
    ) -> None:
        self._health = health
        self._service = service
        self._context = context
        self._send = send
        # Held while sending, so that the newest status is sent last. The polling thread never takes it.
        self._sending = threading.Lock()
        self._sent: int | None = None
        # Whether a thread is to notify the client, or does so now.
        self.is_queued = False

    @property
    def is_outdated(self) -> bool:
        """Whether the client was sent another status than the present one."""
        return self._health.status(self._service) != self._sent

    def notify(self) -> None:
        """Send the status, if it differs from the one sent last."""
        with self._sending:
            status = self._health.status(self._service)
            if status != self._sent:
                self._sent = status
                self._send(pb.HealthCheckResponse(status=status))

    def notify_queued(self) -> None:
        """Notify the client, which may then be queued again."""
        try:
            self.notify()
        finally:
            self.is_queued = False

    def end(self) -> None:
        """Send the status for the last time, and end the stream."""
        self.notify()
        self._context.set_code(grpc.StatusCode.UNAVAILABLE)
        self._context.set_details("The server stops: watch another one.")
        self._send(None)
