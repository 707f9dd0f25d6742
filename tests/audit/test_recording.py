"""Each change writes one entry in its own transaction; a change that fails writes nothing."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy.exc import SQLAlchemyError

from rolecall import Client, audit
from rolecall.client import to_dict
from rolecall.domain import now
from rolecall.errors import (
    EtagMismatch,
    Internal,
    InvalidField,
    MemberNotFound,
    OrganizationExists,
    OrganizationNotFound,
    PermissionMissing,
    PersonOnly,
    RequestIdReused,
    RoleBeyondCaller,
    RolecallError,
    TokenNotFound,
    UnknownRoleName,
    WriteConflict,
)
from rolecall.server import build_server
from rolecall.services import operator_tokens, organizations
from rolecall.v1 import (
    assignment_pb2,
    audit_pb2,
    invitation_pb2,
    member_pb2,
    organization_pb2,
    session_pb2,
    shared_pb2,
    team_pb2,
    token_pb2,
)
from support.audit_logs import (
    INTACT,
    call,
    dump,
    entries,
    head,
    log_of,
    record_events,
    revision,
    sql,
    stored,
    token_id,
    verify,
)
from support.sites import Site
from support.waiting import wait_until

DENIED = audit_pb2.AuditFilter(outcome=audit_pb2.AUDIT_OUTCOME_DENIED)


@dataclass(frozen=True)
class Ids:
    """Ids of the things that are changed: an organization's token `ci`, a member, an invitation to VIEWER.

    And the assignment of a role to the member, whose team is `payments`.
    """

    token: str
    member: str
    invitation: str
    assignment: str


@dataclass(frozen=True)
class Change:
    """A change over gRPC, as the owner."""

    rpc: str
    request: Callable[[Ids], Any]
    object: Callable[[Ids, Any], str]
    details: dict[str, Any]


# An assignment, without its note.
_ASSIGNED: dict[str, Any] = {
    "principal": ...,
    "role": "CONTRIBUTOR",
    "scope": "projects/billing",
    "expire_time": None,
}
# `...` takes any value.
CHANGES = {
    "CreatePersonalToken": Change(
        "CreatePersonalToken",
        lambda _: token_pb2.CreatePersonalTokenRequest(
            display_name="laptop",
            restriction=shared_pb2.Restriction(permissions=[shared_pb2.Permission(resource="secrets", action="view")]),
            networks=["10.0.0.0/8", "::ffff:192.0.2.7"],
        ),
        lambda _, answer: f"token:{answer.token.id}",
        {
            "after": {
                "kind": "personal",
                "display_name": "laptop",
                "role": None,
                "restriction": ["secrets view"],
                "expire_time": ...,
                "networks": ["10.0.0.0/8", "192.0.2.7/32"],
            }
        },
    ),
    "CreateOrganizationToken": Change(
        "CreateOrganizationToken",
        lambda _: token_pb2.CreateOrganizationTokenRequest(display_name="deploy", role="VIEWER"),
        lambda _, answer: f"token:{answer.token.id}",
        {
            "after": {
                "kind": "organization",
                "display_name": "deploy",
                "role": "VIEWER",
                "restriction": None,
                "expire_time": ...,
                "networks": None,
            }
        },
    ),
    "RotateToken": Change(
        "RotateToken",
        lambda ids: token_pb2.RotateTokenRequest(id=ids.token, overlap=Duration(seconds=60)),
        lambda ids, _: f"token:{ids.token}",
        {"display_name": "ci", "old_secret_until": ...},
    ),
    "DeleteToken": Change(
        "DeleteToken",
        lambda ids: token_pb2.DeleteTokenRequest(id=ids.token),
        lambda ids, _: f"token:{ids.token}",
        {
            "before": {
                "kind": "organization",
                "display_name": "ci",
                "role": "VIEWER",
                "restriction": None,
                "expire_time": ...,
                "networks": None,
            }
        },
    ),
    "UpdateOrganization": Change(
        "UpdateOrganization",
        lambda _: organization_pb2.UpdateOrganizationRequest(
            organization=organization_pb2.Organization(display_name="Acme Inc.")
        ),
        lambda _, answer: "organization:acme",
        {"before": {"display_name": "acme"}, "after": {"display_name": "Acme Inc."}},
    ),
    "ChangeMemberExternalId": Change(
        "ChangeMemberExternalId",
        lambda ids: member_pb2.ChangeMemberExternalIdRequest(user_id=ids.member, external_id="auth0|7"),
        lambda ids, _: f"user:{ids.member}",
        {"before": {"external_id": ""}, "after": {"external_id": "auth0|7"}},
    ),
    "MoveMembers": Change(
        "MoveMembers",
        lambda _: member_pb2.MoveMembersRequest(from_role="VIEWER", to_role="CONTRIBUTOR"),
        lambda _, __: "role:VIEWER",
        {"before": {"role": "VIEWER"}, "after": {"role": "CONTRIBUTOR"}, "members": ...},
    ),
    "UpdateInvitation": Change(
        "UpdateInvitation",
        lambda ids: invitation_pb2.UpdateInvitationRequest(
            invitation=invitation_pb2.Invitation(id=ids.invitation, role="ADMIN", external_id="auth0|8")
        ),
        lambda ids, _: f"invitation:{ids.invitation}",
        {
            "before": {"invitation": ..., "email": "kim@x.io", "role": "VIEWER"},
            "after": {"invitation": ..., "email": "kim@x.io", "role": "ADMIN", "external_id": "auth0|8"},
        },
    ),
    "CreateRoleAssignments": Change(
        "CreateRoleAssignments",
        lambda ids: assignment_pb2.CreateRoleAssignmentsRequest(
            assignments=[
                assignment_pb2.NewRoleAssignment(
                    principal=f"user:{ids.member}", role="CONTRIBUTOR", scope="projects/a", ttl=Duration(seconds=60)
                ),
                assignment_pb2.NewRoleAssignment(principal="team:payments", role="ADMIN", note="T-1"),
            ]
        ),
        lambda _, __: "organization:acme",
        {
            "after": [
                {
                    "id": ...,
                    "principal": ...,
                    "role": "CONTRIBUTOR",
                    "scope": "projects/a",
                    "expire_time": ...,
                    "note": "",
                },
                {
                    "id": ...,
                    "principal": "team:payments",
                    "role": "ADMIN",
                    "scope": "",
                    "expire_time": None,
                    "note": "T-1",
                },
            ]
        },
    ),
    "UpdateRoleAssignment": Change(
        "UpdateRoleAssignment",
        lambda ids: assignment_pb2.UpdateRoleAssignmentRequest(
            assignment=assignment_pb2.RoleAssignment(id=ids.assignment, note="T-2")
        ),
        lambda ids, _: f"assignment:{ids.assignment}",
        {"before": {**_ASSIGNED, "note": "T-1"}, "after": {**_ASSIGNED, "note": "T-2"}},
    ),
    "DeleteRoleAssignment": Change(
        "DeleteRoleAssignment",
        lambda ids: assignment_pb2.DeleteRoleAssignmentRequest(id=ids.assignment),
        lambda ids, _: f"assignment:{ids.assignment}",
        {"before": {**_ASSIGNED, "note": "T-1"}},
    ),
    "CreateTeam": Change(
        "CreateTeam",
        lambda _: team_pb2.CreateTeamRequest(id="support", display_name="Support"),
        lambda _, __: "team:support",
        {"after": {"display_name": "Support"}},
    ),
    "UpdateTeam": Change(
        "UpdateTeam",
        lambda _: team_pb2.UpdateTeamRequest(team=team_pb2.Team(id="payments", display_name="Payments")),
        lambda _, __: "team:payments",
        {"before": {"display_name": "payments"}, "after": {"display_name": "Payments"}},
    ),
    "AddTeamMembers": Change(
        "AddTeamMembers",
        lambda _: team_pb2.AddTeamMembersRequest(id="payments", members=["admin@acme.io"]),
        lambda _, __: "team:payments",
        {"members": ...},
    ),
    "RemoveTeamMembers": Change(
        "RemoveTeamMembers",
        lambda ids: team_pb2.RemoveTeamMembersRequest(id="payments", members=[f"user:{ids.member}"]),
        lambda _, __: "team:payments",
        {"members": ...},
    ),
    "DeleteTeam": Change(
        "DeleteTeam",
        lambda _: team_pb2.DeleteTeamRequest(id="payments"),
        lambda _, __: "team:payments",
        {"before": {"display_name": "payments", "members": 1, "assignments": []}},
    ),
    "RemoveMember": Change(
        "RemoveMember",
        lambda ids: member_pb2.RemoveMemberRequest(user_id=ids.member),
        lambda ids, _: f"user:{ids.member}",
        {
            "before": {
                "role": "VIEWER",
                "email": "viewer@acme.io",
                "display_name": ...,
                "teams": ["payments"],
                "assignments": ["CONTRIBUTOR at projects/billing"],
            }
        },
    ),
    "SignOut": Change("SignOut", lambda _: session_pb2.SignOutRequest(), lambda _, __: "", {"kind": "personal"}),
}


def with_ci(site: Site) -> str:
    """The id of a new organization's token."""
    request = token_pb2.CreateOrganizationTokenRequest(display_name="ci", role="VIEWER")
    return str(call(site, "CreateOrganizationToken", request, site.tokens["OWNER"]).token.id)


