"""Authentication: exactly one live credential is accepted, and nothing is revealed to any other caller."""

import grpc
import pytest
from sqlalchemy import event, update

from rolecall.audit import Denials
from rolecall.domain import now
from rolecall.identity.authentication import Authenticator
from rolecall.server.build import OPEN_METHODS
from rolecall.server.handler import Call, CallHandler, Method
from rolecall.services import operator_tokens
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage.changes import record_change
from rolecall.storage.tables import credentials, members
from rolecall.v1 import (
    assignment_pb2,
    audit_pb2,
    authorization_pb2,
    invitation_pb2,
    member_pb2,
    organization_pb2,
    policy_pb2,
    session_pb2,
    team_pb2,
    token_pb2,
)
from rolecall.v1 import authorization_pb2 as pb
from support.engines import engine_of
from support.server_calls import failure_of
from support.sites import Site
from support.waiting import keep_asking, wait_until

CHECK = "/rolecall.v1.AuthorizationService/Check"
REQUEST = pb.CheckRequest(subject="ann@acme.io", action="view", resource="members").SerializeToString()


class _Presenting(Call):
    """Call with a credential, without a connection."""

    def message(self) -> bytes:
        return REQUEST

    def peer(self) -> str:
        return "ipv4:192.0.2.7:4711"


def refusal(site: Site, *authorization: str | bytes, request: bytes = REQUEST) -> tuple[object, ...]:
    """Return the complete error of a refused caller, without the call id."""
    with pytest.raises(grpc.RpcError) as caught:
        site.call(CHECK, request, *authorization)
    failure = failure_of(caught.value)
    return failure.code, failure.message, failure.reason, failure.field, sorted(failure.metadata)


def count_statements(storage: Storage) -> list[str]:
    """A list that grows with every statement sent to the database."""
    statements: list[str] = []
    event.listen(engine_of(storage), "before_cursor_execute", lambda *args: statements.append(args[2]))
    return statements


def test_unauthenticated_calls_get_the_same_error(site: Site) -> None:
    """Missing, doubled, malformed, unknown, expired, revoked, foreign: one text, one code, one reason."""
    token, viewer = site.tokens["OWNER"], site.tokens["VIEWER"]
    contributor = site.tokens["CONTRIBUTOR"]
    forged = token[:-7] + ("a" if token[-7] != "a" else "b")
    from rolecall.credentials.token_format import _checksum

    unknown = forged + _checksum(forged)

    def kill(tx: Transaction) -> None:
        credential_rows.revoke(tx, "acme", viewer.split("_")[1], now())
        tx.connection.execute(
            update(credentials).where(credentials.c.id == contributor.split("_")[1]).values(expire_time=now())
        )

    site.storage.mutate("acme", kill)
    expected = refusal(site)

    assert expected[0] is grpc.StatusCode.UNAUTHENTICATED
    assert expected[2] == "UNAUTHENTICATED_CREDENTIAL"
    for values in (
        (f"Bearer {token}", f"Bearer {token}"),
        ("",),
        ("Bearer",),
        ("Bearer ",),
        (token,),
        (f"Basic {token}",),
        (f"Bearer {token} ",),
        (f"Bearer  {token}",),
        (f"Bearer {token[:-1]}",),
        (f"Bearer {token}x",),
        (f"Bearer {token.swapcase()}",),
        (f"Bearer rco{token[3:]}",),
        (f"Bearer {forged}000000",),
        (f"Bearer {unknown}",),
        (f"Bearer {viewer}",),
        (f"Bearer {contributor}",),
    ):
        assert refusal(site, *values) == expected, values


def test_live_credential_is_authenticated(site: Site) -> None:
    """The scheme's case doesn't matter; nothing else is tolerated."""
    for scheme in ("Bearer", "bearer", "BEARER"):
        raw, _ = site.call(CHECK, REQUEST, f"{scheme} {site.tokens['OWNER']}")

        assert pb.CheckResponse.FromString(raw).decision == pb.DECISION_ALLOW


def test_credential_is_checked_before_the_message(sqlite_site: Site) -> None:
    """An unauthenticated caller learns nothing about what a good request is."""
    assert refusal(sqlite_site, request=b"\xff\xff") == refusal(sqlite_site)


def test_a_malformed_credential_costs_no_query(sqlite_site: Site) -> None:
    """A malformed credential is refused by shape and checksum without a query; a well-formed one is looked up."""
    token = sqlite_site.tokens["OWNER"]
    statements = count_statements(sqlite_site.server.storage)
    for malformed in ("", "Bearer", f"Bearer {token[:-1]}", f"Bearer {token[:-1]}!", f"Basic {token}"):
        refusal(sqlite_site, malformed)

    assert statements == []
    sqlite_site.call(CHECK, REQUEST, f"Bearer {token}")
    assert statements != []


