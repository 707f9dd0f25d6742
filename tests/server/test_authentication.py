"""Who gets in: exactly one live credential, and nothing is told to anybody else."""

import grpc
import pytest
from conftest import Site, keep_asking, wait_until
from grpc_errors import told
from sqlalchemy import event, update

from rolecall import operator
from rolecall.audit import Denials
from rolecall.directory import Directory
from rolecall.domain import now
from rolecall.server import OPEN_METHODS
from rolecall.server.calls import Call, Calls, Method
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage.changes import record_change
from rolecall.storage.tables import credentials, members
from rolecall.v1 import (
    audit_pb2,
    authorization_pb2,
    invitation_pb2,
    member_pb2,
    organization_pb2,
    policy_pb2,
    session_pb2,
    token_pb2,
)
from rolecall.v1 import authorization_pb2 as pb

CHECK = "/rolecall.v1.AuthorizationService/Check"
REQUEST = pb.CheckRequest(subject="ann@acme.io", action="view", resource="members").SerializeToString()


class _Presenting(Call):
    """A question with a credential, from nowhere."""

    def message(self) -> bytes:
        return REQUEST

    def peer(self) -> str:
        return "peer"


def refusal(site: Site, *authorization: str | bytes, request: bytes = REQUEST) -> tuple[object, ...]:
    """All that a refused caller is told, but for the request's id."""
    with pytest.raises(grpc.RpcError) as caught:
        site.call(CHECK, request, *authorization)
    said = told(caught.value)
    return said.code, said.message, said.reason, said.field, sorted(said.metadata)


def count_statements(storage: Storage) -> list[str]:
    """A list that grows with every statement sent to the database."""
    statements: list[str] = []
    event.listen(storage._engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    return statements


def test_every_refusal_is_the_same(site: Site) -> None:
    """Missing, doubled, malformed, unknown, expired, revoked, foreign: one text, one code, one reason."""
    token, viewer = site.tokens["OWNER"], site.tokens["VIEWER"]
    contributor = site.tokens["CONTRIBUTOR"]
    forged = token[:-7] + ("a" if token[-7] != "a" else "b")
    from rolecall.credentials import _checksum

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


def test_a_live_credential_gets_in(site: Site) -> None:
    """The scheme's case doesn't matter; nothing else is tolerated."""
    for scheme in ("Bearer", "bearer", "BEARER"):
        raw, _ = site.call(CHECK, REQUEST, f"{scheme} {site.tokens['OWNER']}")

        assert pb.CheckResponse.FromString(raw).decision == pb.DECISION_ALLOW


def test_the_credential_comes_before_the_message(sqlite_site: Site) -> None:
    """A stranger learns nothing about what a good request is."""
    assert refusal(sqlite_site, request=b"\xff\xff") == refusal(sqlite_site)


def test_a_malformed_credential_costs_no_query(sqlite_site: Site) -> None:
    """Shape and checksum are checked before the database is asked; a well-formed one is looked up."""
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
def test_what_is_no_ascii_text_is_refused_like_the_rest(sqlite_site: Site, value: str | bytes) -> None:
    """Bytes that other clients than ours may send end in the one refusal, and cost no query."""
    storage = sqlite_site.server.storage
    calls = Calls(Directory(storage), Denials(storage, sqlite_site.log))
    method = Method(CHECK, pb.CheckRequest, lambda *_: pb.CheckResponse(decision=pb.DECISION_ALLOW), managing=False)
    call = _Presenting("Check", *calls.read((("authorization", value),)))
    statements = count_statements(storage)

    refused = calls.admit(method, call)

    assert refused is not None
    assert refused.code == grpc.StatusCode.UNAUTHENTICATED.value[0]
    assert statements == []


def test_a_lowered_role_counts_from_the_next_call(site: Site) -> None:
    """A credential may what its holder's present role may, and not what the remembered one might."""
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
    assert told(caught.value).reason == "PERMISSION_MISSING"


def test_a_dead_credential_is_out_from_the_next_call(site: Site) -> None:
    """That the server knew it a moment ago keeps it in no longer than to the end of the revocation."""
    bearer = f"Bearer {site.tokens['VIEWER']}"
    own = pb.CheckRequest(subject="viewer@acme.io", action="view", resource="secrets").SerializeToString()
    site.call(CHECK, own, bearer)
    operator.revoke(site.server.storage, site.log, "acme", site.tokens["VIEWER"].split("_")[1])

    assert refusal(site, bearer, request=own) == refusal(site)


def test_what_another_process_revoked_is_out_within_seconds(site: Site) -> None:
    """A server asks the database again after a second, however often the credential is presented meanwhile."""
    bearer = f"Bearer {site.tokens['VIEWER']}"
    own = pb.CheckRequest(subject="viewer@acme.io", action="view", resource="secrets").SerializeToString()
    site.call(CHECK, own, bearer)
    operator.revoke(site.storage, site.log, "acme", site.tokens["VIEWER"].split("_")[1])
    with pytest.raises(grpc.RpcError) as caught:
        keep_asking(lambda: site.call(CHECK, own, bearer))

    assert told(caught.value).reason == "UNAUTHENTICATED_CREDENTIAL"


def test_a_remembered_credential_costs_no_query(sqlite_site: Site) -> None:
    """Nor does a subject that was asked about before."""
    bearer = f"Bearer {sqlite_site.tokens['OWNER']}"
    sqlite_site.call(CHECK, REQUEST, bearer)
    # The first use is written down.
    wait_until(lambda: not sqlite_site.server._core.directory.uses._waiting)
    statements = count_statements(sqlite_site.server.storage)
    for _ in range(20):
        sqlite_site.call(CHECK, REQUEST, bearer)

    # The feed looks at what noting the first use changed.
    assert [each for each in statements if each != "BEGIN" and "FROM changes" not in each] == []


def test_every_rpc_wants_a_credential_but_those_that_are_listed(sqlite_site: Site) -> None:
    """Whatever the protos declare: the calls that take none are data, and each of them looks at its message."""
    modules = (
        *(audit_pb2, authorization_pb2, invitation_pb2, member_pb2, organization_pb2, policy_pb2),
        *(session_pb2, token_pb2),
    )
    methods = {
        f"/{service.full_name}/{method.name}"
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }

    assert len(methods) == 31
    assert methods > OPEN_METHODS
    for method in methods - OPEN_METHODS:
        with pytest.raises(grpc.RpcError) as caught:
            sqlite_site.call(method, b"")
        assert told(caught.value).code is grpc.StatusCode.UNAUTHENTICATED, method
        assert told(caught.value).reason == "UNAUTHENTICATED_CREDENTIAL", method
    for method in OPEN_METHODS:
        with pytest.raises(grpc.RpcError) as caught:
            sqlite_site.call(method, b"")
        assert told(caught.value).reason == "INVALID_FIELD", method
