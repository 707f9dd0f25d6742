"""A server to be measured: `serving.py KIND FOLDER SETTINGS`, where KIND is fast, standard, empty-public or empty-fast.

It prints where it listens. Then, for each line on standard input, it prints as JSON what it answered and used so far:
what counts as success is told by the server, as clients see HTTP's 200 for a refusal too.
"""

import itertools
import json
import os
import resource
import sys
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2
from google.rpc import status_pb2

from rolecall.cli import logs, running
from rolecall.config import Settings
from rolecall.server.authorization import AuthorizationService
from rolecall.server.calls import Call, Metadata, Method
from rolecall.server.fastlane import FastLane
from rolecall.server.session import SessionService
from rolecall.server.threads import Threads
from rolecall.v1 import authorization_pb2 as pb
from rolecall.v1 import session_pb2

METHOD = "/rolecall.v1.AuthorizationService/Check"
# An answer to a Check, always the same.
ANSWER = pb.CheckResponse(
    decision=pb.DECISION_ALLOW, reason=pb.REASON_GRANTED, policy_version="0" * 16
).SerializeToString()

# What was answered, and how often the database was read for it.
_answered = itertools.count()
_reads = itertools.count()


def main() -> None:
    """Serve until standard input ends."""
    kind, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    match kind:
        case "empty-public":
            address = _empty_public()
        case "empty-fast":
            address = _empty_fast()
        case lane:
            address = _rolecall(json.loads((folder / "settings.json").read_text()) | {"lane": lane} | settings)
    print(address, flush=True)
    for _ in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        answered = _answered.__reduce__()[1][0]
        said = {
            "answered": answered,
            "reads": _reads.__reduce__()[1][0],
            "cpu": used.ru_utime + used.ru_stime,
            "memory": memory,
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - names only
        }
        print(json.dumps(said), flush=True)
    os._exit(0)


def _rolecall(told: dict[str, Any]) -> str:
    check, batch_check = AuthorizationService.Check, AuthorizationService.BatchCheck

    def counted_check(self: AuthorizationService, request: Any, call: Any) -> bytes:
        response = check(self, request, call)
        next(_answered)
        return response

    def counted_batch(self: AuthorizationService, request: Any, call: Any) -> bytes:
        response = batch_check(self, request, call)
        next(_answered)
        return response

    AuthorizationService.Check = counted_check  # type: ignore[method-assign]
    AuthorizationService.BatchCheck = counted_batch  # type: ignore[method-assign]
    logs.configure_logs("warning", "text")
    shares_port = told.pop("shares_port", False)
    if burning := told.pop("burning", 0.0):
        SessionService.WhoAmI = lambda *_: _burn(burning)  # type: ignore[method-assign]
    server, _ = running.begin(Settings(**told), shares_port=shares_port)
    read = server.storage.read

    def counted_read(work: Any) -> Any:
        next(_reads)
        return read(work)

    server.storage.read = counted_read  # type: ignore[method-assign]
    _kept.append(server)
    return server.address


def _burn(seconds: float) -> session_pb2.WhoAmIResponse:
    """Do nothing with the processor for so long, and hold the interpreter meanwhile as Python does."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(100))
    return session_pb2.WhoAmIResponse()


def _empty_public() -> str:

    def answer(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        next(_answered)
        return ANSWER

    server = grpc.server(futures.ThreadPoolExecutor(8))
    service, _, name = METHOD.lstrip("/").partition("/")
    handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    return _started(server)


class _Empty:
    """Answers the same to everybody."""

    def read(self, _metadata: Metadata) -> tuple[str, str]:
        return "empty", ""

    def admit(self, _method: Method, _call: Call) -> None:
        return None

    def remember(self, lacking: list[Any]) -> None:
        """Nothing is ever lacking."""

    def fail(self, _method: Method, _call: Call, _error: Exception) -> status_pb2.Status:
        return status_pb2.Status()

    def answer(self, _method: Method, _call: Call) -> bytes:
        next(_answered)
        return ANSWER


def _empty_fast() -> str:

    threads = Threads(8)
    server = grpc.server(threads.callers)
    calls = _Empty()
    method = Method(METHOD, empty_pb2.Empty, calls.answer, managing=False, at_once=True)
    lane = FastLane(server, [method], calls, threads)
    address = _started(server)
    lane.start()
    return address


def _started(server: Any) -> str:
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    # Let go of by nobody while the process lives.
    _kept.append(server)
    return f"127.0.0.1:{port}"


_kept: list[Any] = []

if __name__ == "__main__":
    main()