def ids_of(site: Site) -> Ids:
    """The ids of new things to be changed; no mail is sent meanwhile, which would change a row."""
    site.core.sender.stop()
    invitee = invitation_pb2.Invitee(email="kim@x.io", role="VIEWER")
    request = invitation_pb2.CreateInvitationsRequest(invitations=[invitee])
    owner, member = site.tokens["OWNER"], site.members["VIEWER"].user_id
    invited = call(site, "CreateInvitations", request, owner)
    call(site, "CreateTeam", team_pb2.CreateTeamRequest(id="payments"), owner)
    call(site, "AddTeamMembers", team_pb2.AddTeamMembersRequest(id="payments", members=[f"user:{member}"]), owner)
    wanted = assignment_pb2.NewRoleAssignment(
        principal=f"user:{member}", role="CONTRIBUTOR", scope="projects/billing", note="T-1"
    )
    assigning = assignment_pb2.CreateRoleAssignmentsRequest(assignments=[wanted])
    assigned = call(site, "CreateRoleAssignments", assigning, owner).assignments[0].id
    return Ids(with_ci(site), member, invited.invitations[0].id, assigned)


def matches_expected(found: Any, expected: Any) -> bool:
    """Whether the value is as expected; `...` matches any text, and any list of texts, that isn't empty."""
    if expected is ...:
        return isinstance(found, str | list) and bool(found)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(matches_expected, found, expected))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(matches_expected(found[key], expected[key]) for key in expected)
    return bool(found == expected)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_leaves_one_entry(site: Site, change: Change) -> None:
    """One entry has the actor, credential, action, object and call; the revision rises by one."""
    token = site.tokens["OWNER"]
    ids = ids_of(site)
    before, at = entries(site), revision(site)
    answer = call(site, change.rpc, change.request(ids), token, "call=1")

    *rest, entry = entries(site)
    assert rest == before
    assert entry.sequence == len(before) + 1
    assert entry.actor == f"user:{site.members['OWNER'].user_id}"
    assert entry.credential_id == token_id(token)
    assert entry.action == change.rpc
    assert entry.object == (change.object(ids, answer) or f"token:{token_id(token)}")
    assert entry.outcome == audit_pb2.AUDIT_OUTCOME_SUCCEEDED
    assert entry.reason == ""
    assert entry.call_id == "call=1"
    assert matches_expected(to_dict(entry)["details"], change.details), to_dict(entry)["details"]
    assert entry.previous_hash == before[-1].hash
    assert abs(now() - entry.time.ToMicroseconds()) < 60_000_000
    assert answer.revision == at + 1 == revision(site)
    assert verify(site) == INTACT


