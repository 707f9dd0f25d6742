"""grpc cancels some of the calls that arrive while 1,000 others wait for the server to accept them.

The server's polling thread is held for 3 s by an interceptor (interceptors run in that thread), while a client sends
2,000 calls. By default some of them end as CANCELLED, although neither client nor server cancelled them. Two channel
arguments that are not in the public headers raise the limit: grpc.server.max_pending_requests and ..._hard_limit.
Ends within 20 s.
"""

import time
from collections import Counter
from concurrent import futures

import grpc

CALLS = 2_000
HOLD_SECONDS = 3.0
LIMITS = [("grpc.server.max_pending_requests", 10_000), ("grpc.server.max_pending_requests_hard_limit", 10_000)]


class HoldFirstCall(grpc.ServerInterceptor):
    """Interceptor that sleeps once, at the first call."""

    held = False

    def intercept_service(self, continuation, details):
        """Hold the polling thread at the first call."""
        if not self.held:
            self.held = True
            time.sleep(HOLD_SECONDS)
        return continuation(details)


def outcomes(options: list[tuple[str, int]]) -> Counter[str]:
    """Send CALLS calls to a new server while its polling thread is held; count the status codes."""
    server = grpc.server(futures.ThreadPoolExecutor(8), interceptors=[HoldFirstCall()], options=options)
    echo = {"Echo": grpc.unary_unary_rpc_method_handler(lambda request, _context: request)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", echo),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/test.Echo/Echo")
        pending = [call.future(b"", timeout=15) for _ in range(CALLS)]
        counts = Counter(each.code().name for each in pending)
    server.stop(0).wait()
    return counts


print(f"grpcio {grpc.__version__}, {CALLS} calls")
print("default:       ", dict(outcomes([])))
print("limit of 10,000:", dict(outcomes(LIMITS)))
