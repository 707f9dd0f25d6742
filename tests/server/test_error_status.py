"""The status that a client gets for an error: its code, reason, domain, call id, and when to retry."""

from typing import TypeVar

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from rolecall.client import Client
from rolecall.errors import CallFailed, RateLimited, RevisionNotReached, RolecallError, error_classes
from rolecall.server.error_status import status_of
from rolecall.v1 import errors_pb2
from support.sites import Site

# Those of this module; other packages have special ones with the same reasons.
CLASSES: list[type[RolecallError]] = [
    RolecallError,
    *(kind for kind in error_classes() if kind.__module__ == RolecallError.__module__),
]
D = TypeVar("D", error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo)
# Raised by the client only, which knows nothing about the server then.
OF_THE_CLIENT = (CallFailed,)


def _detail(status: status_pb2.Status, kind: type[D]) -> D | None:
    """The detail of this kind; None if the status has none."""
    found = kind()
    return next((found for item in status.details if item.Unpack(found)), None)


@pytest.mark.parametrize("kind", CLASSES)
def test_status_has_code_reason_and_call_id(kind: type[RolecallError]) -> None:
    """Every class: its gRPC code, and an ErrorInfo with its reason, the domain and the call's id."""
    status = status_of(kind("No."), "call-7")
    info = _detail(status, error_details_pb2.ErrorInfo)

    assert status.code == grpc.StatusCode[kind.status].value[0]
    assert info is not None
    assert (info.reason, info.domain, dict(info.metadata)) == (kind.reason, "rolecall.dev", {"call_id": "call-7"})


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind not in OF_THE_CLIENT])
def test_status_says_when_to_retry(kind: type[RolecallError]) -> None:
    """UNAVAILABLE and RESOURCE_EXHAUSTED have a RetryInfo, except MESSAGE_SIZE; no other status has one."""
    retry = _detail(status_of(kind("No."), "call-7"), error_details_pb2.RetryInfo)
    transient = kind.status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED") and kind.reason != "MESSAGE_SIZE"

    assert (retry is not None) == transient
    assert retry is None or retry.retry_delay.ToTimedelta().total_seconds() == kind.retry_seconds == 1.0


def test_every_reason_is_in_the_protos() -> None:
    """Each class but those of the command line and the client has its reason in ErrorReason."""
    known = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    assert {kind.reason for kind in CLASSES} - known == {"CONFIG", "CALL_FAILED"}


def test_client_knows_when_to_retry(sqlite_site: Site) -> None:
    """The errors of a server's calls have its `retry_seconds`: the wait of a limit, or a second."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        made = client.invitations.create([("new@x.io", "VIEWER")]).invitations[0]
        for _ in range(3):
            client.invitations.resend(made.id)
        with pytest.raises(RateLimited) as limited:
            client.invitations.resend(made.id)
        with pytest.raises(RevisionNotReached) as unreached:
            client.check("ann@acme.io", "view", "secrets", at_least_revision=10**9)

    assert 50 < limited.value.retry_seconds <= 60
    assert f"try again in {limited.value.retry_seconds:.0f} s" in limited.value.message
    assert unreached.value.retry_seconds == 1.0
