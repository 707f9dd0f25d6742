"""grpc.health: whether the server, and each service, answers. Open to everybody."""

from collections.abc import Callable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from rolecall.errors import ServiceUnknown
from rolecall.mutations import Arrival
from rolecall.server.calls import Method
from rolecall.server.threads import Threads

__all__ = ["add_watch", "health_check", "health_of"]


def health_of(services: Iterable[str]) -> health.HealthServicer:
    """The health of `services` and of the server itself, all well for now; what this answers changes them."""
    servicer = health.HealthServicer()
    for name in ["", *services]:
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    return servicer


def health_check(servicer: health.HealthServicer) -> Method:
    """The RPC that asks for it once, to be served like ours."""

    def check(request: health_pb2.HealthCheckRequest, _arrival: Arrival) -> health_pb2.HealthCheckResponse:
        context: Any = _Unknown(request.service)
        return servicer.Check(request, context)

    name = f"/{health.SERVICE_NAME}/Check"
    return Method(name, health_pb2.HealthCheckRequest, check, managing=False, open=True, at_once=True)


class _Unknown:
    """As much of a call's context as the servicer uses, for a service that it doesn't know."""

    def __init__(self, service: str) -> None:
        self._service = service

    def set_code(self, _not_found: grpc.StatusCode) -> None:
        name = self._service if len(self._service) <= 80 else f"{self._service[:80]}…"
        raise ServiceUnknown(
            f"There is no service {name!r}: ask with an empty name for the whole server, or for one that"
            " `grpcurl … list` shows.",
            field="service",
        )


def add_watch(server: grpc.Server, servicer: health.HealthServicer, threads: Threads) -> None:
    """Serve the RPC that tells of each change."""

    def watch(
        request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext, send: Callable[[Any], None]
    ) -> None:
        servicer.Watch(request, context, send)

    # Else every client that watches would hold a thread.
    watch.experimental_non_blocking = True  # type: ignore[attr-defined]
    threads.run_apart("health", watch)
    decode = health_pb2.HealthCheckRequest.FromString
    encode = health_pb2.HealthCheckResponse.SerializeToString
    handlers: dict[str, Any] = {"Watch": grpc.unary_stream_rpc_method_handler(watch, decode, encode)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(health.SERVICE_NAME, handlers),))
