"""The public lane: messages pass through grpc as bytes, so that what can fail does so inside `Calls`.

Handlers are of the streaming kind, which looks the same to clients: grpc would have a thread wait for the message of a
unary one, a stranger's too, before it asks us.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from rolecall.server.calls import REQUEST_ID, Calls, Incoming, Method, peer_of
from rolecall.server.strangers import on_threads_of_their_own

__all__ = ["Handler", "handler_for"]

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class _GivenUp(grpc.RpcError):
    """The client waits no longer."""


def handler_for(method: Method, calls: Calls, *, streaming: bool) -> Handler:
    """What grpc calls for an RPC; `streaming` where it answers with many messages."""

    def unary(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        if not context.is_active():
            # Its client gave up while it waited for a thread.
            return b""
        incoming = _incoming(messages, context, calls)
        answer = calls.answer(method, incoming)
        if not isinstance(answer, bytes):
            _abort(context, answer, incoming.request_id)
        return answer

    def stream(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        if not context.is_active():
            return
        incoming = _incoming(messages, context, calls)
        for answer in calls.stream(method, incoming):
            if not isinstance(answer, bytes):
                _abort(context, answer, incoming.request_id)
            yield answer

    if not streaming:
        if method.open:
            # A stranger who sends no message holds none of the callers' threads.
            on_threads_of_their_own(method.action, unary)
        return grpc.stream_unary_rpc_method_handler(unary)
    # Whoever reads slowly holds a thread for as long.
    on_threads_of_their_own(method.action, stream)
    return grpc.stream_stream_rpc_method_handler(stream)


def _incoming(messages: Iterator[bytes], context: grpc.ServicerContext, calls: Calls) -> Incoming:
    metadata = context.invocation_metadata()
    request_id = calls.request_id(metadata)
    context.set_trailing_metadata(((REQUEST_ID, request_id),))

    def confirm() -> None:
        if not context.is_active() or (context.time_remaining() or 1.0) <= 0:
            raise _GivenUp

    return Incoming(messages, metadata, request_id, lambda: peer_of(context.peer()), confirm)


def _abort(context: grpc.ServicerContext, answer: status_pb2.Status, request_id: str) -> None:
    status = rpc_status.to_status(answer)
    context.set_trailing_metadata((*status.trailing_metadata, (REQUEST_ID, request_id)))
    context.abort(status.code, status.details)
