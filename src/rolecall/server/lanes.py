"""The public lane: messages pass through grpc as bytes, so that what can fail does so inside `Calls`.

Handlers are of the streaming kind, which looks the same to clients: grpc would have a thread wait for the message of a
unary one, a stranger's too, before it asks us.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from rolecall.server.calls import REQUEST_ID, Call, Calls, GivenUp, Method, peer_of
from rolecall.server.threads import Threads
from rolecall.server.unheard import Unheard

__all__ = ["add_handlers"]

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def add_handlers(
    server: grpc.Server, methods: Iterable[Method], calls: Calls, threads: Threads, unheard: Unheard
) -> None:
    """Have the server answer calls of the methods; those of `unheard` hold a thread each."""
    for method in methods:
        service, _, name = method.name.lstrip("/").partition("/")
        handlers = {name: _handler(method, calls, threads, unheard)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def _handler(method: Method, calls: Calls, threads: Threads, unheard: Unheard) -> Handler:

    def unary(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        if not context.is_active():
            # Its client gave up while it waited for a thread.
            return b""
        call = _Call(method, messages, context, calls, unheard)
        # Nobody's message is waited for before its sender is known, but for the open ones.
        answer = calls.admit(method, call) or calls.answer(method, call)
        if not isinstance(answer, bytes):
            _abort(context, answer, call.request_id)
        return answer

    def stream(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        if not context.is_active():
            return
        call = _Call(method, messages, context, calls, unheard)
        if refused := calls.admit(method, call):
            _abort(context, refused, call.request_id)
        for answer in calls.stream(method, call):
            if not isinstance(answer, bytes):
                _abort(context, answer, call.request_id)
            yield answer

    if not method.streaming:
        if method.open:
            # A stranger who sends no message holds none of the callers' threads.
            threads.run_apart(method.name, unary)
        return grpc.stream_unary_rpc_method_handler(unary)
    # Whoever reads slowly holds a thread for as long.
    threads.run_apart(method.name, stream)
    return grpc.stream_stream_rpc_method_handler(stream)


class _Call(Call):
    """A call as grpc's public API has it."""

    __slots__ = ("_context", "_messages", "_unheard")

    def __init__(
        self,
        method: Method,
        messages: Iterator[bytes],
        context: grpc.ServicerContext,
        calls: Calls,
        unheard: Unheard,
    ) -> None:
        super().__init__(method.action, *calls.read(context.invocation_metadata()))
        self._messages = messages
        self._context = context
        self._unheard = unheard
        context.set_trailing_metadata(((REQUEST_ID, self.request_id),))

    def message(self) -> bytes | None:
        self._unheard.add(self)
        try:
            return next(self._messages, None)
        finally:
            self._unheard.discard(self)

    def peer(self) -> str:
        return peer_of(self._context.peer())

    def cancel(self) -> None:
        """Cut it off."""
        self._context.cancel()

    def confirm(self) -> None:
        if not self._context.is_active() or (self._context.time_remaining() or 1.0) <= 0:
            raise GivenUp


def _abort(context: grpc.ServicerContext, answer: status_pb2.Status, request_id: str) -> None:
    status = rpc_status.to_status(answer)
    context.set_trailing_metadata((*status.trailing_metadata, (REQUEST_ID, request_id)))
    context.abort(status.code, status.details)
