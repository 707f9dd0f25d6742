"""A grpcio server leaves cyclic garbage behind for each call that is cancelled while its handler waits for a message.

Only Python's garbage collector frees it. The script runs a server with automatic collection off; a client process
begins calls and cancels them. It prints the objects and the memory per call that one collection frees. Ends within 20
s.
"""

import gc
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent import futures

import grpc

CALLS = 2_000


def cancel_calls(port: str) -> None:
    """Begin calls, send no message, and cancel each."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_unary("/test.Wait/Wait")
        for _ in range(CALLS):
            unsent = threading.Event()
            pending = call.future(iter(unsent.wait, True))
            time.sleep(0.003)
            pending.cancel()
            unsent.set()
        time.sleep(1)


def main() -> None:
    """Measure the garbage of CALLS cancelled calls."""

    def answer_first(messages, _context):
        return next(messages, b"")

    server = grpc.server(futures.ThreadPoolExecutor(16))
    wait = {"Wait": grpc.stream_unary_rpc_method_handler(answer_first)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Wait", wait),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    subprocess.run([sys.executable, __file__, "cancel", str(port)], check=True, timeout=60)
    time.sleep(1)
    before = tracemalloc.get_traced_memory()[0]
    objects = gc.collect()
    freed = before - tracemalloc.get_traced_memory()[0]
    print(f"grpcio {grpc.__version__}: one collection freed {objects / CALLS:.0f} objects and", end=" ")
    print(f"{freed / CALLS / 1000:.1f} kB per cancelled call")
    server.stop(0).wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["cancel"]:
        cancel_calls(sys.argv[2])
    else:
        main()