def test_an_organizations_token_is_an_actor_itself(site: Site) -> None:
    """An organization's token is itself the actor of its changes: no person is named."""
    request = token_pb2.CreateOrganizationTokenRequest(display_name="ci", role="VIEWER")
    made = call(site, "CreateOrganizationToken", request, site.tokens["OWNER"])
    call(site, "SignOut", session_pb2.SignOutRequest(), made.secret)

    entry = entries(site)[-1]
    assert (entry.action, entry.actor, entry.object) == ("SignOut", f"token:{made.token.id}", f"token:{made.token.id}")


def test_each_operator_command_leaves_an_entry(site: Site) -> None:
    """Creating, issuing, revoking, erasing and pruning each write an entry by `operator`, with a new revision."""
    log, storage = log_of(site), site.storage
    founded = organizations.create(storage, log, site.server.live.in_force.policy, "globex", "gus@globex.io")
    revisions = [revision(site, "globex")]
    issued = operator_tokens.issue(storage, log, "globex", "gus@globex.io")
    revisions.append(revision(site, "globex"))
    operator_tokens.revoke(storage, log, "globex", issued.id)
    revisions.append(revision(site, "globex"))
    audit.erase(storage, log, "globex", founded.owner.user_id)
    revisions.append(revision(site, "globex"))
    found = entries(site, token=founded.token.text)
    audit.prune(storage, log, "globex", 0)
    revisions.append(revision(site, "globex"))
    found.append(entries(site, token=founded.token.text)[-1])

    user = f"user:{founded.owner.user_id}"
    assert revisions == [1, 2, 3, 4, 5]
    assert [entry.sequence for entry in found] == [1, 2, 3, 4, 5]
    assert {(entry.actor, entry.credential_id, entry.call_id) for entry in found} == {("operator", "", "")}
    assert [(entry.action, entry.object) for entry in found] == [
        ("CreateOrganization", "organization:globex"),
        ("IssueToken", f"token:{issued.id}"),
        ("RevokeToken", f"token:{issued.id}"),
        ("EraseAuditValues", user),
        ("PruneAuditLog", "organization:globex"),
    ]
    details = [to_dict(entry)["details"] for entry in found]
    unset = {"role": None, "restriction": None, "networks": None}
    token = {"kind": "personal", "display_name": "[erased]", "expire_time": ..., **unset}
    member = {"user": founded.owner.user_id, "role": "OWNER", "email": "[erased]"}
    assert matches_expected(details[0], {"members": [member], "token": founded.token.id})
    assert matches_expected(details[1], {"after": token})
    assert matches_expected(details[2], {"before": token})
    assert details[3] == {"users": [founded.owner.user_id], "values": 3}
    assert details[4] == {"before": "1970-01-01T00:00:00.000000Z", "entries": 0, "last_sequence": 0}


