"""Server for benchmarks: `serving.py KIND FOLDER SETTINGS`, for one of the kinds in `main`.

Prints its address; then, for each line on standard input, its counters as JSON. Successful calls are counted by the
server, because HTTP clients see the status 200 for a refusal too.
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
from queue import SimpleQueue
from typing import Any

import grpc
from google.protobuf import empty_pb2
from google.rpc import status_pb2

from rolecall.cli import logs, process
from rolecall.config import Settings
from rolecall.domain import CheckResult, ItemError
from rolecall.server import responses
from rolecall.server.handler import Call, Metadata, Method
from rolecall.server.servicers.session import SessionService
from rolecall.server.transport.call_limits import CallLimits
from rolecall.server.transport.executors import Executors
from rolecall.server.transport.polling_server import PollingServer
from rolecall.services.authorization import BatchAnswer
from rolecall.v1 import authorization_pb2 as pb
from rolecall.v1 import session_pb2

METHOD = "/rolecall.v1.AuthorizationService/Check"
# The constant answer of the empty handlers.
ANSWER = pb.CheckResponse(
    decision=pb.DECISION_ALLOW, reason=pb.REASON_GRANTED, policy_version="0" * 16
).SerializeToString()

# Answered calls, and reads of the database for them.
_answered = itertools.count()
_reads = itertools.count()


def main() -> None:
    """Serve until standard input ends."""
    kind, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    match kind:
        case "empty-public":
            address = _empty_public()
        case "empty-aio":
            address = _empty_aio()
        case "empty-polling":
            address = _empty_polling()
        case transport:
            address = _rolecall(
                json.loads((folder / "settings.json").read_text()) | {"transport": transport} | settings
            )
    print(address, flush=True)
    for _ in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        answered = _answered.__reduce__()[1][0]
        counters = {
            "answered": answered,
            "reads": _reads.__reduce__()[1][0],
            "cpu": used.ru_utime + used.ru_stime,
            "memory": memory,
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - names only
        }
        print(json.dumps(counters), flush=True)
    os._exit(0)


def _rolecall(settings: dict[str, Any]) -> str:
    check_response, batch_response = responses.check_response, responses.batch_response

    def counted_check(result: CheckResult) -> bytes:
        next(_answered)
        return check_response(result)

    def counted_batch(answer: BatchAnswer, malformed: dict[int, ItemError]) -> bytes:
        next(_answered)
        return batch_response(answer, malformed)

    responses.check_response = counted_check
    responses.batch_response = counted_batch
    logs.configure_logs("warning", "text")
    shares_port = settings.pop("shares_port", False)
    if burning := settings.pop("burning", 0.0):
        SessionService.WhoAmI = lambda *_: _burn(burning)  # type: ignore[method-assign]
    server, _ = process.start_server(Settings(**settings), shares_port=shares_port)
    read = server.storage.read

    def counted_read(work: Any) -> Any:
        next(_reads)
        return read(work)

    server.storage.read = counted_read  # type: ignore[method-assign]
    _kept.append(server)
    return server.address


def _burn(seconds: float) -> session_pb2.WhoAmIResponse:
    """Compute for `seconds` of CPU time, holding the interpreter lock as pure Python code does."""
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
    """Handler that gives every call the same answer, without credential or message."""

    def read_metadata(self, _metadata: Metadata) -> tuple[str, str]:
        return "empty", ""

    def authenticate_cached(self, _method: Method, _call: Call) -> None:
        return None

    def authenticate(self, _method: Method, _call: Call) -> None:
        return None

    def finish(self, _method: Method, _call: Call, _miss: Any, _loaded: Any) -> status_pb2.Status:
        return status_pb2.Status()

    def fail(self, _method: Method, _call: Call, _error: Exception) -> status_pb2.Status:
        return status_pb2.Status()

    def answer_cached(self, method: Method, call: Call) -> bytes:
        return self.answer(method, call)

    def answer(self, _method: Method, _call: Call) -> bytes:
        next(_answered)
        return ANSWER


def _empty_aio() -> str:
    """Serve the empty handler by grpc.aio, in a thread with uvloop as its event loop."""
    import uvloop  # noqa: PLC0415 - installed for the benchmarks only

    addresses: SimpleQueue[str] = SimpleQueue()

    async def answer(_request: bytes, _context: Any) -> bytes:
        next(_answered)
        return ANSWER

    async def serve() -> None:
        server = grpc.aio.server()
        service, _, name = METHOD.lstrip("/").partition("/")
        handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        addresses.put(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    threading.Thread(target=uvloop.run, args=(serve(),), daemon=True).start()
    return addresses.get()


def _empty_polling() -> str:

    executors = Executors(8)
    server = grpc.server(executors.callers)
    empty = _Empty()
    unused: Any = empty.answer
    method = Method(METHOD, empty_pb2.Empty, unused, managing=False, run_cached=unused)
    polling = PollingServer(server, [method], empty, executors, CallLimits())
    address = _started(server)
    polling.start()
    return address


def _started(server: Any) -> str:
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    # Referenced until the process ends.
    _kept.append(server)
    return f"127.0.0.1:{port}"


_kept: list[Any] = []

if __name__ == "__main__":
    main()
