"""Requesting a call while a grpcio server stops can end the process with a signal.

Uses grpcio's private names, as `src/rolecall/server/transport/cygrpc.py` does: `request_registered_call`, without and
with the server's lock, under which `stop` begins. Each attempt runs in a child process; ends within 60 s.
"""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent import futures

import grpc

ATTEMPTS, SERVERS = 5, 200


def stop_while_requesting() -> None:
    """Stop servers, one after the other, while a thread requests calls; with `lock`, under the server's lock."""

    def tag(_event: object) -> tuple[None, tuple[()]]:
        return None, ()

    for attempt in range(SERVERS):
        server = grpc.server(futures.ThreadPoolExecutor(1))
        state = server._state
        state.server.register_method("/test.Any/Any")
        server.add_insecure_port("127.0.0.1:0")
        server.start()
        stopping = threading.Event()

        def request(state=state, stopping=stopping) -> None:
            lock = state.lock if sys.argv[2] == "lock" else contextlib.nullcontext()
            stopping.wait()
            with contextlib.suppress(ValueError):
                for _ in range(200):
                    with lock:
                        queue = state.completion_queue
                        state.server.request_registered_call(queue, queue, "/test.Any/Any", tag)

        threads = [threading.Thread(target=request, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        stopping.set()
        time.sleep(attempt % 10 * 0.0001)
        server.stop(0).wait(5)
        for thread in threads:
            thread.join(5)
        del server, state, threads


def main() -> None:
    """Count the child processes that a signal ended, without and with the server's lock."""
    print(f"grpcio {grpc.__version__}, {ATTEMPTS} processes that stop {SERVERS} servers each")
    for how in ("no-lock", "lock"):
        ends: Counter[str] = Counter()
        for _ in range(ATTEMPTS):
            command = [sys.executable, __file__, "once", how]
            done = subprocess.run(command, stderr=subprocess.DEVNULL, timeout=30, check=False)
            ends[signal.Signals(-done.returncode).name if done.returncode < 0 else "ended well"] += 1
        print(f"{how}: {dict(ends)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["once"]:
        # Threads switch more often, so that the stop falls between two requests.
        sys.setswitchinterval(1e-5)
        stop_while_requesting()
    else:
        main()
