"""Size of a call's headers: up to 8 KiB a call is answered, and above 16 KiB it is always refused."""

import grpc
import pytest

from rolecall.v1 import authorization_pb2 as pb
from support.sites import MakeSite

CHECK = "/rolecall.v1.AuthorizationService/Check"
REQUEST = pb.CheckRequest(subject="ann@acme.io", action="view", resource="members").SerializeToString()
# HTTP/2 counts 32 bytes for each header besides its name and value.
OVERHEAD = 1024


@pytest.mark.usefixtures("each_transport")
def test_headers_have_a_limit(make_site: MakeSite, sqlite_url: str) -> None:
    """Headers of less than 8 KiB are accepted; grpc itself refuses more than 16 KiB, as docs/operating.md says."""
    site = make_site(sqlite_url)
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = site.channel().unary_unary(CHECK)

    def status(size: int) -> grpc.StatusCode:
        headers = (("authorization", f"Bearer {site.tokens['OWNER']}"), ("x-filler", "x" * size))
        try:
            return call.with_call(REQUEST, timeout=10, metadata=headers)[1].code()
        except grpc.RpcError as error:
            return error.code()

    accepted = {status(8 * 1024 - OVERHEAD) for _ in range(30)}
    between = {status(15 * 1024) for _ in range(30)}
    refused = {status(16 * 1024) for _ in range(30)}

    assert accepted == {grpc.StatusCode.OK}
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in between
    assert refused == {grpc.StatusCode.RESOURCE_EXHAUSTED}