def test_addresses_are_stored_outside_the_entry(site: Site) -> None:
    """The table of entries has no name or address in it, only a commitment; the reader sees the value."""
    first = stored(site)[0]

    assert "acme.io" not in "".join(entry.details for entry in stored(site))
    assert to_dict(entries(site)[0])["details"]["members"][0]["email"] == "ann@acme.io"
    assert first.details.count('"sha256"') == 5


def test_a_repeated_request_leaves_one_entry(site: Site) -> None:
    """A repeated request with the same request_id writes nothing, and the revision stays."""
    request = token_pb2.CreatePersonalTokenRequest(
        display_name="laptop", request_id="6b7c3a52-2a43-4ba0-9d28-6f1e0a2b9c11"
    )
    first = call(site, "CreatePersonalToken", request, site.tokens["OWNER"])
    before = dump(site)
    second = call(site, "CreatePersonalToken", request, site.tokens["OWNER"])

    assert second.token.id == first.token.id
    assert second.revision == first.revision
    assert dump(site) == before


def test_a_token_deleted_again_leaves_one_entry(site: Site) -> None:
    """Deleting a token that is already deleted writes nothing."""
    ci = with_ci(site)
    call(site, "DeleteToken", token_pb2.DeleteTokenRequest(id=ci), site.tokens["OWNER"])
    before = dump(site)
    call(site, "DeleteToken", token_pb2.DeleteTokenRequest(id=ci), site.tokens["OWNER"])

    assert dump(site) == before


