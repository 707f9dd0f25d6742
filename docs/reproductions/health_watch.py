"""Two clients that open and leave Health.Watch halt a server with grpcio's own HealthServicer.

`HealthServicer` holds its lock while it sends a response. Sending waits for the thread that polls the completion
queue; when another watcher leaves at that time, that thread runs the servicer's close callback, which waits for the
same lock. Neither goes on, and no method of the server answers any more. Needs only grpcio and grpcio-health-
checking; ends within 30 s.
"""

import subprocess
import sys
import threading
import time
from concurrent import futures
from contextlib import suppress

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

SECONDS = 20.0
ECHO = "/test.Echo/Echo"


def serve() -> None:
    """Serve health, and one method that does nothing, on a free port; print the port."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    servicer = health.HealthServicer(experimental_thread_pool=futures.ThreadPoolExecutor(8))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    echo = {"Echo": grpc.unary_unary_rpc_method_handler(lambda request, _context: request)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", echo),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


def watch_and_leave(port: str, ended: threading.Event) -> None:
    """Open a watch, read its first response, cancel it; again and again, on one connection."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while not ended.is_set():
            stream = stub.Watch(health_pb2.HealthCheckRequest(), timeout=3)
            with suppress(grpc.RpcError, StopIteration):
                next(stream)
            stream.cancel()


def main() -> int:
    """Start the server and both watchers; call the other method until it gets no answer for 3 s."""
    with subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True) as server:
        port = server.stdout.readline().strip() if server.stdout else ""
        ended = threading.Event()
        watchers = [threading.Thread(target=watch_and_leave, args=(port, ended), daemon=True) for _ in range(2)]
        began = time.monotonic()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                echo = channel.unary_unary(ECHO)
                echo(b"", timeout=3)
                print(f"grpcio {grpc.__version__}: the server answers.")
                for watcher in watchers:
                    watcher.start()
                while time.monotonic() - began < SECONDS:
                    try:
                        echo(b"", timeout=3)
                    except grpc.RpcError as error:
                        print(f"No answer {time.monotonic() - began:.1f} s after the start: {error.code().name}.")
                        time.sleep(3)
                        try:
                            echo(b"", timeout=3)
                        except grpc.RpcError as again:
                            print(f"None 6 s later either: {again.code().name}. The server is halted.")
                            return 0
                    time.sleep(0.01)
            print(f"The server answered for {SECONDS:.0f} s.")
            return 1
        finally:
            ended.set()
            server.kill()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        sys.exit(main())
