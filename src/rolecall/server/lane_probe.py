"""Whether the fast lane works with the grpcio that is installed."""

import threading
from contextlib import closing
from typing import Any

import grpc
from google.protobuf import empty_pb2
from google.rpc import status_pb2

from rolecall.server.calls import REQUEST_ID, Call, Metadata, Method
from rolecall.server.fastlane import FastLane
from rolecall.server.threads import Threads
from rolecall.storage import WouldWait

__all__ = ["problem"]

# How long it may take.
PROBE_SECONDS = 5.0


class _Echo:
    """Answers each call with its message; of one method in a thread that may wait."""

    def __init__(self) -> None:
        self.pollers: list[int] = []

    def read(self, _metadata: Metadata) -> tuple[str, str]:
        return "probe", ""

    def admit(self, _method: Method, _call: Call) -> None:
        return None

    def remember(self, lacking: list[Any]) -> None:
        """Nothing is ever lacking."""

    def fail(self, _method: Method, _call: Call, _error: Exception) -> status_pb2.Status:
        return status_pb2.Status()

    def answer(self, method: Method, call: Call) -> bytes:
        if method.name.endswith("Later") and threading.get_ident() in self.pollers:
            raise WouldWait
        return call.message() or b""


def problem() -> str:
    """Why calls can't be served like this with the grpcio that is installed; empty where they can.

    Serves a call on a port of its own, once in the polling thread and once in another.
    """

    calls = _Echo()
    paths = ["/rolecall.Probe/Now", "/rolecall.Probe/Later"]
    methods = [Method(path, empty_pb2.Empty, calls.answer, managing=False, at_once=True) for path in paths]
    try:
        with closing(Threads(1)) as threads:
            server = grpc.server(threads.callers)
            port = server.add_insecure_port("127.0.0.1:0")
            lane = FastLane(server, methods, calls, threads, calls.pollers.append)
            server.start()
            lane.start()
            try:
                with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
                    for path in paths:
                        call: Any = channel.unary_unary(path)
                        answered, ended = call.with_call(b"probe", timeout=PROBE_SECONDS)
                        if answered != b"probe" or (REQUEST_ID, "probe") not in (ended.trailing_metadata() or ()):
                            return f"{path} was answered wrongly"
            finally:
                lane.stop()
                server.stop(0).wait(PROBE_SECONDS)
    except Exception as error:  # noqa: BLE001 - whatever it is, the public lane serves
        return f"{type(error).__name__}: {error}"
    return "" if calls.pollers else "nothing came in"