def test_failed_changes_write_nothing(site: Site) -> None:
    """After invalid input, a stale etag, a missing id or a duplicate name, no row of any table changes."""
    ci = with_ci(site)
    request_id = "6b7c3a52-2a43-4ba0-9d28-6f1e0a2b9c11"
    owner = site.tokens["OWNER"]
    create = token_pb2.CreatePersonalTokenRequest
    call(site, "CreatePersonalToken", create(display_name="once", request_id=request_id), owner)
    before = dump(site)
    permissions = [shared_pb2.Permission(resource="nonsense", action="view")]
    failing: list[tuple[type[RolecallError], str, Any]] = [
        (InvalidField, "CreatePersonalToken", create(display_name="")),
        (InvalidField, "CreatePersonalToken", create(display_name="x", ttl=Duration(seconds=-1))),
        (
            InvalidField,
            "CreatePersonalToken",
            create(display_name="x", restriction=shared_pb2.Restriction(permissions=permissions)),
        ),
        (RequestIdReused, "CreatePersonalToken", create(display_name="twice", request_id=request_id)),
        (OrganizationNotFound, "CreatePersonalToken", create(display_name="x", organization="globex")),
        (
            UnknownRoleName,
            "CreateOrganizationToken",
            token_pb2.CreateOrganizationTokenRequest(display_name="x", role="NONE"),
        ),
        (TokenNotFound, "RotateToken", token_pb2.RotateTokenRequest(id="a" * 22)),
        (EtagMismatch, "RotateToken", token_pb2.RotateTokenRequest(id=ci, etag="stale")),
        (InvalidField, "RotateToken", token_pb2.RotateTokenRequest(id=ci, overlap=Duration(seconds=90_000))),
        (EtagMismatch, "DeleteToken", token_pb2.DeleteTokenRequest(id=ci, etag="stale")),
        (TokenNotFound, "DeleteToken", token_pb2.DeleteTokenRequest(id="a" * 22)),
        (
            EtagMismatch,
            "UpdateOrganization",
            organization_pb2.UpdateOrganizationRequest(
                organization=organization_pb2.Organization(display_name="x", etag="0")
            ),
        ),
        (OrganizationNotFound, "SignOut", session_pb2.SignOutRequest(organization="globex")),
    ]
    for kind, rpc, request in failing:
        with pytest.raises(kind):
            call(site, rpc, request, owner)
    log, policy = log_of(site), site.server.live.in_force.policy
    with pytest.raises(OrganizationExists):
        organizations.create(site.storage, log, policy, "acme", "x@acme.io")
    with pytest.raises(MemberNotFound):
        operator_tokens.issue(site.storage, log, "acme", "nobody@acme.io")
    with pytest.raises(TokenNotFound):
        operator_tokens.revoke(site.storage, log, "acme", "a" * 22)

    assert dump(site) == before
    assert verify(site) == INTACT


def test_refused_changes_write_denials_only(site: Site) -> None:
    """Each denied change is an entry with its reason; neither another row nor the revision changes."""
    ci = with_ci(site)
    program = call(
        site,
        "CreateOrganizationToken",
        token_pb2.CreateOrganizationTokenRequest(display_name="program", role="ADMIN"),
        site.tokens["OWNER"],
    )
    before, length = dump(site), head(site).sequence
    viewer, admin = site.tokens["VIEWER"], site.tokens["ADMIN"]
    refused: list[tuple[type[RolecallError], str, Any, str]] = [
        (PermissionMissing, "CreatePersonalToken", token_pb2.CreatePersonalTokenRequest(display_name="x"), viewer),
        (
            RoleBeyondCaller,
            "CreateOrganizationToken",
            token_pb2.CreateOrganizationTokenRequest(display_name="x", role="OWNER"),
            admin,
        ),
        (PersonOnly, "CreatePersonalToken", token_pb2.CreatePersonalTokenRequest(display_name="x"), program.secret),
        (PermissionMissing, "RotateToken", token_pb2.RotateTokenRequest(id=ci), viewer),
        (PermissionMissing, "DeleteToken", token_pb2.DeleteTokenRequest(id=ci), viewer),
        (
            PermissionMissing,
            "UpdateOrganization",
            organization_pb2.UpdateOrganizationRequest(organization=organization_pb2.Organization(display_name="x")),
            admin,
        ),
    ]
    for kind, rpc, request, token in refused:
        with pytest.raises(kind):
            call(site, rpc, request, token)
    wait_until(lambda: head(site).sequence >= length + len(refused))
    after = dump(site)

    found = entries(site, DENIED)
    assert [(entry.action, entry.reason) for entry in found] == [(rpc, kind.reason) for kind, rpc, _, _ in refused]
    assert [entry.credential_id for entry in found] == [token_id(token) for *_, token in refused]
    assert found[2].actor == f"token:{program.token.id}"
    assert after["audit_entries"][: len(before["audit_entries"])] == before["audit_entries"]
    audited = ("audit_entries", "audit_heads")
    assert {name: rows for name, rows in after.items() if name not in audited} == {
        name: rows for name, rows in before.items() if name not in audited
    }
    assert verify(site) == INTACT


@contextmanager
def unwritable(site: Site, table: str) -> Iterator[None]:
    """Make every insert into the table and every update of it fail."""
    postgresql = site.settings.database.startswith("postgresql")
    if postgresql:
        sql(site, "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'full'; END $$")
        sql(site, f"CREATE TRIGGER refused BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION refuse()")
    else:
        for event in ("INSERT", "UPDATE"):
            refuse = "BEGIN SELECT RAISE(ABORT, 'full'); END"
            sql(site, f"CREATE TRIGGER refused_{event} BEFORE {event} ON {table} {refuse}")
    yield
    if postgresql:
        sql(site, "DROP FUNCTION refuse() CASCADE")
    else:
        for event in ("INSERT", "UPDATE"):
            sql(site, f"DROP TRIGGER refused_{event}")


