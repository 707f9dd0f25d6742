"""Members over gRPC: who may change whom, what is refused unwritten, and what is in force at once."""

import uuid
from pathlib import Path
from typing import Any

import grpc
from conftest import MakeSite, Site, add_member
from google.protobuf.message import Message
from grpc_errors import told
from people import Office, change_rows, expected, last_entry
from sqlalchemy import select, update
from test_invitations import TRAILERS, taken_by
from test_tokens import (
    DENIED,
    INVALID,
    NOT_FOUND,
    OK,
    ROLES,
    UNAUTHENTICATED,
    found_other,
    id_of,
    nothing_written,
    put_credential,
    put_session,
    rows_of,
)

from rolecall import credentials
from rolecall.domain import CredentialKind
from rolecall.storage import tables
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import member_pb2 as pb
from rolecall.v1 import organization_pb2 as organization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as tokens

ABORTED = grpc.StatusCode.ABORTED
UNMET = grpc.StatusCode.FAILED_PRECONDITION
Change, Remove = pb.ChangeMemberRoleRequest, pb.RemoveMemberRequest
PROGRAM = CredentialKind.ORGANIZATION


def outcome(office: Office, token: str, request: Message) -> str:
    """`OK`, or the reason for which the call is refused."""
    try:
        office.send(token, request)
    except grpc.RpcError as error:
        return told(error).reason
    return "OK"


# Who may whom


def test_who_changes_whom_from_what_to_what(sqlite_site: Site) -> None:
    """Every caller, old and new role of the shipped policy, as an independent reading of its file says (rule 1)."""
    office = Office(sqlite_site)
    user = add_member(sqlite_site.storage, "acme", "target@acme.io", "VIEWER").user_id
    wrong = []
    for caller in ROLES:
        for old in ROLES:
            for new in ROLES:
                change_rows(sqlite_site, tables.members, user, role=old)
                found = outcome(office, caller, Change(user_id=user, role=new))
                if found != expected(caller, "update", old, new):
                    wrong.append((caller, old, new, found))

    assert wrong == []
    assert expected("ADMIN", "update", "ADMIN", "VIEWER") == expected("OWNER", "update", "OWNER", "VIEWER") == "OK"
    assert expected("ADMIN", "update", "VIEWER", "OWNER") == "ROLE_BEYOND_CALLER"
    assert expected("CONTRIBUTOR", "update", "VIEWER", "VIEWER") == "PERMISSION_MISSING"


def test_who_removes_whom(sqlite_site: Site) -> None:
    """Every caller and role of the shipped policy, as an independent reading of its file says (rule 1)."""
    office = Office(sqlite_site)
    wrong = []
    for caller in ROLES:
        for role in ROLES:
            email = f"{caller.lower()}.{role.lower()}@acme.io"
            target = add_member(sqlite_site.storage, "acme", email, role)
            found = outcome(office, caller, Remove(user_id=target.user_id))
            left = [one.email for one in office.members(text=email)]
            if found != expected(caller, "remove", role) or left != ([] if found == "OK" else [email]):
                wrong.append((caller, role, found, left))

    assert wrong == []


def test_nobody_raises_their_own_role(sqlite_site: Site) -> None:
    """An ADMIN can't become OWNER, nor a CONTRIBUTOR ADMIN, whatever the credential."""
    office = Office(sqlite_site)
    admin, contributor = (sqlite_site.members[role].user_id for role in ("ADMIN", "CONTRIBUTOR"))
    signed_in = put_session(sqlite_site, "ADMIN")
    with nothing_written(sqlite_site):
        for token in ("ADMIN", signed_in):
            said = office.refused(token, Change(user_id=admin, role="OWNER"))

            assert (said.code, said.reason, said.field) == (DENIED, "ROLE_BEYOND_CALLER", "role")
            assert (said.metadata["role"], said.metadata["action"], said.metadata["resource"]) == (
                "OWNER",
                "update",
                "owners",
            )
            assert "choose another role, or ask somebody who may (OWNER)" in said.message
        assert office.refused("CONTRIBUTOR", Change(user_id=contributor, role="ADMIN")).reason == "PERMISSION_MISSING"


