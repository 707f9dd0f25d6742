"""Standard transport: grpc's public API. Messages stay bytes in grpc, so that `CallHandler` handles all failures.

Unary methods have streaming handlers, which is the same for clients: for a unary handler, grpc would hold a thread
until the message arrives, before the caller is authenticated.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import grpc
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from rolecall.server.handler import CALL_ID, Call, CallCancelled, CallHandler, Method
from rolecall.server.transport.call_limits import LATE_SECONDS, CallLimits
from rolecall.server.transport.executors import Executors

__all__ = ["add_handlers"]

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def add_handlers(
    server: grpc.Server, methods: Iterable[Method], handler: CallHandler, executors: Executors, limits: CallLimits
) -> None:
    """Register the methods with the server. Each call that waits for its message holds a thread."""
    for method in methods:
        service, _, name = method.name.lstrip("/").partition("/")
        handlers = {name: _handler(method, handler, executors, limits)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def _handler(method: Method, handler: CallHandler, executors: Executors, limits: CallLimits) -> Handler:

    def authenticate(call: "_Call") -> Status | None:
        """Authenticate the caller, then wait for the message; authenticate once more where that took long."""
        began = time.monotonic()
        # Only then, but for open methods: an unauthenticated caller that sends no message holds no thread.
        if refused := handler.authenticate(method, call):
            return refused
        call.receive()
        return handler.authenticate(method, call) if time.monotonic() - began > LATE_SECONDS else None

    def unary(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        if not context.is_active():
            # The client cancelled while the call was queued.
            return b""
        call = _Call(method, messages, context, handler, limits)
        answer = authenticate(call) or handler.answer(method, call)
        if not isinstance(answer, bytes):
            _abort(context, answer, call.call_id)
        return answer

    def stream(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        if not context.is_active():
            return
        call = _Call(method, messages, context, handler, limits)
        if refused := authenticate(call):
            _abort(context, refused, call.call_id)
        for answer in handler.stream(method, call):
            if not isinstance(answer, bytes):
                _abort(context, answer, call.call_id)
            yield answer

    if not method.streaming:
        if method.open:
            # An unauthenticated caller that sends no message holds none of the authenticated callers' threads.
            executors.run_dedicated(method.name, unary)
        return grpc.stream_unary_rpc_method_handler(unary)
    # A client that reads slowly holds a thread for as long.
    executors.run_dedicated(method.name, stream)
    return grpc.stream_stream_rpc_method_handler(stream)


class _Call(Call):
    """A call on grpc's public API."""

    __slots__ = ("_context", "_failure", "_limits", "_message", "_messages")

    def __init__(
        self,
        method: Method,
        messages: Iterator[bytes],
        context: grpc.ServicerContext,
        handler: CallHandler,
        limits: CallLimits,
    ) -> None:
        super().__init__(method.action, *handler.read_metadata(context.invocation_metadata()))
        self._messages = messages
        self._context = context
        self._limits = limits
        self._message: bytes | None = None
        self._failure: Exception | None = None
        context.set_trailing_metadata(((CALL_ID, self.call_id),))

    def receive(self) -> None:
        """Wait for the message, or for its failure, which `message` raises."""
        self._limits.receive(self)
        try:
            self._message = next(self._messages, None)
        except Exception as error:  # noqa: BLE001 - the handler maps it, like any other of the call
            self._failure = error
        self._limits.received(self)

    def message(self) -> bytes | None:
        if self._failure:
            raise self._failure
        return self._message

    def peer(self) -> str:
        return str(self._context.peer())

    def cancel(self) -> None:
        """Cancel the call."""
        self._context.cancel()

    def confirm(self) -> None:
        if not self._context.is_active() or (self._context.time_remaining() or 1.0) <= 0:
            raise CallCancelled


def _abort(context: grpc.ServicerContext, answer: Status, call_id: str) -> None:
    status = rpc_status.to_status(answer)
    context.set_trailing_metadata((*status.trailing_metadata, (CALL_ID, call_id)))
    context.abort(status.code, status.details)
