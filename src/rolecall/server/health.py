"""grpc.health: whether the server, and each service, answers. Open to everybody.

grpc's own servicer holds a lock while it sends, which waits for the thread that polls, which waits for the lock where a
watcher leaves: two clients that watch and leave again, or one that takes nothing, would halt the whole server.
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
from rolecall.mutations import Arrival
from rolecall.server.calls import Method
from rolecall.server.threads import Threads

__all__ = ["SERVICE_NAME", "Health"]

# So many watchers are told at once that the server stops, and all of them within so long.
TELLERS = 16
TELL_SECONDS = 1.0

_SERVING, _NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING
_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN
_METHODS = pb.DESCRIPTOR.services_by_name["Health"].methods_by_name


class Health:
    """The health of a server and its services: all well, until it stops. Threads may share it."""

    def __init__(self, services: Iterable[str]) -> None:
        """The server itself has the empty name."""
        self._names = frozenset(["", *services])
        self._status: int = _SERVING
        self._watchers: set[_Watcher] = set()

    @property
    def methods(self) -> list[Method]:
        """The RPCs that ask for it once, to be served like ours. They wait for nothing."""
        return [
            Method(f"/{SERVICE_NAME}/{name}", _kinds(name)[0], run, managing=False, open=True, at_once=True)
            for name, run in (("Check", self._check), ("List", self._list))
            # Older versions of the protocol have no List.
            if name in _METHODS
        ]

    def status(self, service: str) -> int:
        """The status of one service."""
        return self._status if service in self._names else _UNKNOWN

    def add_watch(self, server: grpc.Server, threads: Threads) -> None:
        """Serve the RPC that tells of each change."""

        def watch(request: pb.HealthCheckRequest, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            watcher = _Watcher(self, request.service, context, send)
            self._watchers.add(watcher)
            # The thread that polls does this: it must wait for nothing.
            if not context.add_callback(lambda: self._watchers.discard(watcher)):
                self._watchers.discard(watcher)
            watcher.tell()

        # Else every client that watches would hold a thread.
        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
        threads.run_apart("health", watch)
        decode = pb.HealthCheckRequest.FromString
        encode = pb.HealthCheckResponse.SerializeToString
        handlers: dict[str, Any] = {"Watch": grpc.unary_stream_rpc_method_handler(watch, decode, encode)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    def stop(self) -> None:
        """Nothing serves any more: whoever watches is told so, and their streams end.

        Those that don't take it in time are left to the server's own stop.
        """
        self._status = _NOT_SERVING
        tellers = ThreadPoolExecutor(TELLERS, thread_name_prefix="health")
        wait([tellers.submit(watcher.end) for watcher in list(self._watchers)], TELL_SECONDS)
        tellers.shutdown(wait=False, cancel_futures=True)

    def _check(self, request: pb.HealthCheckRequest, _arrival: Arrival) -> pb.HealthCheckResponse:
        status = self.status(request.service)
        if status != _UNKNOWN:
            return pb.HealthCheckResponse(status=status)
        name = request.service if len(request.service) <= 80 else f"{request.service[:80]}…"
        raise ServiceUnknown(
            f"There is no service {name!r}: ask with an empty name for the whole server, or for one that"
            " `grpcurl … list` shows.",
            field="service",
        )

    def _list(self, _request: Message, _arrival: Arrival) -> Message:
        statuses = {name: pb.HealthCheckResponse(status=self._status) for name in sorted(self._names)}
        return _kinds("List")[1](statuses=statuses)


def _kinds(method: str) -> tuple[type[Message], type[Message]]:
    """What a method takes, and answers."""
    described: Any = _METHODS[method]
    return GetMessageClass(described.input_type), GetMessageClass(described.output_type)


class _Watcher:
    """One client that watches. Sending to it waits until it takes what is sent."""

    def __init__(
        self, health: Health, service: str, context: grpc.ServicerContext, send: Callable[[Any], None]
    ) -> None:
        self._health = health
        self._service = service
        self._context = context
        self._send = send
        # Of those only who tell; the newest comes last.
        self._telling = threading.Lock()
        self._told: int | None = None

    def tell(self) -> None:
        """Say how it is, where that is new."""
        with self._telling:
            status = self._health.status(self._service)
            if status != self._told:
                self._told = status
                self._send(pb.HealthCheckResponse(status=status))

    def end(self) -> None:
        """Say how it is for the last time."""
        self.tell()
        self._context.set_code(grpc.StatusCode.UNAVAILABLE)
        self._context.set_details("The server stops: watch another one.")
        self._send(None)