def test_a_restricted_token_and_a_program_change_what_they_reach(sqlite_site: Site) -> None:
    """The presented credential counts: cut down to `members update`, any role is beyond it; a program has its role."""
    office, owner = Office(sqlite_site), sqlite_site.members["OWNER"].user_id
    viewer = sqlite_site.members["VIEWER"].user_id
    narrow = put_credential(sqlite_site, owner, only=(("members", "update"),))
    blind = put_credential(sqlite_site, owner, only=(("members", "view"),))
    program = put_credential(sqlite_site, None, kind=PROGRAM, role="ADMIN")
    with nothing_written(sqlite_site):
        assert outcome(office, narrow, Change(user_id=viewer, role="ADMIN")) == "ROLE_BEYOND_CALLER"
        assert outcome(office, blind, Change(user_id=viewer, role="ADMIN")) == "PERMISSION_MISSING"
        assert outcome(office, blind, Remove(user_id=viewer)) == "PERMISSION_MISSING"
        assert outcome(office, program, Remove(user_id=owner)) == "ROLE_BEYOND_CALLER"

    assert outcome(office, program, Change(user_id=viewer, role="CONTRIBUTOR")) == "OK"
    assert outcome(office, program, Remove(user_id=viewer)) == "OK"


def test_whoever_may_not_learns_of_nobody(sqlite_site: Site) -> None:
    """For an existing and a missing member, a known and an unknown role, the refusal is the same."""
    office = Office(sqlite_site)
    there, missing = sqlite_site.members["ADMIN"].user_id, credentials.new_id()
    with nothing_written(sqlite_site):
        for make in (
            lambda user: Change(user_id=user, role="VIEWER"),
            lambda user: Change(user_id=user, role="NOBODY"),
            lambda user: Remove(user_id=user),
            lambda user: Remove(user_id=user, etag="stale"),
        ):
            told_of = [office.refused("CONTRIBUTOR", make(user)) for user in (there, missing)]

            assert told_of[0].code is DENIED
            assert told_of[0].message == told_of[1].message
            assert told_of[0].metadata.keys() == told_of[1].metadata.keys() == {"action", "resource", "request_id"}


# Changing


def test_a_role_is_in_force_at_once(site: Site) -> None:
    """The answer has the member as it is now, with another etag; the person's token and a Check know the role."""
    office, user = Office(site), site.members["VIEWER"].user_id
    office.send("VIEWER", session.WhoAmIRequest())
    before = office.send("VIEWER", pb.GetMemberRequest(user_id=user)).member
    answer = office.send("ADMIN", Change(user_id=user, role="CONTRIBUTOR", etag=before.etag))
    who = office.send("VIEWER", session.WhoAmIRequest())
    check = authorization.CheckRequest(
        subject=f"user:{user}", action="create", resource="projects", at_least_revision=answer.revision
    )

    assert answer.member.role == who.role == "CONTRIBUTOR"
    assert answer.member.etag != before.etag
    assert answer.member == office.send("OWNER", pb.GetMemberRequest(user_id=user)).member == who.member
    assert (answer.member.email, answer.member.create_time) == (before.email, before.create_time)
    assert office.send("CONTRIBUTOR", check).decision == authorization.DECISION_ALLOW
    assert answer.revision == who.organization.revision
    entry = last_entry(site)
    assert (entry.action, entry.object) == ("ChangeMemberRole", f"user:{user}")
    assert entry.actor == f"user:{site.members['ADMIN'].user_id}"


