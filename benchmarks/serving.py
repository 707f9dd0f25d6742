"""A server to be measured: `serving.py KIND FOLDER`, where KIND is fast, standard, empty-public or empty-fast.

It prints where it listens. Then, for each line on standard input, it prints as JSON what it answered and used so far:
what counts as success is told by the server, as clients see HTTP's 200 for a refusal too.
"""

import itertools
import json
import os
import resource
import sys
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2

from rolecall.cli import logs, running
from rolecall.config import Settings
from rolecall.server.authorization import AuthorizationService
from rolecall.server.calls import Call, Metadata, Method
from rolecall.server.fastlane import FastLane
from rolecall.v1 import authorization_pb2 as pb

METHOD = "/rolecall.v1.AuthorizationService/Check"
# An answer to a Check, always the same.
ANSWER = pb.CheckResponse(
    decision=pb.DECISION_ALLOW, reason=pb.REASON_GRANTED, policy_version="0" * 16
).SerializeToString()

_answered = itertools.count()


def main() -> None:
    """Serve until standard input ends."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    address = {"empty-public": _empty_public, "empty-fast": _empty_fast}.get(kind, _rolecall)(kind, folder)
    print(address, flush=True)
    for _ in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        answered = _answered.__reduce__()[1][0]
        said = {"answered": answered, "cpu": used.ru_utime + used.ru_stime, "memory": memory, "at": time.monotonic()}
        print(json.dumps(said), flush=True)
    os._exit(0)


def _rolecall(lane: str, folder: Path) -> str:
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
    settings = Settings(**json.loads((folder / "settings.json").read_text()) | {"lane": lane})
    server, _ = running.begin(settings)
    _kept.append(server)
    return server.address


def _empty_public(_kind: str, _folder: Path) -> str:

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

    def answer(self, _method: Method, _call: Call) -> bytes:
        next(_answered)
        return ANSWER


def _empty_fast(_kind: str, _folder: Path) -> str:

    threads = futures.ThreadPoolExecutor(8)
    server = grpc.server(threads)
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
