"""Tokens, sessions and the organization over gRPC: who may what, what is answered, and what is refused unwritten."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import MakeSite, Site, add_member
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_errors import Told, told
from sqlalchemy import delete, select, update

from rolecall import credentials, keys, organizations
from rolecall.audit import AuditLog
from rolecall.domain import CredentialKind, Effect, Permission, Restriction, now
from rolecall.storage import Storage, Transaction, tables
from rolecall.storage import credentials as credential_rows
from rolecall.storage.changes import record_change
from rolecall.storage.credentials import NewCredential
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import organization_pb2 as organization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import shared_pb2 as shared
from rolecall.v1 import token_pb2 as pb

ROLES = ("OWNER", "ADMIN", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS")
SECOND = 1_000_000
DAY = 24 * 60 * 60 * SECOND
CHECK_ONLY = (("authorization", "check"),)
UUID = "6b7c3a52-2a43-4ba0-9d28-6f1e0a2b9c11"
OK = grpc.StatusCode.OK
DENIED = grpc.StatusCode.PERMISSION_DENIED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED

PERSONAL, ORGANIZATION = shared.CREDENTIAL_KIND_PERSONAL_TOKEN, shared.CREDENTIAL_KIND_ORGANIZATION_TOKEN
SESSION = shared.CREDENTIAL_KIND_SESSION
LIVE, EXPIRED, DELETED = pb.TOKEN_STATE_LIVE, pb.TOKEN_STATE_EXPIRED, pb.TOKEN_STATE_DELETED

Personal = pb.CreatePersonalTokenRequest
Organizational = pb.CreateOrganizationTokenRequest


class Desk:
    """Sends requests to a site over one connection, each to the RPC that takes it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.channel = site.channel()

    def send(self, token: str, request: Message) -> Any:
        """The answer to whoever presents `token`, or to the demo member with the role `token`."""
        method = _method_for(type(request))
        path = f"/{method.containing_service.full_name}/{method.name}"
        answer = GetMessageClass(method.output_type)
        call = self.channel.unary_unary(path, type(request).SerializeToString, answer.FromString)
        presented = self.site.tokens.get(token, token)
        return call(request, timeout=20, metadata=(("authorization", f"Bearer {presented}"),))

    def refused(self, token: str, request: Message) -> Told:
        """What whoever presents `token` is told instead of an answer."""
        with pytest.raises(grpc.RpcError) as caught:
            self.send(token, request)
        return told(caught.value)

    def code(self, token: str, request: Message) -> grpc.StatusCode:
        """The status that the call ends with."""
        try:
            self.send(token, request)
        except grpc.RpcError as error:
            return told(error).code
        return OK


def _method_for(request: type[Message]) -> Any:
    """The RPC that takes such a request."""
    descriptor = request.DESCRIPTOR
    for service in descriptor.file.services_by_name.values():
        for method in service.methods:
            if method.input_type is descriptor:
                return method
    raise AssertionError(descriptor.full_name)


def restriction(*pairs: tuple[str, str]) -> shared.Restriction:
    """A restriction to these (resource, action) patterns."""
    return shared.Restriction(permissions=[shared.Permission(resource=r, action=a) for r, a in pairs])


def put_credential(
    site: Site,
    user_id: str | None,
    *,
    kind: CredentialKind = CredentialKind.PERSONAL,
    role: str | None = None,
    only: tuple[tuple[str, str], ...] | None = None,
    life: int = 12 * DAY,
    name: str = "put",
) -> str:
    """The text of a credential that is put straight into the database; `only`: its restriction."""
    minted = credentials.mint(kind)
    bound: Restriction = None if only is None else tuple(Permission(r, a, Effect.ALLOW) for r, a in only)
    at = now()
    new = NewCredential(minted, "acme", user_id, role, name, bound, user_id or "operator", at, at + life)
    site.storage.mutate("acme", lambda tx: credential_rows.add(tx, new))
    return minted.text