def test_the_same_role_changes_nothing(site: Site) -> None:
    """No revision, no audit entry, the same etag; a stale etag is refused all the same."""
    office, user = Office(site), site.members["VIEWER"].user_id
    before = office.send("OWNER", pb.GetMemberRequest(user_id=user)).member
    with nothing_written(site):
        answer = office.send("OWNER", Change(user_id=user, role="VIEWER"))
        last = office.send("OWNER", Change(user_id=site.members["OWNER"].user_id, role="OWNER"))
        assert office.refused("OWNER", Change(user_id=user, role="VIEWER", etag="stale")).reason == "ETAG_MISMATCH"

    assert answer.member == before
    assert answer.revision == last.revision
    assert answer.revision == office.send("OWNER", session.WhoAmIRequest()).organization.revision


def test_the_last_owner_cannot_be_demoted(site: Site) -> None:
    """Nor by themselves: FAILED_PRECONDITION says what to do. With a second one, either may be."""
    office, owner = Office(site), site.members["OWNER"].user_id
    with nothing_written(site):
        for role in ROLES[1:]:
            said = office.refused("OWNER", Change(user_id=owner, role=role))

            assert (said.code, said.reason, said.field) == (UNMET, "LAST_OWNER", "user_id")
            assert said.unmet == (("LAST_OWNER", "organization:acme", said.message),)
            assert "OWNER" in said.message
            assert "second person" in said.message
    second = office.join("olga@acme.io", "OWNER")

    assert office.code(second.session.secret, Change(user_id=owner, role="VIEWER")) is OK
    said = office.refused(second.session.secret, Change(user_id=second.member.user_id, role="ADMIN"))
    assert said.reason == "LAST_OWNER"


def test_bad_changes_are_refused_unwritten(site: Site) -> None:
    """Each with its status, reason and field, and a sentence that says what to do."""
    office = Office(site)
    there, missing = site.members["VIEWER"].user_id, credentials.new_id()
    found_other(site)
    abroad = select(tables.members.c.user_id).where(tables.members.c.organization == "other")
    foreign = site.storage.read(lambda tx: tx.connection.scalars(abroad).one())
    cases: list[tuple[Message, Any, str, str, str]] = [
        (Change(user_id=there, role="CHIEF"), INVALID, "UNKNOWN_ROLE_NAME", "role", "choose one of"),
        (Change(user_id=there, role="viewer"), INVALID, "UNKNOWN_ROLE_NAME", "role", "choose one of"),
        (Change(user_id=there), INVALID, "INVALID_FIELD", "role", "name a role"),
        (Change(user_id=there, role="x" * 65), INVALID, "INVALID_FIELD", "role", "see ListRoles"),
        (Change(role="ADMIN"), INVALID, "INVALID_FIELD", "user_id", "as ListMembers shows it"),
        (Change(user_id="a b", role="ADMIN"), INVALID, "INVALID_FIELD", "user_id", "ListMembers"),
        (Change(user_id=missing, role="ADMIN"), NOT_FOUND, "MEMBER_NOT_FOUND", "user_id", "ListMembers"),
        (Change(user_id=foreign, role="ADMIN"), NOT_FOUND, "MEMBER_NOT_FOUND", "user_id", "ListMembers"),
        (Change(user_id=there, role="ADMIN", etag="1"), ABORTED, "ETAG_MISMATCH", "etag", "read it again"),
        (Change(user_id=there, role="ADMIN", request_id="7"), INVALID, "INVALID_FIELD", "request_id", "leave it out"),
        (Change(user_id=there, role="ADMIN", organization="other"), NOT_FOUND, "ORGANIZATION_NOT_FOUND", "", "check"),
        (Remove(), INVALID, "INVALID_FIELD", "user_id", "as ListMembers shows it"),
        (Remove(user_id=missing), NOT_FOUND, "MEMBER_NOT_FOUND", "user_id", "ListMembers"),
        (Remove(user_id=foreign), NOT_FOUND, "MEMBER_NOT_FOUND", "user_id", "ListMembers"),
        (Remove(user_id=there, etag="1"), ABORTED, "ETAG_MISMATCH", "etag", "read it again"),
        (Remove(user_id=site.members["OWNER"].user_id), UNMET, "LAST_OWNER", "user_id", "give it to a second person"),
        (pb.GetMemberRequest(), INVALID, "INVALID_FIELD", "user_id", "as ListMembers shows it"),
        (pb.GetMemberRequest(user_id=missing), NOT_FOUND, "MEMBER_NOT_FOUND", "user_id", "ListMembers"),
        (pb.GetMemberRequest(user_id=foreign), NOT_FOUND, "MEMBER_NOT_FOUND", "user_id", "ListMembers"),
    ]
    with nothing_written(site):
        for request, *want, advice in cases:
            said = office.refused("OWNER", request)

            assert [said.code, said.reason, said.field] == want, request
            assert advice in said.message, request


