"""grpc.health: whether the server, and each service, answers. Open to everybody."""

from collections.abc import Callable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from rolecall.server.threads import Threads

__all__ = ["add_health"]


def add_health(server: grpc.Server, services: Iterable[str], threads: Threads) -> health.HealthServicer:
    """Serve the health of `services` and of the server itself, all well for now; the answer changes them."""
    servicer = health.HealthServicer()
    for name in ["", *services]:
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)

    def check(request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> health_pb2.HealthCheckResponse:
        return servicer.Check(request, context)

    def watch(
        request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext, send: Callable[[Any], None]
    ) -> None:
        servicer.Watch(request, context, send)

    # Else every client that watches would hold a thread.
    watch.experimental_non_blocking = True  # type: ignore[attr-defined]
    threads.run_apart("health", check, watch)
    decode = health_pb2.HealthCheckRequest.FromString
    encode = health_pb2.HealthCheckResponse.SerializeToString
    handlers: dict[str, Any] = {
        "Check": grpc.unary_unary_rpc_method_handler(check, decode, encode),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, decode, encode),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(health.SERVICE_NAME, handlers),))
    return servicer
