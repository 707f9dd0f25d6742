"""The client library's management of tokens, session, organization and audit log, against a real server."""

import csv
import io
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from rolecall.client import Client, audit_filter, to_dict
from rolecall.errors import (
    CallFailed,
    EtagMismatch,
    InvalidField,
    OrganizationNotFound,
    PermissionMissing,
    PersonOnly,
    RoleBeyondCaller,
    RolecallError,
    TokenNotFound,
    UnauthenticatedCredential,
    UnknownRoleName,
)
from rolecall.limits import Limits
from rolecall.v1 import audit_pb2, shared_pb2, token_pb2
from support.lossy_proxy import OpenProxy, is_live
from support.sites import MakeSite, Site

HOUR = timedelta(hours=1)


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    """A connection to a running server over each kind of database, as the owner."""
    with Client(site.address, site.tokens["OWNER"]) as client:
        yield client


@pytest.fixture
def owner(sqlite_site: Site) -> Iterator[Client]:
    """A connection over SQLite, for tests that don't differ between databases."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        yield client


# Tokens


def test_personal_token_is_made_listed_rotated_and_deleted(client: Client, site: Site) -> None:
    """A token from creation to deletion; each change is effective as soon as it is answered."""
    made = client.tokens.create_personal("laptop")
    assert is_live(site.address, made.secret)
    listed = next(token for token in client.tokens.list(state="active") if token.id == made.token.id)
    rotated = client.tokens.rotate(made.token.id)
    after_rotation = is_live(site.address, made.secret), is_live(site.address, rotated.secret)
    deleted = client.tokens.delete(made.token.id)
    again = client.tokens.delete(made.token.id)

    assert (made.token.display_name, made.token.role, made.secret_lost) == ("laptop", "OWNER", False)
    assert made.secret.split("_")[1] == made.token.id == rotated.token.id
    assert listed.last_four == made.secret[-4:]
    assert after_rotation == (False, True)
    assert not is_live(site.address, rotated.secret)
    assert made.revision < rotated.revision < deleted.revision
    assert deleted.token.state == again.token.state == token_pb2.TOKEN_STATE_DELETED


def test_organization_token_asks_with_its_restriction(client: Client, site: Site) -> None:
    """The README's way to connect a service: a token that may check and nothing else."""
    made = client.tokens.create_organization("billing", "CONTRIBUTOR", restriction=[("authorization", "check")])

    with Client(site.address, made.secret) as service:
        may_check = service.check("viewer@acme.io", "view", "secrets")
        own = service.check(f"token:{made.token.id}", "view", "secrets")
        with pytest.raises(PersonOnly):
            service.tokens.create_personal("more")

    assert made.token.kind == shared_pb2.CREDENTIAL_KIND_ORGANIZATION_TOKEN
    assert [(item.resource, item.action) for item in made.token.restriction.permissions] == [("authorization", "check")]
    assert may_check
    assert not own


def test_old_secret_works_for_the_overlap(owner: Client, sqlite_site: Site) -> None:
    """An old secret works during the overlap of its rotation."""
    made = owner.tokens.create_personal("laptop")
    rotated = owner.tokens.rotate(made.token.id, overlap=HOUR)

    assert is_live(sqlite_site.address, made.secret)
    assert is_live(sqlite_site.address, rotated.secret)


def test_expiry_is_a_time_or_a_duration(owner: Client) -> None:
    """`expires` takes a datetime, of whatever zone, or a timedelta."""
    at = datetime.now(UTC).replace(microsecond=123456) + HOUR
    zone = at.astimezone(tz=datetime.strptime("+0530", "%z").tzinfo)

    by_moment = owner.tokens.create_personal("a", expires=zone).token
    by_span = owner.tokens.create_personal("b", expires=timedelta(days=2, microseconds=7)).token

    assert by_moment.expire_time.ToDatetime(UTC) == at
    lived = by_span.expire_time.ToDatetime(UTC) - by_span.create_time.ToDatetime(UTC)
    assert abs(lived - timedelta(days=2)) < timedelta(seconds=5)


