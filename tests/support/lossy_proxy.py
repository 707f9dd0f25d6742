"""Proxy between client and server that loses answers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import grpc

from rolecall.client import Client
from rolecall.errors import (
    UnauthenticatedCredential,
)
from support.sites import Site

EXPORT = "/rolecall.v1.AuditService/ExportAuditEntries"


@dataclass
class LossyProxy(grpc.GenericRpcHandler):
    """Proxy between client and server: the server runs every request, and some answers are lost.

    `lose`: number of unary answers that will be lost. `break_after`: number of messages after which each stream breaks;
    None for never. `seen`: the requests received, with their methods.
    """

    server: grpc.Channel
    lose: int = 0
    break_after: int | None = None
    seen: list[tuple[str, bytes]] = field(default_factory=list)

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """Forward any call."""
        method, metadata = details.method, tuple(details.invocation_metadata)
        metadata = tuple(pair for pair in metadata if pair[0] == "authorization")

        def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.seen.append((method, request))
            call = self.server.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
            try:
                answer = call(request, metadata=metadata, timeout=10)
            except grpc.RpcError as error:
                failed = cast("grpc.Call", error)
                context.set_trailing_metadata(tuple(failed.trailing_metadata() or ()))
                context.abort(failed.code(), failed.details() or "")
            if self.lose:
                self.lose -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            return answer

        def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            self.seen.append((method, request))
            call = self.server.unary_stream(method, request_serializer=bytes, response_deserializer=bytes)
            for number, answer in enumerate(call(request, metadata=metadata, timeout=10)):
                if number == self.break_after:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
                yield answer

        if method == EXPORT:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    def request_ids(self, method: str, kind: type) -> list[str]:
        """Return the request ids with which the RPC was called."""
        return [kind.FromString(raw).request_id for name, raw in self.seen if name.endswith(f"/{method}")]  # type: ignore[attr-defined]


OpenProxy = Callable[[Site], tuple[LossyProxy, str]]


def is_live(address: str, secret: str) -> bool:
    """Whether the server accepts the token."""
    with Client(address, secret) as client:
        try:
            return bool(client.session.who_am_i().role)
        except UnauthenticatedCredential:
            return False