def test_whoever_is_beyond_the_caller_is_the_field_at_fault(site: Site) -> None:
    """An ADMIN is told that it is `user_id`, not the role that was asked for; no detail tells more than the reason."""
    office, owner = Office(site), site.members["OWNER"].user_id
    with nothing_written(site):
        for request in (Change(user_id=owner, role="VIEWER"), Remove(user_id=owner)):
            said = office.refused("ADMIN", request)

            assert (said.code, said.reason, said.field) == (DENIED, "ROLE_BEYOND_CALLER", "user_id")
            assert said.unmet == ()
        for request in (Change(user_id=owner, role="VIEWER"), Remove(user_id=owner), Remove(user_id="nobody")):
            said = office.refused("VIEWER", request)

            assert (said.code, said.reason, said.field, said.unmet) == (DENIED, "PERMISSION_MISSING", "", ())


def test_the_last_owner_of_many_owning_roles_fits_into_trailers(
    make_site: MakeSite, sqlite_url: str, policy_folder: Path
) -> None:
    """However many roles may own, some are named, and the answer takes less than 8 KB."""
    with (policy_folder / "policy.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"p, {'R' * 62}{number}, owners, update, allow\n" for number in range(10, 50))
    site = make_site(sqlite_url)
    others = update(tables.members).where(tables.members.c.role != "OWNER").values(role="VIEWER")
    site.storage.write(lambda tx: tx.connection.execute(others))
    site.forget()
    said = Office(site).refused("OWNER", Change(user_id=site.members["OWNER"].user_id, role="VIEWER"))

    assert (said.reason, said.field) == ("LAST_OWNER", "user_id")
    assert said.unmet == (("LAST_OWNER", "organization:acme", said.message),)
    assert "and 31 more" in said.message
    assert taken_by(said) < TRAILERS


# Removing and leaving


def test_the_removed_are_locked_out_at_once(site: Site) -> None:
    """Their credentials are dead before the answer; the organization's tokens that they made live on, and are named."""
    office, admin = Office(site), site.members["ADMIN"]
    made = [
        office.send("ADMIN", tokens.CreateOrganizationTokenRequest(name=name, role="VIEWER"))
        for name in ("a", "b", "c")
    ]
    office.send("OWNER", tokens.CreateOrganizationTokenRequest(name="another's", role="VIEWER"))
    office.send("ADMIN", tokens.DeleteTokenRequest(id=made[1].token.id))
    theirs = [site.tokens["ADMIN"], put_session(site, "ADMIN"), put_credential(site, admin.user_id)]
    for token in theirs:
        office.send(token, session.WhoAmIRequest())
    request = Remove(user_id=admin.user_id, request_id=str(uuid.uuid4()))
    answer = office.send("OWNER", request)

    assert [office.code(token, session.WhoAmIRequest()) for token in theirs] == [UNAUTHENTICATED] * 3
    assert [token.name for token in answer.organization_tokens] == ["c", "a"]
    assert answer.organization_tokens[0] == made[2].token
    assert (answer.member.user_id, answer.member.email, answer.member.role) == (admin.user_id, admin.email, "ADMIN")
    assert office.code(made[0].secret, session.WhoAmIRequest()) is OK
    assert office.refused("OWNER", pb.GetMemberRequest(user_id=admin.user_id)).reason == "MEMBER_NOT_FOUND"
    assert answer.revision == office.send("OWNER", session.WhoAmIRequest()).organization.revision
    left = repr(rows_of(site.storage)["credentials"])
    assert not any(id_of(token) in left for token in theirs)


def test_a_repeated_removal_or_change_has_the_first_answer(site: Site) -> None:
    """The same `request_id` and body: one effect, one answer; with another body, INVALID_ARGUMENT."""
    office = Office(site)
    viewer, admin = site.members["VIEWER"].user_id, site.members["ADMIN"].user_id
    key = str(uuid.uuid4())
    change, remove = Change(user_id=viewer, role="ADMIN", request_id=key), Remove(user_id=viewer, request_id=key)
    changed = office.send("OWNER", change)
    with nothing_written(site):
        assert office.send("OWNER", change) == changed
        said = office.refused("OWNER", Change(user_id=viewer, role="VIEWER", request_id=key))
        assert (said.code, said.reason, said.field) == (INVALID, "REQUEST_ID_REUSED", "request_id")
    removed = office.send("OWNER", remove)
    with nothing_written(site):
        assert office.refused("OWNER", Remove(user_id=admin, request_id=key)).reason == "REQUEST_ID_REUSED"
        assert office.send("OWNER", remove) == removed


def test_the_last_owner_cannot_be_removed(make_site: MakeSite, sqlite_url: str, policy_folder: Any) -> None:
    """Not even where the policy lets others remove owners."""
    for name, old, new in (
        ("policy.csv", "p, OWNER, owners, remove, allow", "p, ADMIN, owners, remove, allow"),
        ("policy_test.csv", "ADMIN,owners,remove,deny", "ADMIN,owners,remove,allow"),
    ):
        text = (policy_folder / name).read_text(encoding="utf-8")
        assert old in text
        (policy_folder / name).write_text(text.replace(old, new), encoding="utf-8")
    site = make_site(sqlite_url)
    office = Office(site)
    program = put_credential(site, None, kind=PROGRAM, role="ADMIN")
    with nothing_written(site):
        for token in ("ADMIN", program):
            said = office.refused(token, Remove(user_id=site.members["OWNER"].user_id))

            assert (said.code, said.reason, said.field) == (UNMET, "LAST_OWNER", "user_id")
            assert said.unmet == (("LAST_OWNER", "organization:acme", said.message),)
            assert "with ChangeMemberRole or an invitation" in said.message
    add_member(site.storage, "acme", "olga@acme.io", "OWNER")

    assert office.code("ADMIN", Remove(user_id=site.members["OWNER"].user_id)) is OK


def test_who_may_leave(site: Site) -> None:
    """ADMIN, and OWNER beside another; others lack the right, programs are no persons, the last owner must stay."""
    office = Office(site)
    leave = pb.LeaveOrganizationRequest()
    program = put_credential(site, None, kind=PROGRAM, role="ADMIN")
    narrow = put_credential(site, site.members["ADMIN"].user_id, only=(("members", "view"),))
    with nothing_written(site):
        said = {token: office.refused(token, leave) for token in (*ROLES[2:], narrow, program, "OWNER")}
    lacking = [said[token] for token in (*ROLES[2:], narrow)]

    assert {(one.code, one.reason, one.metadata["resource"]) for one in lacking} == {
        (DENIED, "PERMISSION_MISSING", "organization")
    }
    assert (said[program].code, said[program].reason) == (DENIED, "PERSON_ONLY")
    assert "use a person's credential" in said[program].message
    last = said["OWNER"]
    assert (last.code, last.reason, last.field) == (UNMET, "LAST_OWNER", "")
    assert last.unmet == (("LAST_OWNER", "organization:acme", last.message),)
    assert said[program].unmet == ()
    add_member(site.storage, "acme", "olga@acme.io", "OWNER")
    for token in ("ADMIN", "OWNER"):
        revision = office.send(token, leave).revision

        assert office.code(token, session.WhoAmIRequest()) is UNAUTHENTICATED
        assert revision == office.send("VIEWER", organization.GetOrganizationRequest()).organization.revision
    assert {one.role for one in office.members("VIEWER")} == {"OWNER", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS"}