@pytest.mark.parametrize(
    "value", ["Bearer \xe9", "Bearer \u212a", "Bearer rcp_\u0661", "B\u0131earer x", b"Bearer x", ""]
)
def test_non_ascii_credential_gets_the_same_error(sqlite_site: Site, value: str | bytes) -> None:
    """A non-ASCII credential gets the same error as an unknown one, and costs no query."""
    storage = sqlite_site.server.storage
    calls = CallHandler(Authenticator(storage), Denials(storage, sqlite_site.log))
    method = Method(CHECK, pb.CheckRequest, lambda *_: pb.CheckResponse(decision=pb.DECISION_ALLOW), managing=False)
    call = _Presenting("Check", *calls.read_metadata((("authorization", value),)))
    statements = count_statements(storage)

    refused = calls.authenticate(method, call)

    assert refused is not None
    assert refused.code == grpc.StatusCode.UNAUTHENTICATED.value[0]
    assert statements == []


def test_lowered_role_is_in_force_with_the_next_call(site: Site) -> None:
    """A credential has the permissions of its holder's present role, not of a cached one."""
    other = pb.CheckRequest(subject="viewer@acme.io", action="view", resource="secrets").SerializeToString()
    manage = pb.CheckRequest(subject="ann@acme.io", action="manage", resource="account").SerializeToString()
    bearer = f"Bearer {site.tokens['OWNER']}"
    before, _ = site.call(CHECK, manage, bearer)
    site.call(CHECK, other, bearer)

    def lower(tx: Transaction) -> None:
        tx.connection.execute(update(members).where(members.c.email_key == "ann@acme.io").values(role="VIEWER"))
        record_change(tx, "acme", "member", site.members["OWNER"].user_id)

    site.server.storage.mutate("acme", lower)
    with pytest.raises(grpc.RpcError) as caught:
        site.call(CHECK, other, bearer)
    after, _ = site.call(CHECK, manage, bearer)

    assert pb.CheckResponse.FromString(before).decision == pb.DECISION_ALLOW
    assert pb.CheckResponse.FromString(after).decision == pb.DECISION_DENY
    assert failure_of(caught.value).reason == "PERMISSION_MISSING"


def test_dead_credential_is_refused_with_the_next_call(site: Site) -> None:
    """A revoked credential is refused from the next call on, though it was cached."""
    bearer = f"Bearer {site.tokens['VIEWER']}"
    own = pb.CheckRequest(subject="viewer@acme.io", action="view", resource="secrets").SerializeToString()
    site.call(CHECK, own, bearer)
    operator_tokens.revoke(site.server.storage, site.log, "acme", site.tokens["VIEWER"].split("_")[1])

    assert refusal(site, bearer, request=own) == refusal(site)


def test_revocation_by_another_process_is_in_force_within_seconds(site: Site) -> None:
    """A server asks the database again after a second, however often the credential is presented meanwhile."""
    bearer = f"Bearer {site.tokens['VIEWER']}"
    own = pb.CheckRequest(subject="viewer@acme.io", action="view", resource="secrets").SerializeToString()
    site.call(CHECK, own, bearer)
    operator_tokens.revoke(site.storage, site.log, "acme", site.tokens["VIEWER"].split("_")[1])
    with pytest.raises(grpc.RpcError) as caught:
        keep_asking(lambda: site.call(CHECK, own, bearer))

    assert failure_of(caught.value).reason == "UNAUTHENTICATED_CREDENTIAL"


def test_a_cached_credential_costs_no_query(sqlite_site: Site) -> None:
    """A cached credential costs no query, nor does a cached subject."""
    bearer = f"Bearer {sqlite_site.tokens['OWNER']}"
    sqlite_site.call(CHECK, REQUEST, bearer)
    # The first use is written down.
    wait_until(lambda: not sqlite_site.core.authenticator.last_used._pending)
    statements = count_statements(sqlite_site.server.storage)
    for _ in range(20):
        sqlite_site.call(CHECK, REQUEST, bearer)

    # The change feed reads what noting the first use changed; the background task looks for logs without an activation.
    others = ("BEGIN", "PRAGMA query_only", "FROM changes", "FROM policy_activations", "FROM audit_heads")
    assert [each for each in statements if not any(name in each for name in others)] == []


def test_every_rpc_needs_a_credential_except_the_listed_ones(sqlite_site: Site) -> None:
    """Every RPC in the protos requires a credential, but those in the list, each of which inspects its message."""
    modules = (
        *(assignment_pb2, audit_pb2, authorization_pb2, invitation_pb2, member_pb2, organization_pb2),
        *(policy_pb2, session_pb2, team_pb2, token_pb2),
    )
    methods = {
        f"/{service.full_name}/{method.name}"
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }

    assert len(methods) == 50
    assert methods > OPEN_METHODS
    for method in methods - OPEN_METHODS:
        with pytest.raises(grpc.RpcError) as caught:
            sqlite_site.call(method, b"")
        assert failure_of(caught.value).code is grpc.StatusCode.UNAUTHENTICATED, method
        assert failure_of(caught.value).reason == "UNAUTHENTICATED_CREDENTIAL", method
    for method in OPEN_METHODS:
        with pytest.raises(grpc.RpcError) as caught:
            sqlite_site.call(method, b"")
        assert failure_of(caught.value).reason == "INVALID_FIELD", method