def test_tokens_come_through_all_pages(sqlite_site: Site, owner: Client) -> None:
    """The list of tokens is the same for any page size, the newest first."""
    for number in range(3):
        owner.tokens.create_personal(f"token {number}")
    whole = [token.id for token in owner.tokens.list()]
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"], page_size=3) as client:
        paged = [token.id for token in client.tokens.list()]

    assert len(whole) == len(set(whole)) == 9
    assert paged == whole


def test_list_is_filtered(owner: Client, sqlite_site: Site) -> None:
    """Kind, person and state are the server's filters by their short names."""
    viewer = sqlite_site.members["VIEWER"].user_id
    service = owner.tokens.create_organization("billing", "VIEWER").token
    gone = owner.tokens.create_personal("gone").token
    owner.tokens.delete(gone.id)

    assert [token.id for token in owner.tokens.list(kind="organization")] == [service.id]
    assert {token.user_id for token in owner.tokens.list(user_id=viewer)} == {viewer}
    assert [token.id for token in owner.tokens.list(state="deleted")] == [gone.id]
    assert not list(owner.tokens.list(state="expired"))
    assert service.id not in {token.id for token in owner.tokens.list(kind="personal")}


@pytest.mark.parametrize("arguments", [{"kind": "session"}, {"state": "dead"}])
def test_unknown_filter_is_refused_before_the_call(owner: Client, arguments: dict[str, Any]) -> None:
    """A mistyped filter is refused before the call; the error names the known ones."""
    with pytest.raises(InvalidField) as caught:
        list(owner.tokens.list(**arguments))

    assert caught.value.field == next(iter(arguments))
    assert "give one of " in caught.value.message


# Session and organization


def test_who_am_i_distinguishes_person_and_program(client: Client, site: Site) -> None:
    """A person's token shows the member; an organization's shows itself; both what the credential may."""
    program = client.tokens.create_organization("billing", "VIEWER", restriction=[("members", "view")])

    person = client.session.who_am_i()
    with Client(site.address, program.secret) as service:
        itself = service.session.who_am_i()

    assert person.member.email == "ann@acme.io"
    assert (person.role, person.organization.id) == ("OWNER", "acme")
    assert person.credential.id == site.tokens["OWNER"].split("_")[1]
    assert person.permission_count == len(person.permissions) == 47
    assert itself.token.id == itself.credential.id == program.token.id
    assert [(item.resource, item.action) for item in itself.permissions] == [("members", "view")]
    assert to_dict(itself)["member"] is None


def test_sign_out_revokes_the_presented_token(client: Client, site: Site) -> None:
    """After SignOut's answer the token is refused."""
    made = client.tokens.create_personal("borrowed")
    with Client(site.address, made.secret) as borrowed:
        revision = borrowed.session.sign_out().revision
        with pytest.raises(UnauthenticatedCredential):
            borrowed.session.who_am_i()

    assert revision > made.revision


def test_organization_is_renamed_once(client: Client) -> None:
    """One change with the etag that was read succeeds; a second one with it is refused."""
    before = client.organization.get()
    after = client.organization.update("Acme Ltd.", etag=before.etag)

    with pytest.raises(EtagMismatch) as caught:
        client.organization.update("Acme Inc.", etag=before.etag)

    assert (before.display_name, after.display_name) == ("acme", "Acme Ltd.")
    assert any("single owner" in warning for warning in before.warnings)
    assert client.organization.get() == after
    assert caught.value.reason == "ETAG_MISMATCH"


# Audit


def test_audit_list_is_filtered_and_paged(site: Site) -> None:
    """Entries come the newest first, through all pages, and only those asked for."""
    client = Client(site.address, site.tokens["OWNER"], page_size=2)
    site.channels.enter_context(client)
    made = [client.tokens.create_personal(f"token {number}").token.id for number in range(3)]
    client.tokens.delete(made[0])
    began = datetime.now(UTC)

    everything = list(client.audit.list())
    creations = list(client.audit.list(audit_filter(action="CreatePersonalToken", outcome="succeeded")))
    of_first = list(client.audit.list(audit_filter(object_name=f"token:{made[0]}")))

    assert [entry.sequence for entry in everything] == list(range(len(everything), 0, -1))
    assert [entry.object for entry in creations] == [f"token:{identifier}" for identifier in reversed(made)]
    assert [entry.action for entry in of_first] == ["DeleteToken", "CreatePersonalToken"]
    assert not list(client.audit.list(audit_filter(since=began + HOUR)))
    assert len(list(client.audit.list(audit_filter(until=began + HOUR)))) == len(everything)
    assert not list(client.audit.list(audit_filter(outcome="denied")))
    assert {entry.actor for entry in client.audit.list(audit_filter(actor="operator"))} == {"operator"}