def test_change_fails_where_the_log_cannot_be_written(site: Site) -> None:
    """While the table of entries can't be written, each change fails as a whole; afterwards each works."""
    ids = ids_of(site)
    owner = site.tokens["OWNER"]
    log, policy = log_of(site), site.server.live.in_force.policy
    operators: list[Callable[[], object]] = [
        lambda: organizations.create(site.storage, log, policy, "globex", "gus@globex.io"),
        lambda: operator_tokens.issue(site.storage, log, "acme", "ann@acme.io"),
        lambda: operator_tokens.revoke(site.storage, log, "acme", ids.token),
        lambda: audit.erase(site.storage, log, "acme", "ann@acme.io"),
        lambda: audit.prune(site.storage, log, "acme", now()),
    ]
    before = dump(site)
    with unwritable(site, "audit_entries"):
        for change in CHANGES.values():
            with pytest.raises(Internal) as caught:
                call(site, change.rpc, change.request(ids), owner)
            assert "full" not in caught.value.message
        for operator_change in operators:
            with pytest.raises(SQLAlchemyError):
                operator_change()
        unchanged = dump(site) == before
    for change in CHANGES.values():
        call(site, change.rpc, change.request(ids), owner)

    assert unchanged
    assert verify(site) == INTACT


@pytest.mark.parametrize("table", ["audit_heads", "audit_values", "audit_checkpoints"])
def test_change_fails_where_a_part_of_the_log_cannot_be_written(site: Site, table: str) -> None:
    """A change fails where the head, the names or a due checkpoint can't be written."""
    record_events(site, 99 - head(site).sequence)
    before = dump(site)
    request = token_pb2.CreatePersonalTokenRequest(display_name="laptop")
    with unwritable(site, table):
        with pytest.raises(Internal):
            call(site, "CreatePersonalToken", request, site.tokens["OWNER"])
        unchanged = dump(site) == before
    call(site, "CreatePersonalToken", request, site.tokens["OWNER"])

    assert unchanged
    assert head(site).sequence == 100
    assert len(dump(site)["audit_checkpoints"]) == 1
    assert verify(site) == INTACT


def test_concurrent_changes_leave_a_log_without_gaps(site: Site) -> None:
    """Changes and denials by many threads, two servers and an operator leave no gap in the log or the revisions."""
    other = build_server(site.settings)
    other.start()
    begin, length = revision(site), head(site).sequence
    barrier = threading.Barrier(9)
    done: list[int] = []
    unexpected: list[BaseException] = []

    def change(address: str, role: str) -> None:
        with Client(address, site.tokens[role], timeout=20) as client:
            barrier.wait()
            for number in range(12):
                try:
                    done.append(client.tokens.create_personal(f"{role} {number}").revision)
                except WriteConflict:
                    pass
                except RolecallError as error:
                    unexpected.append(error)

    def be_refused(address: str) -> None:
        with Client(address, site.tokens["VIEWER"], timeout=20) as client:
            barrier.wait()
            for _ in range(12):
                for attempt in (lambda: client.tokens.create_personal("no"), lambda: client.organization.update("no")):
                    with pytest.raises(PermissionMissing):
                        attempt()

    def issue() -> None:
        barrier.wait()
        for _ in range(8):
            try:
                operator_tokens.issue(site.storage, log_of(site), "acme", "ann@acme.io")
                done.append(0)
            except WriteConflict:
                pass

    work = [(change, (address, role)) for address in (site.address, other.address) for role in ("OWNER", "ADMIN")]
    threads = [threading.Thread(target=target, args=arguments) for target, arguments in work]
    threads += [threading.Thread(target=change, args=(site.address, "CONTRIBUTOR"))]
    threads += [threading.Thread(target=be_refused, args=(address,)) for address in (site.address, other.address)]
    threads += [threading.Thread(target=issue) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.stop(0)

    found = entries(site)
    changes = [entry for entry in found[length:] if not entry.reason]
    assert unexpected == []
    assert len(done) > 40
    assert len(changes) == len(done) == revision(site) - begin
    assert len(set(filter(None, done))) == len(list(filter(None, done)))
    assert [entry.sequence for entry in found] == list(range(1, len(found) + 1))
    assert verify(site) == INTACT