def put_session(site: Site, role: str) -> str:
    """A session of the demo member with this role."""
    return put_credential(site, site.members[role].user_id, kind=CredentialKind.SESSION, life=DAY // 2)


def found_other(site: Site) -> str:
    """The token of the owner of a second organization."""
    policy, log = site.server.live.in_force.policy, AuditLog(keys.read(site.settings.key_file))
    return organizations.found(site.storage, log, policy, "other", "ann@acme.io").token.text


def id_of(text: str) -> str:
    """The id within a credential's text."""
    return text.split("_")[1]


def rows_of(storage: Storage) -> dict[str, list[tuple[Any, ...]]]:
    """All business rows: every table, but when credentials were used, and refusals in the audit log."""

    def work(tx: Transaction) -> dict[str, list[tuple[Any, ...]]]:
        found = {}
        for table in tables.metadata.sorted_tables:
            if table.name in ("audit_heads", "audit_checkpoints", "audit_values"):
                continue
            columns = [column for column in table.c if column.name != "last_used_time"]
            query = select(*columns)
            if table.name == "audit_entries":
                query = query.where(table.c.reason == "").with_only_columns(table.c.action, table.c.time)
            found[table.name] = sorted(map(tuple, tx.connection.execute(query)), key=repr)
        return found

    return storage.read(work)


@contextmanager
def nothing_written(site: Site) -> Iterator[None]:
    """Asserts that no business row, and so no revision, differs afterwards."""
    before = rows_of(site.storage)
    yield
    assert rows_of(site.storage) == before


def in_future(microseconds: int) -> Timestamp:
    """A moment so long from now."""
    seconds, rest = divmod(now() + microseconds, SECOND)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def until(found: Callable[[], Any], seconds: float = 10.0) -> Any:
    """What `found` gives as soon as it gives something; fails where it never does."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    return value


def own_token(desk: Desk, holder: str, token_id: str) -> pb.Token | None:
    """The token as its holder finds it in the list."""
    listed = desk.send(holder, pb.ListTokensRequest()).tokens
    return next((token for token in listed if token.id == token_id), None)


# Who may


def test_each_role_may_what_the_policy_says(site: Site) -> None:
    """Every RPC of the three services for each of the five roles: it passes, or PERMISSION_DENIED names what lacks."""
    desk = Desk(site)
    admin, contributor = site.members["ADMIN"].user_id, site.members["CONTRIBUTOR"].user_id
    anybody, personal, manager, top = 5, 3, 2, 1
    permissions = {
        "create": ("create", "personal-tokens"),
        "create-org": ("create", "organization-tokens"),
        "list-org": ("view", "organization-tokens"),
        "list-other": ("view", "member-tokens"),
        "delete-other": ("delete", "member-tokens"),
        "update": ("manage", "account"),
    }
    wrong = []
    for rank, role in enumerate(ROLES):
        program = id_of(put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER"))
        someones = id_of(put_credential(site, contributor if role != "CONTRIBUTOR" else admin))
        spare = put_credential(site, site.members[role].user_id)
        cases: list[tuple[Message, int, str]] = [
            (Personal(name="laptop"), personal, "create"),
            (Organizational(name="billing", role="VIEWER"), manager, "create-org"),
            (pb.ListTokensRequest(), anybody, ""),
            (pb.ListTokensRequest(user_id=site.members[role].user_id), anybody, ""),
            (pb.ListTokensRequest(kind=PERSONAL), anybody, ""),
            (pb.ListTokensRequest(kind=ORGANIZATION), manager, "list-org"),
            (pb.ListTokensRequest(user_id=contributor if role != "CONTRIBUTOR" else admin), manager, "list-other"),
            (pb.RotateTokenRequest(id=id_of(spare)), anybody, ""),
            (pb.RotateTokenRequest(id=program), manager, "create-org"),
            (pb.DeleteTokenRequest(id=id_of(spare)), anybody, ""),
            (pb.DeleteTokenRequest(id=program), manager, "delete-other"),
            (pb.DeleteTokenRequest(id=someones), manager, "delete-other"),
            (session.WhoAmIRequest(), anybody, ""),
            (organization.GetOrganizationRequest(), anybody, ""),
            (organization.UpdateOrganizationRequest(display_name=f"Acme of {role}"), top, "update"),
        ]
        for request, roles, lacking in cases:
            try:
                desk.send(role, request)
                outcome: tuple[object, ...] = (OK,)
            except grpc.RpcError as error:
                said = told(error)
                outcome = (said.code, said.reason, said.metadata.get("action"), said.metadata.get("resource"))
            expected = (OK,) if rank < roles else (DENIED, "PERMISSION_MISSING", *permissions[lacking])
            if outcome != expected:
                wrong.append((role, type(request).__name__, str(request), outcome, expected))
        assert desk.code(put_session(site, role), session.SignOutRequest()) is OK

    assert wrong == []


def test_nobody_rotates_another_persons_token(site: Site) -> None:
    """Whoever may make organization tokens finds none; to others it looks as any other id."""
    desk = Desk(site)
    theirs = id_of(site.tokens["CONTRIBUTOR"])
    with nothing_written(site):
        owner = desk.refused("OWNER", pb.RotateTokenRequest(id=theirs))
        viewer = desk.refused("VIEWER", pb.RotateTokenRequest(id=theirs))

    assert (owner.code, owner.reason, owner.field) == (NOT_FOUND, "TOKEN_NOT_FOUND", "id")
    assert (viewer.code, viewer.reason) == (DENIED, "PERMISSION_MISSING")


def test_a_token_of_somebody_beyond_is_deleted_by_owners_only(site: Site) -> None:
    """An ADMIN may delete other ADMINs' tokens and those below, an OWNER anybody's."""
    desk = Desk(site)
    owners = put_credential(site, site.members["OWNER"].user_id)
    other = add_member(site.storage, "acme", "al@acme.io", "ADMIN")
    admins = put_credential(site, other.user_id)
    with nothing_written(site):
        said = desk.refused("ADMIN", pb.DeleteTokenRequest(id=id_of(owners)))

    assert (said.code, said.reason) == (DENIED, "PERMISSION_MISSING")
    assert said.metadata["resource"] == "owners"
    assert desk.send("ADMIN", pb.DeleteTokenRequest(id=id_of(admins))).token.state == DELETED
    second = add_member(site.storage, "acme", "olga@acme.io", "OWNER")
    assert desk.code("OWNER", pb.DeleteTokenRequest(id=id_of(put_credential(site, second.user_id)))) is OK


def test_an_organization_token_makes_no_tokens(site: Site) -> None:
    """Whatever its role: PERSON_ONLY. It may look, and delete, as its role may."""
    desk = Desk(site)
    program = desk.send("OWNER", Organizational(name="deploy", role="ADMIN")).secret
    other = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER")
    with nothing_written(site):
        for request in (
            Personal(name="x"),
            Organizational(name="x", role="VIEWER"),
            pb.RotateTokenRequest(id=id_of(program)),
            pb.RotateTokenRequest(id=id_of(other)),
            pb.RotateTokenRequest(id=id_of(site.tokens["VIEWER"])),
            pb.RotateTokenRequest(id=credentials.new_id()),
        ):
            said = desk.refused(program, request)

            assert (said.code, said.reason) == (DENIED, "PERSON_ONLY"), request
    assert len(desk.send(program, pb.ListTokensRequest()).tokens) == 8
    assert desk.code(program, pb.DeleteTokenRequest(id=id_of(other))) is OK
    assert desk.code(program, pb.DeleteTokenRequest(id=id_of(program))) is OK
    assert desk.code(program, session.WhoAmIRequest()) is UNAUTHENTICATED


# Creating


def test_a_personal_token_is_answered_whole(site: Site) -> None:
    """All fields, the secret, the revision; and it acts as its holder."""
    desk = Desk(site)
    before = now()
    answer = desk.send("CONTRIBUTOR", Personal(name="laptop", restriction=restriction(*CHECK_ONLY)))
    token = answer.token
    who = desk.send(answer.secret, session.WhoAmIRequest())

    assert (token.id, token.kind, token.name) == (id_of(answer.secret), PERSONAL, "laptop")
    assert token.user_id == token.created_by == site.members["CONTRIBUTOR"].user_id
    assert (token.role, token.prefix, token.last_four) == ("CONTRIBUTOR", "rcp", answer.secret[-4:])
    assert answer.secret.startswith("rcp_")
    assert [(item.resource, item.action) for item in token.restriction.permissions] == list(CHECK_ONLY)
    assert before <= token.create_time.ToMicroseconds() <= now()
    assert token.state == LIVE
    assert not token.HasField("last_used_time")
    assert token.etag
    assert not answer.secret_lost
    assert answer.revision == desk.send("OWNER", organization.GetOrganizationRequest()).organization.revision
    assert (who.member.user_id, who.credential.id, who.credential.expire_time) == (
        token.user_id,
        token.id,
        token.expire_time,
    )


def test_an_organization_token_has_a_role_of_its_own(site: Site) -> None:
    """No user, its creator noted, its own role in force, and its creator's going away changes nothing."""
    desk = Desk(site)
    answer = desk.send("ADMIN", Organizational(name="billing-service", role="CONTRIBUTOR"))
    token = answer.token
    gone = site.members["ADMIN"].user_id

    def remove(tx: Transaction) -> None:
        tx.connection.execute(delete(tables.members).where(tables.members.c.user_id == gone))
        record_change(tx, "acme", "member", gone)

    site.server.storage.mutate("acme", remove)
    who = desk.send(answer.secret, session.WhoAmIRequest())

    assert (token.kind, token.user_id, token.created_by) == (ORGANIZATION, "", gone)
    assert (token.role, token.prefix, token.last_four) == ("CONTRIBUTOR", "rco", answer.secret[-4:])
    assert not token.HasField("restriction")
    assert desk.code("ADMIN", session.WhoAmIRequest()) is UNAUTHENTICATED
    assert who.WhichOneof("holder") == "token"
    assert (who.token.id, who.token.name, who.role) == (token.id, "billing-service", "CONTRIBUTOR")


def test_expiry_is_ninety_days_or_what_is_asked(site: Site) -> None:
    """From a session up to 365 days; without a wish 90; from a token never beyond that token."""
    desk = Desk(site)
    signed_in = put_session(site, "OWNER")
    short = put_credential(site, site.members["OWNER"].user_id, life=DAY)

    def life(token: str, request: Any) -> float:
        made: pb.Token = desk.send(token, request).token
        return (made.expire_time.ToMicroseconds() - made.create_time.ToMicroseconds()) / DAY

    assert life(signed_in, Personal(name="x")) == pytest.approx(90, abs=0.001)
    assert life(signed_in, Personal(name="x", ttl=Duration(seconds=365 * 86400))) == pytest.approx(365, abs=0.001)
    assert life(signed_in, Personal(name="x", expire_time=in_future(364 * DAY))) == pytest.approx(364, abs=0.001)
    assert life(signed_in, Organizational(name="x", role="VIEWER", ttl=Duration(seconds=60))) < 0.001
    assert life(short, Personal(name="x")) == pytest.approx(1, abs=0.01)
    made = desk.send(short, Organizational(name="x", role="ADMIN")).token
    assert made.expire_time == desk.send(short, session.WhoAmIRequest()).credential.expire_time


def test_a_secret_is_in_one_answer_only(sqlite_site: Site) -> None:
    """No list, description, deletion or later rotation shows it again."""
    desk = Desk(sqlite_site)
    first = desk.send("OWNER", Organizational(name="x", role="VIEWER"))
    second = desk.send("OWNER", pb.RotateTokenRequest(id=first.token.id))
    seen = [
        desk.send("OWNER", pb.ListTokensRequest()),
        desk.send(second.secret, session.WhoAmIRequest()),
        desk.send("OWNER", pb.DeleteTokenRequest(id=first.token.id)),
        desk.send("OWNER", pb.ListTokensRequest()),
    ]

    assert first.secret.split("_")[2] != second.secret.split("_")[2]
    for answer in seen:
        for secret in (first.secret, second.secret):
            assert secret.split("_")[2].encode() not in answer.SerializeToString()


# Bad input

NAMES = ["", " ", "\t", "x" * 65, "a\x07b", "a\nb", "a\x00b", "a\u200bb", "a\u202eb", "\u00a0", " x", "x "]
# Python takes these for printable, and nothing is drawn for them.
NAMES += [
    "\u034f",
    "\u034f" * 5,
    "a\u034fb",
    "\ufe0f",
    "x\ufe0f",
    "\U000e0100",
    "\u3164",
    "\uffa0",
    "\u115f",
    "\u17b4",
    "\u2800",
]
# Nor is there anything that these marks could stand on.
NAMES += ["\u0301", "\u0301\u0302", "\u20dd", "\u0301 \u0301"]


def bad_tokens(site: Site) -> list[tuple[str, Any, grpc.StatusCode, str, str]]:
    """(who, request, status, reason, field) for CreatePersonalToken; those that say it all for the other too."""
    short = put_credential(site, site.members["OWNER"].user_id, life=DAY)
    checker = put_credential(
        site, site.members["OWNER"].user_id, only=(("personal-tokens", "create"), ("authorization", "check"))
    )
    allow, deny = shared.EFFECT_ALLOW, shared.EFFECT_DENY
    invalid, field = INVALID, "INVALID_FIELD"
    cases: list[tuple[str, dict[str, Any], grpc.StatusCode, str, str]] = [
        ("OWNER", {"name": name}, invalid, field, "name") for name in NAMES
    ]
    for moment in (
        in_future(-SECOND),
        Timestamp(),
        in_future(366 * DAY),
        Timestamp(seconds=253_402_300_800),
        Timestamp(seconds=-62_135_596_801),
        Timestamp(seconds=2**62),
        Timestamp(seconds=2**63 - 1),
        Timestamp(seconds=in_future(DAY).seconds, nanos=-1),
        Timestamp(seconds=in_future(DAY).seconds, nanos=1_000_000_000),
    ):
        cases += [("session", {"expire_time": moment}, invalid, field, "expire_time")]
    for span in (
        Duration(),
        Duration(seconds=-1),
        Duration(nanos=-1),
        Duration(nanos=999),
        Duration(seconds=365 * 86400 + 1),
        Duration(seconds=315_576_000_001),
        Duration(seconds=2**63 - 1),
        Duration(seconds=60, nanos=-1),
        Duration(seconds=60, nanos=1_000_000_000),
    ):
        cases += [("session", {"ttl": span}, invalid, field, "ttl")]
    cases += [
        (short, {"expire_time": in_future(2 * DAY)}, invalid, field, "expire_time"),
        (short, {"ttl": Duration(seconds=2 * 86400)}, invalid, field, "ttl"),
        ("OWNER", {"restriction": shared.Restriction()}, invalid, field, "restriction.permissions"),
        (
            "OWNER",
            {"restriction": restriction(*[("secrets", "view")] * 101)},
            invalid,
            field,
            "restriction.permissions",
        ),
    ]
    for pair, part in (
        (("", "view"), "resource"),
        (("secrets", ""), "action"),
        (("sec*rets", "view"), "resource"),
        (("secrets/../x", "view"), "resource"),
        (("/secrets", "view"), "resource"),
        (("secrets//x", "view"), "resource"),
        (("secrets x", "view"), "resource"),
        (("s" * 1025, "view"), "resource"),
        (("secrets", "vi*"), "action"),
        (("secrets", "view/x"), "action"),
        (("secrets", "v" * 257), "action"),
    ):
        wished = restriction(("secrets", "view"), pair)
        cases.append(("OWNER", {"restriction": wished}, invalid, field, f"restriction.permissions[1].{part}"))
    effects: list[Any] = [deny, 7]
    for effect in effects:
        wished = shared.Restriction(permissions=[shared.Permission(resource="secrets", action="view", effect=effect)])
        cases.append(("OWNER", {"restriction": wished}, invalid, field, "restriction.permissions[0].effect"))
    beyond = "restriction.permissions[1]"
    for pair in (("spaceships", "view"), ("secrets", "launch"), ("spaceships*", "view"), ("spaceships/x", "*")):
        wished = restriction(("secrets", "view"), pair)
        cases.append(("OWNER", {"restriction": wished}, invalid, field, beyond))
    wished = shared.Restriction(
        permissions=[
            shared.Permission(resource="authorization", action="check", effect=allow),
            shared.Permission(resource="secrets", action="view", effect=allow),
        ]
    )
    cases += [
        (checker, {"restriction": wished}, DENIED, "ROLE_BEYOND_CALLER", beyond),
        (checker, {}, DENIED, "ROLE_BEYOND_CALLER", "restriction"),
        ("OWNER", {"request_id": "again"}, invalid, field, "request_id"),
        ("OWNER", {"request_id": UUID.replace("-", "")}, invalid, field, "request_id"),
        ("OWNER", {"request_id": f"{{{UUID}}}"}, invalid, field, "request_id"),
        ("OWNER", {"request_id": UUID + "\n"}, invalid, field, "request_id"),
        ("OWNER", {"organization": "other"}, NOT_FOUND, "ORGANIZATION_NOT_FOUND", ""),
        ("OWNER", {"organization": "nowhere"}, NOT_FOUND, "ORGANIZATION_NOT_FOUND", ""),
        ("OWNER", {"organization": "o" * 64}, invalid, field, "organization"),
        ("VIEWER", {}, DENIED, "PERMISSION_MISSING", ""),
        ("VIEWERNOSECRETS", {}, DENIED, "PERMISSION_MISSING", ""),
    ]
    signed_in = put_session(site, "OWNER")
    return [
        (signed_in if who == "session" else who, {"name": "x", **values}, code, reason, field)
        for who, values, code, reason, field in cases
    ]


def test_each_bad_token_is_refused_and_nothing_written(site: Site) -> None:
    """Status, reason, field, and what to do; for both kinds of token."""
    found_other(site)
    desk = Desk(site)
    cases = bad_tokens(site)
    wrong = []
    with nothing_written(site):
        for who, values, *expected in cases:
            # The credentials that are restricted may make no organization's token at all.
            restricted = expected[1] == "ROLE_BEYOND_CALLER"
            for_programs = [DENIED, "PERMISSION_MISSING", ""] if restricted else expected
            for request, wanted in (
                (Personal(**values), expected),
                (Organizational(**values, role="VIEWER"), for_programs),
            ):
                said = desk.refused(who, request)
                if [said.code, said.reason, said.field] != wanted or not re.search(r"[:.] \w", said.message):
                    wrong.append((who, str(request)[:200], said, wanted))

    assert wrong == []
    assert len(cases) > 60


def test_each_bad_role_is_refused_and_nothing_written(site: Site) -> None:
    """An unknown one, one of owners, one beyond the caller, one that couldn't use the restriction."""
    desk = Desk(site)
    creator = site.members["ADMIN"].user_id
    narrow = put_credential(site, creator, only=(("organization-tokens", "create"), ("secrets", "view")))
    owners = put_credential(site, site.members["OWNER"].user_id, only=(("*", "*"),))
    cases: list[tuple[str, Organizational, grpc.StatusCode, str, str]] = [
        ("OWNER", Organizational(name="x"), INVALID, "INVALID_FIELD", "role"),
        ("OWNER", Organizational(name="x", role="R" * 65), INVALID, "INVALID_FIELD", "role"),
        ("OWNER", Organizational(name="x", role="EDITOR"), INVALID, "UNKNOWN_ROLE_NAME", "role"),
        ("OWNER", Organizational(name="x", role="viewer"), INVALID, "UNKNOWN_ROLE_NAME", "role"),
        ("OWNER", Organizational(name="x", role="OWNER"), DENIED, "ROLE_BEYOND_CALLER", "role"),
        ("ADMIN", Organizational(name="x", role="OWNER"), DENIED, "ROLE_BEYOND_CALLER", "role"),
        (owners, Organizational(name="x", role="OWNER"), DENIED, "ROLE_BEYOND_CALLER", "role"),
        (narrow, Organizational(name="x", role="VIEWER"), DENIED, "ROLE_BEYOND_CALLER", "role"),
        ("CONTRIBUTOR", Organizational(name="x", role="VIEWER"), DENIED, "PERMISSION_MISSING", ""),
        ("CONTRIBUTOR", Organizational(name="x", role="EDITOR"), DENIED, "PERMISSION_MISSING", ""),
        (
            "OWNER",
            Organizational(name="x", role="VIEWERNOSECRETS", restriction=restriction(("secrets", "view"))),
            INVALID,
            "INVALID_FIELD",
            "restriction.permissions[0]",
        ),
    ]
    with nothing_written(site):
        for who, request, *expected in cases:
            said = desk.refused(who, request)

            assert [said.code, said.reason, said.field] == expected, request


def test_foreign_missing_and_other_ids_look_the_same(site: Site) -> None:
    """To one who may: NOT_FOUND, one message but for the id; to one who mayn't: PERMISSION_DENIED, whatever the id."""
    desk = Desk(site)
    foreign, missing = id_of(found_other(site)), credentials.new_id()
    a_session = id_of(put_session(site, "OWNER"))
    ids = [foreign, missing, a_session, "x", missing[:-1]]
    with nothing_written(site):
        for kind in (pb.RotateTokenRequest, pb.DeleteTokenRequest):
            for who, code in (("ADMIN", NOT_FOUND), ("CONTRIBUTOR", DENIED), ("VIEWER", DENIED)):
                shown = set()
                for token_id in ids:
                    said = desk.refused(who, kind(id=token_id))
                    message = said.message.replace(f"`{token_id}`", "`ID`")
                    metadata = tuple(
                        sorted((key, value) for key, value in said.metadata.items() if key != "request_id")
                    )
                    shown.add((said.code, said.reason, said.field, message, metadata))

                assert len(shown) == 1, shown
                assert shown.pop()[0] is code


def test_another_persons_token_looks_missing_to_whoever_may_not_delete_it(site: Site) -> None:
    """A CONTRIBUTOR learns nothing from the answer about which ids there are."""
    desk = Desk(site)
    ids = [id_of(site.tokens["OWNER"]), id_of(site.tokens["VIEWER"]), credentials.new_id()]
    told_of = [
        desk.refused("CONTRIBUTOR", kind(id=i)) for kind in (pb.RotateTokenRequest, pb.DeleteTokenRequest) for i in ids
    ]
    shown = {(said.code, said.reason, said.message, said.field) for said in told_of}

    assert len(shown) == 2
    assert {code for code, *_ in shown} == {DENIED}


def test_what_is_no_id_is_refused_and_not_repeated(site: Site) -> None:
    """It may be the whole token by mistake."""
    desk = Desk(site)
    with nothing_written(site):
        for text in ("", site.tokens["VIEWER"], "a" * 65, "a b", "a\x00", "é" * 22, "../x", "*"):
            for request in (pb.RotateTokenRequest(id=text), pb.DeleteTokenRequest(id=text)):
                said = desk.refused("OWNER", request)

                assert (said.code, said.reason, said.field) == (INVALID, "INVALID_FIELD", "id")
                assert site.tokens["VIEWER"] not in said.message


# Rotating


def test_a_rotated_token_stays_the_same_but_for_its_secret(site: Site) -> None:
    """Id, name, role, restriction and expiry stay; the last four and the etag are new; the old secret is dead."""
    desk = Desk(site)
    made = desk.send("OWNER", Personal(name="laptop", restriction=restriction(*CHECK_ONLY, ("secrets", "view"))))
    desk.send(made.secret, session.WhoAmIRequest())
    answer = desk.send("OWNER", pb.RotateTokenRequest(id=made.token.id, etag=made.token.etag))
    expected = pb.Token()
    expected.CopyFrom(made.token)
    expected.last_four, expected.etag = answer.secret[-4:], answer.token.etag
    answer.token.ClearField("last_used_time")

    assert desk.code(made.secret, session.WhoAmIRequest()) is UNAUTHENTICATED
    assert desk.code(answer.secret, session.WhoAmIRequest()) is OK
    assert answer.token == expected
    assert answer.token.etag != made.token.etag
    assert answer.revision == made.revision + 1


def test_an_old_secret_works_during_the_overlap_only(site: Site) -> None:
    """With each rotation those of all earlier ones end with the one before; the newest lives on."""
    desk = Desk(site)
    made = desk.send("OWNER", Organizational(name="deploy", role="VIEWER"))
    secrets = [made.secret]

    def rotate(seconds: float) -> list[bool]:
        overlap = Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
        secrets.append(desk.send("OWNER", pb.RotateTokenRequest(id=made.token.id, overlap=overlap)).secret)
        return [desk.code(secret, session.WhoAmIRequest()) is OK for secret in secrets]

    assert rotate(24 * 3600) == [True, True]
    assert rotate(3600) == [True, True, True]
    assert rotate(0) == [False, False, False, True]
    assert rotate(1) == [False, False, False, True, True]
    until(lambda: desk.code(secrets[3], session.WhoAmIRequest()) is UNAUTHENTICATED, 3)
    assert [desk.code(secret, session.WhoAmIRequest()) is OK for secret in secrets] == [False] * 4 + [True]
    ends = site.storage.read(
        lambda tx: set(tx.connection.scalars(select(tables.retired_secrets.c.expire_time <= now())))
    )
    assert ends == {True}


def test_overlap_and_etag_are_minded(site: Site) -> None:
    """Negative, above 24 hours, no span; a stale etag; a dead token: refused, and nothing written."""
    desk = Desk(site)
    token_id = id_of(put_credential(site, site.members["OWNER"].user_id))
    dead, expired = (put_credential(site, site.members["OWNER"].user_id, life=life) for life in (DAY, 1))
    desk.send("OWNER", pb.DeleteTokenRequest(id=id_of(dead)))
    program = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER", life=1)
    with nothing_written(site):
        for overlap in (
            Duration(seconds=-1),
            Duration(seconds=86_400, nanos=1000),
            Duration(seconds=86_401),
            Duration(seconds=2**63 - 1),
            Duration(seconds=1, nanos=-1),
        ):
            said = desk.refused("OWNER", pb.RotateTokenRequest(id=token_id, overlap=overlap))
            assert (said.code, said.reason, said.field) == (INVALID, "INVALID_FIELD", "overlap")
        for request in (
            pb.RotateTokenRequest(id=token_id, etag="stale"),
            pb.DeleteTokenRequest(id=token_id, etag="stale"),
            organization.UpdateOrganizationRequest(display_name="x", etag="stale"),
        ):
            said = desk.refused("OWNER", request)
            assert (said.code, said.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
        for text in (dead, expired, program):
            said = desk.refused("OWNER", pb.RotateTokenRequest(id=id_of(text)))
            assert (said.code, said.reason, said.field) == (NOT_FOUND, "TOKEN_NOT_FOUND", "id")


# Deleting


def test_a_deleted_token_is_dead_for_ever_and_stays_listed(site: Site) -> None:
    """Deleting again gives the same answer and writes nothing, whatever the etag."""
    desk = Desk(site)
    made = desk.send("OWNER", Organizational(name="deploy", role="VIEWER"))
    old = desk.send("OWNER", pb.RotateTokenRequest(id=made.token.id, overlap=Duration(seconds=3600)))
    assert desk.code(made.secret, session.WhoAmIRequest()) is OK
    answer = desk.send("OWNER", pb.DeleteTokenRequest(id=made.token.id, etag=old.token.etag))
    with nothing_written(site):
        again = desk.send("ADMIN", pb.DeleteTokenRequest(id=made.token.id, etag=old.token.etag))

    again.token.ClearField("last_used_time")
    answer.token.ClearField("last_used_time")
    assert (answer.token.state, answer.revision) == (DELETED, old.revision + 1)
    assert again == answer
    for secret in (made.secret, old.secret):
        assert desk.code(secret, session.WhoAmIRequest()) is UNAUTHENTICATED
    listed = desk.send("OWNER", pb.ListTokensRequest(state=DELETED)).tokens
    assert [token.id for token in listed] == [made.token.id]


# Listing


def test_pages_joined_are_the_list(site: Site) -> None:
    """Newest first, nothing twice or missed, for each page size, filter and caller."""
    desk = Desk(site)
    users = {role: site.members[role].user_id for role in ROLES}
    for number in range(4):
        put_credential(site, users["CONTRIBUTOR"], name=f"c{number}")
        put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER", name=f"o{number}")
    put_credential(site, users["CONTRIBUTOR"], life=1, name="expired")
    gone = put_credential(site, users["CONTRIBUTOR"], name="deleted")
    desk.send("OWNER", pb.DeleteTokenRequest(id=id_of(gone)))
    put_session(site, "CONTRIBUTOR")
    found_other(site)
    # Ties are told apart too.
    tied = tables.credentials.c.name.in_(["c1", "c2", "o1"])
    site.storage.mutate(
        "acme", lambda tx: tx.connection.execute(update(tables.credentials).where(tied).values(create_time=now()))
    )

    def listed(who: str, size: int, **filters: Any) -> list[pb.Token]:
        found: list[pb.Token] = []
        page = ""
        while True:
            answer = desk.send(who, pb.ListTokensRequest(page_size=size, page_token=page, **filters))
            found += answer.tokens
            assert len(answer.tokens) == size or not answer.next_page_token
            page = answer.next_page_token
            if not page:
                return found

    mine = users["CONTRIBUTOR"]
    cases: list[tuple[str, dict[str, Any], int]] = [
        # Six tokens that the site began with, and the ten from above.
        ("OWNER", {}, 16),
        ("ADMIN", {}, 16),
        ("CONTRIBUTOR", {}, 7),
        ("VIEWER", {}, 1),
        ("OWNER", {"kind": PERSONAL}, 12),
        ("OWNER", {"kind": ORGANIZATION}, 4),
        ("OWNER", {"kind": PERSONAL, "user_id": mine}, 7),
        ("CONTRIBUTOR", {"user_id": mine}, 7),
        ("CONTRIBUTOR", {"kind": PERSONAL}, 7),
        ("OWNER", {"user_id": "nobody"}, 0),
        ("OWNER", {"state": LIVE}, 14),
        ("OWNER", {"state": EXPIRED}, 1),
        ("OWNER", {"state": DELETED}, 1),
        ("CONTRIBUTOR", {"state": LIVE}, 5),
        ("OWNER", {"kind": ORGANIZATION, "state": DELETED}, 0),
    ]
    for who, filters, count in cases:
        whole = listed(who, 1000, **filters)

        assert len(whole) == count, (who, filters)
        assert whole == sorted(whole, key=lambda t: (t.create_time.ToMicroseconds(), t.id), reverse=True)
        assert len({token.id for token in whole}) == count
        for size in (1, 2, 3):
            assert [token.id for token in listed(who, size, **filters)] == [token.id for token in whole]


def test_a_restricted_credential_sees_what_it_may_itself(sqlite_site: Site) -> None:
    """An OWNER's that may just check lists the OWNER's own tokens, and is refused the others'."""
    desk = Desk(sqlite_site)
    owner = sqlite_site.members["OWNER"].user_id
    checker = put_credential(sqlite_site, owner, only=CHECK_ONLY)
    put_credential(sqlite_site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER")

    assert {token.user_id for token in desk.send(checker, pb.ListTokensRequest()).tokens} == {owner}
    assert desk.code(checker, pb.ListTokensRequest(kind=ORGANIZATION)) is DENIED
    assert desk.code(checker, pb.ListTokensRequest(user_id=sqlite_site.members["VIEWER"].user_id)) is DENIED


def test_bad_filters_and_pages_are_refused(site: Site) -> None:
    """A session's kind, unknown numbers, sizes out of bounds, page tokens that this list did not give."""
    desk = Desk(site)
    stranger = found_other(site)
    for number in range(3):
        put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER", name=str(number))
    member = site.members["CONTRIBUTOR"].user_id
    first = desk.send("OWNER", pb.ListTokensRequest(page_size=1)).next_page_token
    filtered = desk.send("OWNER", pb.ListTokensRequest(page_size=1, kind=ORGANIZATION)).next_page_token
    roles = desk.send("OWNER", authorization.ListPermissionsRequest(subject="role:OWNER", page_size=1)).next_page_token
    abroad = desk.send(stranger, Personal(name="x")) and desk.send(stranger, pb.ListTokensRequest(page_size=1))
    invalid: list[tuple[pb.ListTokensRequest, str, str]] = [
        (pb.ListTokensRequest(kind=SESSION), "INVALID_FIELD", "kind"),
        (pb.ListTokensRequest(kind=9), "INVALID_FIELD", "kind"),  # type: ignore[arg-type]
        (pb.ListTokensRequest(state=9), "INVALID_FIELD", "state"),  # type: ignore[arg-type]
        (pb.ListTokensRequest(kind=ORGANIZATION, user_id=member), "INVALID_FIELD", "user_id"),
        (pb.ListTokensRequest(page_size=-1), "INVALID_FIELD", "page_size"),
        (pb.ListTokensRequest(page_size=1001), "INVALID_FIELD", "page_size"),
        (pb.ListTokensRequest(page_size=-(2**31)), "INVALID_FIELD", "page_size"),
    ]
    other = "B" if first[5] == "A" else "A"
    tampered = ("x", "é", first[:-2], f"{first}=", first[:5] + other + first[6:], filtered, roles)
    invalid += [(pb.ListTokensRequest(page_size=1, page_token=page), "PAGE_TOKEN", "page_token") for page in tampered]
    invalid.append((pb.ListTokensRequest(page_size=1, page_token=abroad.next_page_token), "PAGE_TOKEN", "page_token"))
    for filters in ({"kind": PERSONAL}, {"state": LIVE}, {"user_id": member}):
        request = pb.ListTokensRequest(page_token=first, **filters)
        invalid.append((request, "PAGE_TOKEN", "page_token"))

    assert abroad.next_page_token
    for request, reason, field in invalid:
        said = desk.refused("OWNER", request)
        assert (said.code, said.reason, said.field) == (INVALID, reason, field), request
    for who in ("ADMIN", stranger):
        assert desk.refused(who, pb.ListTokensRequest(page_token=first)).reason == "PAGE_TOKEN"
    assert desk.refused(
        "OWNER", authorization.ListPermissionsRequest(subject="role:OWNER", page_token=first)
    ).reason == ("PAGE_TOKEN")
    assert desk.code("OWNER", pb.ListTokensRequest(page_token=first, page_size=1000)) is OK


def test_use_is_noted_soon_and_at_most_once_a_minute(site: Site) -> None:
    """It appears within seconds, changes no etag, and stays while the token is used on."""
    desk = Desk(site)
    made = desk.send("OWNER", Personal(name="laptop")).token
    secret = desk.send("OWNER", pb.RotateTokenRequest(id=made.id)).secret
    before = own_token(desk, "OWNER", made.id)
    at = now()
    desk.send(secret, session.WhoAmIRequest())

    def noted() -> pb.Token | None:
        token = own_token(desk, "OWNER", made.id)
        return token if token and token.HasField("last_used_time") else None

    used: pb.Token = until(noted)
    site.server._core.directory.uses._noted.clear()
    desk.send(secret, session.WhoAmIRequest())
    time.sleep(0.6)
    later = own_token(desk, "OWNER", made.id)

    assert before is not None
    assert later is not None
    assert not before.HasField("last_used_time")
    assert at <= used.last_used_time.ToMicroseconds() <= now()
    assert used.etag == before.etag
    assert later.last_used_time == used.last_used_time


# Sessions


def test_who_am_i_says_what_the_credential_may(site: Site) -> None:
    """A person's token, restricted or not, a session, an organization's token: holder, role, and what is left of it."""
    desk = Desk(site)
    member = site.members["CONTRIBUTOR"]
    plain = desk.send("CONTRIBUTOR", session.WhoAmIRequest())
    narrow = desk.send(put_credential(site, member.user_id, only=CHECK_ONLY), session.WhoAmIRequest())
    starred = desk.send(put_credential(site, member.user_id, only=(("secrets", "*"),)), session.WhoAmIRequest())
    signed_in = desk.send(put_session(site, "CONTRIBUTOR"), session.WhoAmIRequest(organization="acme"))

    assert (plain.member.user_id, plain.member.email, plain.role) == (member.user_id, member.email, "CONTRIBUTOR")
    assert plain.organization.id == "acme"
    assert (plain.credential.id, plain.credential.kind) == (id_of(site.tokens["CONTRIBUTOR"]), PERSONAL)
    assert plain.permission_count == len(plain.permissions) == 20
    assert [(item.resource, item.action) for item in narrow.permissions] == list(CHECK_ONLY)
    assert [(item.resource, item.action) for item in starred.permissions] == [("secrets", "view")]
    assert (signed_in.credential.kind, signed_in.member.user_id) == (SESSION, member.user_id)
    assert signed_in.permissions == plain.permissions


def test_signing_out_kills_just_the_presented_credential(site: Site) -> None:
    """Whatever its kind, at once and for ever; the holder's others live on."""
    desk = Desk(site)
    member = site.members["VIEWER"].user_id
    kinds = [
        put_credential(site, member),
        put_credential(site, member, only=CHECK_ONLY),
        put_session(site, "VIEWER"),
        put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER"),
    ]
    for text in kinds:
        desk.send(text, session.WhoAmIRequest())
        before = desk.send("OWNER", organization.GetOrganizationRequest()).organization.revision
        answer = desk.send(text, session.SignOutRequest())

        assert answer.revision == before + 1
        assert desk.code(text, session.WhoAmIRequest()) is UNAUTHENTICATED
        assert desk.code(text, session.SignOutRequest()) is UNAUTHENTICATED
    assert desk.code("VIEWER", session.WhoAmIRequest()) is OK


def test_nobody_is_signed_out_of_another_organization(site: Site) -> None:
    """NOT_FOUND for any name but one's own, and the credential lives on."""
    desk = Desk(site)
    found_other(site)
    with nothing_written(site):
        for name in ("other", "nowhere"):
            for request in (
                session.SignOutRequest(organization=name),
                session.WhoAmIRequest(organization=name),
                organization.GetOrganizationRequest(organization=name),
                organization.UpdateOrganizationRequest(organization=name, display_name="x"),
                pb.ListTokensRequest(organization=name),
                pb.RotateTokenRequest(organization=name, id=id_of(site.tokens["OWNER"])),
                pb.DeleteTokenRequest(organization=name, id=id_of(site.tokens["OWNER"])),
            ):
                said = desk.refused("OWNER", request)

                assert (said.code, said.reason) == (NOT_FOUND, "ORGANIZATION_NOT_FOUND"), request


# The organization


def test_a_single_owner_is_warned_of(site: Site) -> None:
    """Until a second person has such a role."""
    desk = Desk(site)
    alone = desk.send("VIEWER", organization.GetOrganizationRequest()).organization
    add_member(site.storage, "acme", "olga@acme.io", "OWNER")
    together = desk.send("VIEWER", organization.GetOrganizationRequest()).organization

    assert len(alone.warnings) == 1
    assert "single owner" in alone.warnings[0]
    assert list(together.warnings) == []
    assert together.revision == alone.revision + 1
    assert together.etag == alone.etag


def test_the_organization_gets_another_name(site: Site) -> None:
    """Name, etag and revision change; the id never. Other mutations leave the etag alone."""
    desk = Desk(site)
    before = desk.send("OWNER", organization.GetOrganizationRequest()).organization
    answer = desk.send("OWNER", organization.UpdateOrganizationRequest(display_name="Acme, Inc.", etag=before.etag))
    desk.send("OWNER", Personal(name="x"))
    after = desk.send("VIEWER", organization.GetOrganizationRequest()).organization

    assert (answer.organization.id, answer.organization.display_name) == ("acme", "Acme, Inc.")
    assert answer.revision == answer.organization.revision == before.revision + 1
    assert answer.organization.etag != before.etag
    assert (after.display_name, after.etag, after.revision) == (
        "Acme, Inc.",
        answer.organization.etag,
        answer.revision + 1,
    )
    stale = organization.UpdateOrganizationRequest(display_name="Other", etag=before.etag)
    assert desk.refused("OWNER", stale).reason == "ETAG_MISMATCH"


def test_bad_names_of_the_organization_are_refused(site: Site) -> None:
    """As those of tokens."""
    desk = Desk(site)
    with nothing_written(site):
        for name in NAMES:
            said = desk.refused("OWNER", organization.UpdateOrganizationRequest(display_name=name))

            assert (said.code, said.reason, said.field) == (INVALID, "INVALID_FIELD", "display_name"), repr(name)
        said = desk.refused("OWNER", organization.UpdateOrganizationRequest(display_name="x", request_id="1"))
        assert (said.code, said.field) == (INVALID, "request_id")


def test_who_am_i_shows_the_first_thousand_permissions(
    make_site: MakeSite, sqlite_url: str, policy_folder: Path
) -> None:
    """And counts all; the rest is listed with `token:ID`."""
    more = "".join(f"p, VIEWER, things/{number}, view, allow\n" for number in range(1200))
    with (policy_folder / "policy.csv").open("a", encoding="utf-8") as file:
        file.write(more)
    desk = Desk(make_site(sqlite_url))
    who = desk.send("VIEWER", session.WhoAmIRequest())

    assert len(who.permissions) == 1000
    assert who.permission_count == 1206


def test_a_restriction_holds_no_invisible_characters(sqlite_site: Site) -> None:
    """A pattern that nobody could ask about, or that looks like another, is refused."""
    desk = Desk(sqlite_site)
    for resource in ("secrets/\x00", "secrets/a\x1bb", "secrets/\u200b", "secrets/\u202ex"):
        said = desk.refused("OWNER", Personal(name="x", restriction=restriction((resource, "view"))))

        assert (said.code, said.field) == (INVALID, "restriction.permissions[0].resource")


def test_an_old_secret_makes_nothing_that_outlives_it(site: Site) -> None:
    """During the overlap of a rotation, what the old secret mints ends with it, and it gets no newer secret."""
    desk = Desk(site)
    made = desk.send("OWNER", Personal(name="leaked"))
    rotated = desk.send("OWNER", pb.RotateTokenRequest(id=made.token.id, overlap=Duration(seconds=60)))
    minted = desk.send(made.secret, Personal(name="copy"))
    refused = desk.refused(made.secret, pb.RotateTokenRequest(id=made.token.id))

    assert minted.token.expire_time.ToMicroseconds() <= now() + 60_000_000
    assert (refused.code, refused.reason) == (DENIED, "ROLE_BEYOND_CALLER")
    assert desk.send(rotated.secret, Personal(name="as usual")).token.expire_time == made.token.expire_time


def test_a_restriction_has_a_size(sqlite_site: Site) -> None:
    """A thousand tokens must fit into one page, so a restriction can't be as large as a message."""
    desk = Desk(sqlite_site)
    wide = restriction(*((f"parameters/{'x' * 100}{number}", "view") for number in range(20)))
    said = desk.refused("CONTRIBUTOR", Personal(name="x", restriction=wide))

    assert (said.code, said.field) == (INVALID, "restriction.permissions")
    assert "more than 2048" in said.message


def test_a_program_sees_its_own_token(sqlite_site: Site) -> None:
    """Like a person, and no other."""
    desk = Desk(sqlite_site)
    mine, _ = (desk.send("OWNER", Organizational(name=name, role="VIEWER")) for name in ("mine", "other"))

    assert [token.id for token in desk.send(mine.secret, pb.ListTokensRequest()).tokens] == [mine.token.id]