def test_audit_is_exported_in_both_forms(client: Client) -> None:
    """The pieces of an export put together are a file; both forms hold the same entries as the list."""
    listed = [entry.hash for entry in client.audit.list()]

    lines = [json.loads(line) for line in b"".join(client.audit.export("jsonl")).decode().splitlines()]
    rows = list(csv.DictReader(io.StringIO(b"".join(client.audit.export("csv")).decode())))

    assert [line["hash"] for line in lines] == [row["hash"] for row in rows] == listed[::-1]
    with pytest.raises(InvalidField):
        list(client.audit.export("xml"))


def test_verify_accepts_a_known_hash(client: Client) -> None:
    """The head of one verification is the mark for a later one."""
    first = client.audit.verify()
    client.tokens.create_personal("laptop")

    whole = client.audit.verify(known=(first.head.sequence, first.head.hash))
    part = client.audit.verify(first=2, last=3)

    assert first.verdict == whole.verdict == part.verdict == audit_pb2.AUDIT_VERDICT_INTACT
    assert whole.head.sequence == first.head.sequence + 1 == whole.entry_count


def test_verify_finds_another_hash_than_the_known_one(owner: Client) -> None:
    """A log without the hash that was kept elsewhere fails to verify, at that entry."""
    head = owner.audit.verify().head

    verdict = owner.audit.verify(known=(head.sequence, "00" * 32))

    assert (verdict.verdict, verdict.first_bad_sequence) == (audit_pb2.AUDIT_VERDICT_TAMPERED, head.sequence)
    assert "another hash" in verdict.problem


# Errors


@pytest.mark.parametrize(
    ("call", "error", "at_fault"),
    [
        (lambda c: c.tokens.create_personal(""), InvalidField, "display_name"),
        (lambda c: c.tokens.create_personal("x" * 65), InvalidField, "display_name"),
        (lambda c: c.tokens.create_personal("x", expires=timedelta(days=366)), InvalidField, "ttl"),
        (
            lambda c: c.tokens.create_personal("x", expires=datetime(2020, 1, 1, tzinfo=UTC)),
            InvalidField,
            "expire_time",
        ),
        (lambda c: c.tokens.create_personal("x", restriction=[]), InvalidField, "restriction.permissions"),
        (
            lambda c: c.tokens.create_personal("x", restriction=[("nil", "a")]),
            InvalidField,
            "restriction.permissions[0]",
        ),
        (lambda c: c.tokens.create_organization("x", "NOBODY"), UnknownRoleName, "role"),
        (lambda c: c.tokens.create_organization("x", "OWNER"), RoleBeyondCaller, "role"),
        (lambda c: c.tokens.rotate("0" * 22, overlap=timedelta(hours=25)), InvalidField, "overlap"),
        (lambda c: c.tokens.rotate("rcp_pasted_whole"), InvalidField, "id"),
        (lambda c: c.tokens.delete("0" * 22), TokenNotFound, "id"),
        (lambda c: c.organization.update("a\x00b"), InvalidField, "organization.display_name"),
        (lambda c: c.audit.verify(first=-1), InvalidField, "first_sequence"),
        (lambda c: c.audit.verify(known=(1, "zz")), InvalidField, "known"),
        (lambda c: list(c.audit.list(audit_filter(actor="x" * 129))), InvalidField, "filter.actor"),
        (lambda c: list(c.audit.export("csv", audit_filter(action="x" * 129))), InvalidField, "filter.action"),
    ],
)
def test_error_keeps_its_class_and_fields(
    owner: Client, call: Callable[[Client], object], error: type[RolecallError], at_fault: str
) -> None:
    """An error of a unary call or a stream has its class, reason, field and call id."""
    with pytest.raises(error) as caught:
        call(owner)

    assert caught.value.reason == error.reason
    assert caught.value.field == at_fault
    assert caught.value.metadata["call_id"]


