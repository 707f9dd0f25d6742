"""Probe: whether the polling transport works with the installed grpcio."""

import threading
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import grpc
from google.protobuf import empty_pb2
from google.rpc.status_pb2 import Status

from rolecall.server.handler import CALL_ID, Call, Metadata, Method
from rolecall.server.transport.call_limits import CallLimits
from rolecall.server.transport.executors import Executors
from rolecall.server.transport.polling_server import PollingServer

__all__ = ["problem"]

PROBE_SECONDS = 5.0


class _Echo:
    """Answers each call with its message: `Cached` in the polling thread, `Queued` in an executor."""

    def __init__(self) -> None:
        self.pollers: list[int] = []

    def read_metadata(self, _metadata: Metadata) -> tuple[str, str]:
        return "probe", ""

    def authenticate_cached(self, _method: Method, _call: Call) -> None:
        return None

    def authenticate(self, _method: Method, _call: Call) -> None:
        return None

    def answer_cached(self, method: Method, call: Call) -> bytes | None:
        return call.message() or b"" if method.name.endswith("Cached") else None

    def answer(self, _method: Method, call: Call) -> bytes:
        return b"" if threading.get_ident() in self.pollers else call.message() or b""

    def finish(self, _method: Method, _call: Call, _miss: Any, _loaded: Future[Any]) -> Status:
        return Status()

    def fail(self, _method: Method, _call: Call, _error: Exception) -> Status:
        return Status()


def problem() -> str:
    """Return why the polling transport doesn't work with the installed grpcio; empty where it works.

    Serves two calls on a port of its own, one in the polling thread and one in an executor.
    """
    echo = _Echo()
    paths = ["/rolecall.Probe/Cached", "/rolecall.Probe/Queued"]
    unused: Any = echo.answer
    methods = [Method(path, empty_pb2.Empty, unused, managing=False, run_cached=unused) for path in paths]
    try:
        with closing(Executors(1)) as executors:
            server = grpc.server(executors.callers)
            port = server.add_insecure_port("127.0.0.1:0")
            polling = PollingServer(server, methods, echo, executors, CallLimits(), echo.pollers.append)
            server.start()
            polling.start()
            try:
                with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
                    for path in paths:
                        call: Any = channel.unary_unary(path)
                        response, ended = call.with_call(b"probe", timeout=PROBE_SECONDS)
                        if response != b"probe" or (CALL_ID, "probe") not in (ended.trailing_metadata() or ()):
                            return f"{path} got a wrong response"
            finally:
                polling.stop()
                server.stop(0).wait(PROBE_SECONDS)
    except Exception as error:  # noqa: BLE001 - after any error the standard transport is used
        return f"{type(error).__name__}: {error}"
    return "" if echo.pollers else "no call arrived"