@pytest.mark.parametrize(
    ("call", "resource", "action"),
    [
        (lambda c: c.tokens.create_personal("x"), "personal-tokens", "create"),
        (lambda c: c.tokens.create_organization("x", "VIEWER"), "organization-tokens", "create"),
        (lambda c: list(c.tokens.list(kind="organization")), "organization-tokens", "view"),
        (lambda c: c.organization.update("x"), "account", "manage"),
        (lambda c: list(c.audit.list()), "audit-logs", "view"),
        (lambda c: list(c.audit.export("jsonl")), "audit-logs", "download"),
        (lambda c: c.audit.verify(), "audit-logs", "view"),
    ],
)
def test_missing_permission_is_in_the_metadata(
    sqlite_site: Site, call: Callable[[Client], object], resource: str, action: str
) -> None:
    """A refused caller gets the missing permission, in the message and in the metadata."""
    with (
        Client(sqlite_site.address, sqlite_site.tokens["VIEWER"]) as viewer,
        pytest.raises(PermissionMissing) as caught,
    ):
        call(viewer)

    assert (caught.value.metadata["resource"], caught.value.metadata["action"]) == (resource, action)
    assert f"`{action}`" in caught.value.message or f"{resource} {action}" in caught.value.message


def test_every_part_names_the_organization(sqlite_site: Site) -> None:
    """A client that is set up for another organization changes and sees nothing in its own."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"], "beta") as client:
        calls: list[Callable[[], object]] = [
            lambda: client.tokens.create_personal("x"),
            lambda: client.tokens.create_organization("x", "VIEWER"),
            lambda: list(client.tokens.list()),
            lambda: client.tokens.rotate("0" * 22),
            lambda: client.tokens.delete("0" * 22),
            client.session.who_am_i,
            client.session.sign_out,
            client.organization.get,
            lambda: client.organization.update("x"),
            lambda: list(client.audit.list()),
            lambda: list(client.audit.export("jsonl")),
            client.audit.verify,
        ]
        for call in calls:
            with pytest.raises(OrganizationNotFound):
                call()

    assert is_live(sqlite_site.address, sqlite_site.tokens["OWNER"])


def test_closed_client_says_so(sqlite_site: Site) -> None:
    """A call after `close` is an error of this library."""
    client = Client(sqlite_site.address, sqlite_site.tokens["OWNER"])
    client.close()

    for call in (client.session.who_am_i, lambda: list(client.tokens.list())):
        with pytest.raises(CallFailed, match="closed"):
            call()


# Answers that get lost


def test_lost_answer_makes_one_token(site: Site, open_proxy: OpenProxy) -> None:
    """The server created the token, but its answer was lost: the retry creates none, and reports the lost secret."""
    proxy, address = open_proxy(site)
    proxy.lose = 1
    with Client(address, site.tokens["OWNER"]) as client:
        made = client.tokens.create_personal("laptop")
        tokens = [token.id for token in client.tokens.list() if token.display_name == "laptop"]
        entries = list(client.audit.list(audit_filter(action="CreatePersonalToken")))

    first, second = proxy.request_ids("CreatePersonalToken", token_pb2.CreatePersonalTokenRequest)
    assert first == second == str(uuid.UUID(first))
    assert tokens == [made.token.id]
    assert len(entries) == 1
    assert (made.secret, made.secret_lost) == ("", True)


def test_lost_answers_of_every_change_have_one_effect(sqlite_site: Site, open_proxy: OpenProxy) -> None:
    """Each RPC that changes something is done once, however often it is sent."""
    proxy, address = open_proxy(sqlite_site)
    with Client(address, sqlite_site.tokens["OWNER"]) as client:
        mine, etag = client.tokens.create_personal("mine").token, client.organization.get().etag
        calls: dict[str, Callable[[], object]] = {
            "CreateOrganizationToken": lambda: client.tokens.create_organization("billing", "VIEWER"),
            "RotateToken": lambda: client.tokens.rotate(mine.id, etag=mine.etag),
            "UpdateOrganization": lambda: client.organization.update("Acme Ltd.", etag=etag),
            "DeleteToken": lambda: client.tokens.delete(mine.id),
        }
        answers = {}
        for name, call in calls.items():
            proxy.lose = 2
            answers[name] = call()
        counted = {name: len(list(client.audit.list(audit_filter(action=name)))) for name in calls}

    assert [sum(method.endswith(f"/{name}") for method, _ in proxy.seen) for name in calls] == [3] * 4
    assert counted == dict.fromkeys(calls, 1)
    lost = [cast("token_pb2.RotateTokenResponse", answers[name]) for name in ("CreateOrganizationToken", "RotateToken")]
    assert [(answer.secret, answer.secret_lost) for answer in lost] == [("", True)] * 2


def test_each_change_has_an_id_of_its_own(sqlite_site: Site, open_proxy: OpenProxy) -> None:
    """Two equal calls are two changes."""
    proxy, address = open_proxy(sqlite_site)
    with Client(address, sqlite_site.tokens["OWNER"]) as client:
        made = [client.tokens.create_personal("twin") for _ in range(2)]

    assert len({response.token.id for response in made}) == 2
    assert len(set(proxy.request_ids("CreatePersonalToken", token_pb2.CreatePersonalTokenRequest))) == 2


def test_threads_share_a_client(site: Site) -> None:
    """Changes from many threads through one client are all made, each once."""
    with Client(site.address, site.tokens["OWNER"], timeout=30) as client:
        barrier = threading.Barrier(8)

        def work(number: int) -> str:
            barrier.wait()
            return client.tokens.create_personal(f"thread {number}").token.id

        with futures.ThreadPoolExecutor(8) as pool:
            made = set(pool.map(work, range(8)))
        verdict = client.audit.verify()

    assert len(made) == 8
    assert verdict.verdict == audit_pb2.AUDIT_VERDICT_INTACT


# Streams that break


# Exports come in pieces of two entries.
SMALL_PIECES = Limits(export_entries=2)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_export_continues_after_a_broken_stream(
    make_site: MakeSite, sqlite_url: str, open_proxy: OpenProxy, form: str
) -> None:
    """A stream that breaks after every second piece still gives each line once, and one header."""
    site = make_site(sqlite_url, limits=SMALL_PIECES)
    with Client(site.address, site.tokens["OWNER"]) as owner:
        for number in range(25):
            owner.tokens.create_personal(f"token {number}")
        whole = b"".join(owner.audit.export(form))
    proxy, address = open_proxy(site)
    proxy.break_after = 2
    with Client(address, site.tokens["OWNER"]) as client:
        pieced = b"".join(client.audit.export(form))

    assert len(proxy.seen) > 6
    assert pieced == whole


def test_export_through_a_dead_connection_ends(sqlite_site: Site, open_proxy: OpenProxy) -> None:
    """An export through a connection that carries nothing fails, rather than retry for ever."""
    proxy, address = open_proxy(sqlite_site)
    proxy.break_after = 0
    with Client(address, sqlite_site.tokens["OWNER"]) as client, pytest.raises(CallFailed):
        b"".join(client.audit.export("jsonl"))


def test_export_ends_when_its_token_is_deleted(make_site: MakeSite, sqlite_url: str) -> None:
    """An export whose token is deleted half-way ends with an error, without the rest and without a retry."""
    site = make_site(sqlite_url, limits=SMALL_PIECES)
    owner = site.channels.enter_context(Client(site.address, site.tokens["OWNER"]))
    made = owner.tokens.create_personal("reader")
    for number in range(100):
        owner.organization.update(f"Acme {number}")
    with Client(site.address, made.secret) as reader:
        pieces = reader.audit.export("jsonl")
        next(pieces)
        owner.tokens.delete(made.token.id)
        with pytest.raises(UnauthenticatedCredential):
            list(pieces)
