"""Members over gRPC: permissions to change and remove, refused requests, and immediate effect."""

import uuid
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from sqlalchemy import select, update

from rolecall.credentials import token_format
from rolecall.domain import CredentialKind
from rolecall.storage import tables
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import member_pb2 as pb
from rolecall.v1 import organization_pb2 as organization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as tokens
from support.credentials import found_other, id_of, put_credential, put_session
from support.people import PeopleCalls, change_rows, expected, last_entry, outcome
from support.roles import ROLES
from support.rows import nothing_written, rows_of
from support.server_calls import DENIED, INVALID, NOT_FOUND, OK, TRAILERS, UNAUTHENTICATED, trailer_bytes
from support.sites import MakeSite, Site, add_member

ABORTED = grpc.StatusCode.ABORTED
UNMET = grpc.StatusCode.FAILED_PRECONDITION
Change, Remove = pb.ChangeMemberRoleRequest, pb.RemoveMemberRequest
PROGRAM = CredentialKind.ORGANIZATION


# Who may whom


def test_role_changes_follow_rule_1(sqlite_site: Site) -> None:
    """Every caller, old and new role of the shipped policy, as an independent reading of its file says (rule 1)."""
    calls = PeopleCalls(sqlite_site)
    user = add_member(sqlite_site.storage, "acme", "target@acme.io", "VIEWER").user_id
    wrong = []
    for caller in ROLES:
        for old in ROLES:
            for new in ROLES:
                change_rows(sqlite_site, tables.members, user, role=old)
                found = outcome(calls, caller, Change(user_id=user, role=new))
                if found != expected(caller, "update", old, new):
                    wrong.append((caller, old, new, found))

    assert wrong == []
    assert expected("ADMIN", "update", "ADMIN", "VIEWER") == expected("OWNER", "update", "OWNER", "VIEWER") == "OK"
    assert expected("ADMIN", "update", "VIEWER", "OWNER") == "ROLE_BEYOND_CALLER"
    assert expected("CONTRIBUTOR", "update", "VIEWER", "VIEWER") == "PERMISSION_MISSING"


def test_removals_follow_rule_1(sqlite_site: Site) -> None:
    """Every caller and role of the shipped policy, as an independent reading of its file says (rule 1)."""
    calls = PeopleCalls(sqlite_site)
    wrong = []
    for caller in ROLES:
        for role in ROLES:
            email = f"{caller.lower()}.{role.lower()}@acme.io"
            target = add_member(sqlite_site.storage, "acme", email, role)
            found = outcome(calls, caller, Remove(user_id=target.user_id))
            left = [one.email for one in calls.members(text=email)]
            if found != expected(caller, "remove", role) or left != ([] if found == "OK" else [email]):
                wrong.append((caller, role, found, left))

    assert wrong == []


def test_caller_cannot_raise_its_own_role(sqlite_site: Site) -> None:
    """An ADMIN can't become OWNER, nor a CONTRIBUTOR ADMIN, with any kind of credential."""
    calls = PeopleCalls(sqlite_site)
    admin, contributor = (sqlite_site.members[role].user_id for role in ("ADMIN", "CONTRIBUTOR"))
    signed_in = put_session(sqlite_site, "ADMIN")
    with nothing_written(sqlite_site):
        for token in ("ADMIN", signed_in):
            failure = calls.refused(token, Change(user_id=admin, role="OWNER"))

            assert (failure.code, failure.reason, failure.field) == (DENIED, "ROLE_BEYOND_CALLER", "role")
            assert (failure.metadata["role"], failure.metadata["action"], failure.metadata["resource"]) == (
                "OWNER",
                "update",
                "owners",
            )
            assert "choose another role, or ask somebody who may (OWNER)" in failure.message
        assert calls.refused("CONTRIBUTOR", Change(user_id=contributor, role="ADMIN")).reason == "PERMISSION_MISSING"


def test_restricted_token_and_program_change_only_roles_within_theirs(sqlite_site: Site) -> None:
    """The presented credential counts: with only `members update`, any role is beyond it; a program has its role."""
    calls, owner = PeopleCalls(sqlite_site), sqlite_site.members["OWNER"].user_id
    viewer = sqlite_site.members["VIEWER"].user_id
    narrow = put_credential(sqlite_site, owner, only=(("members", "update"),))
    blind = put_credential(sqlite_site, owner, only=(("members", "view"),))
    program = put_credential(sqlite_site, None, kind=PROGRAM, role="ADMIN")
    with nothing_written(sqlite_site):
        assert outcome(calls, narrow, Change(user_id=viewer, role="ADMIN")) == "ROLE_BEYOND_CALLER"
        assert outcome(calls, blind, Change(user_id=viewer, role="ADMIN")) == "PERMISSION_MISSING"
        assert outcome(calls, blind, Remove(user_id=viewer)) == "PERMISSION_MISSING"
        assert outcome(calls, program, Remove(user_id=owner)) == "ROLE_BEYOND_CALLER"

    assert outcome(calls, program, Change(user_id=viewer, role="CONTRIBUTOR")) == "OK"
    assert outcome(calls, program, Remove(user_id=viewer)) == "OK"


def test_refused_caller_does_not_learn_who_is_a_member(sqlite_site: Site) -> None:
    """The refusal is the same for an existing and a missing member, a known and an unknown role."""
    calls = PeopleCalls(sqlite_site)
    there, missing = sqlite_site.members["ADMIN"].user_id, token_format.new_id()
    with nothing_written(sqlite_site):
        for make in (
            lambda user: Change(user_id=user, role="VIEWER"),
            lambda user: Change(user_id=user, role="NOBODY"),
            lambda user: Remove(user_id=user),
            lambda user: Remove(user_id=user, etag="stale"),
        ):
            told_of = [calls.refused("CONTRIBUTOR", make(user)) for user in (there, missing)]

            assert told_of[0].code is DENIED
            assert told_of[0].message == told_of[1].message
            assert told_of[0].metadata.keys() == told_of[1].metadata.keys() == {"action", "resource", "call_id"}


# Changing


def test_a_role_is_in_force_at_once(site: Site) -> None:
    """The answer has the changed member, with a new etag; the person's token and a Check have the new role."""
    calls, user = PeopleCalls(site), site.members["VIEWER"].user_id
    calls.send("VIEWER", session.WhoAmIRequest())
    before = calls.send("VIEWER", pb.GetMemberRequest(user_id=user)).member
    answer = calls.send("ADMIN", Change(user_id=user, role="CONTRIBUTOR", etag=before.etag))
    who = calls.send("VIEWER", session.WhoAmIRequest())
    check = authorization.CheckRequest(
        subject=f"user:{user}", action="create", resource="projects", at_least_revision=answer.revision
    )

    assert answer.member.role == who.role == "CONTRIBUTOR"
    assert answer.member.etag != before.etag
    assert answer.member == calls.send("OWNER", pb.GetMemberRequest(user_id=user)).member == who.member
    assert (answer.member.email, answer.member.create_time) == (before.email, before.create_time)
    assert calls.send("CONTRIBUTOR", check).decision == authorization.DECISION_ALLOW
    assert answer.revision == who.organization.revision
    entry = last_entry(site)
    assert (entry.action, entry.object) == ("ChangeMemberRole", f"user:{user}")
    assert entry.actor == f"user:{site.members['ADMIN'].user_id}"


def test_the_same_role_changes_nothing(site: Site) -> None:
    """A change to the same role leaves no revision, no audit entry, the same etag; a stale etag is still refused."""
    calls, user = PeopleCalls(site), site.members["VIEWER"].user_id
    before = calls.send("OWNER", pb.GetMemberRequest(user_id=user)).member
    with nothing_written(site):
        answer = calls.send("OWNER", Change(user_id=user, role="VIEWER"))
        last = calls.send("OWNER", Change(user_id=site.members["OWNER"].user_id, role="OWNER"))
        assert calls.refused("OWNER", Change(user_id=user, role="VIEWER", etag="stale")).reason == "ETAG_MISMATCH"

    assert answer.member == before
    assert answer.revision == last.revision
    assert answer.revision == calls.send("OWNER", session.WhoAmIRequest()).organization.revision


def test_the_last_owner_cannot_be_demoted(site: Site) -> None:
    """The last owner can't be demoted, even by themselves: FAILED_PRECONDITION says what to do. Of two, either may."""
    calls, owner = PeopleCalls(site), site.members["OWNER"].user_id
    with nothing_written(site):
        for role in ROLES[1:]:
            failure = calls.refused("OWNER", Change(user_id=owner, role=role))

            assert (failure.code, failure.reason, failure.field) == (UNMET, "LAST_OWNER", "user_id")
            assert failure.unmet == (("LAST_OWNER", "organization:acme", failure.message),)
            assert "OWNER" in failure.message
            assert "second person" in failure.message
    second = calls.join("olga@acme.io", "OWNER")

    assert calls.code(second.session.secret, Change(user_id=owner, role="VIEWER")) is OK
    failure = calls.refused(second.session.secret, Change(user_id=second.member.user_id, role="ADMIN"))
    assert failure.reason == "LAST_OWNER"


def test_invalid_changes_are_refused_and_not_written(site: Site) -> None:
    """Each with its status, reason and field, and a sentence that says what to do."""
    calls = PeopleCalls(site)
    there, missing = site.members["VIEWER"].user_id, token_format.new_id()
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
            failure = calls.refused("OWNER", request)

            assert [failure.code, failure.reason, failure.field] == want, request
            assert advice in failure.message, request


def test_role_beyond_caller_names_the_field_of_the_member(site: Site) -> None:
    """An ADMIN gets `user_id` as the field at fault, not the role; no detail says more than the reason."""
    calls, owner = PeopleCalls(site), site.members["OWNER"].user_id
    with nothing_written(site):
        for request in (Change(user_id=owner, role="VIEWER"), Remove(user_id=owner)):
            failure = calls.refused("ADMIN", request)

            assert (failure.code, failure.reason, failure.field) == (DENIED, "ROLE_BEYOND_CALLER", "user_id")
            assert failure.unmet == ()
        for request in (Change(user_id=owner, role="VIEWER"), Remove(user_id=owner), Remove(user_id="nobody")):
            failure = calls.refused("VIEWER", request)

            assert (failure.code, failure.reason, failure.field, failure.unmet) == (
                DENIED,
                "PERMISSION_MISSING",
                "",
                (),
            )


def test_last_owner_error_with_many_owner_roles_fits_into_trailers(
    make_site: MakeSite, sqlite_url: str, policy_folder: Path
) -> None:
    """An error about many owning roles names some, and takes less than 8 KB."""
    with (policy_folder / "policy.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"p, {'R' * 62}{number}, owners, update, allow\n" for number in range(10, 50))
    site = make_site(sqlite_url)
    others = update(tables.members).where(tables.members.c.role != "OWNER").values(role="VIEWER")
    site.storage.write(lambda tx: tx.connection.execute(others))
    site.forget()
    failure = PeopleCalls(site).refused("OWNER", Change(user_id=site.members["OWNER"].user_id, role="VIEWER"))

    assert (failure.reason, failure.field) == ("LAST_OWNER", "user_id")
    assert failure.unmet == (("LAST_OWNER", "organization:acme", failure.message),)
    assert "and 31 more" in failure.message
    assert trailer_bytes(failure) < TRAILERS


# Removing and leaving


def test_credentials_of_a_removed_member_fail_at_once(site: Site) -> None:
    """A removed member's credentials are dead before the answer, which names the organization tokens they created."""
    calls, admin = PeopleCalls(site), site.members["ADMIN"]
    made = [
        calls.send("ADMIN", tokens.CreateOrganizationTokenRequest(display_name=name, role="VIEWER"))
        for name in ("a", "b", "c")
    ]
    calls.send("OWNER", tokens.CreateOrganizationTokenRequest(display_name="another's", role="VIEWER"))
    calls.send("ADMIN", tokens.DeleteTokenRequest(id=made[1].token.id))
    theirs = [site.tokens["ADMIN"], put_session(site, "ADMIN"), put_credential(site, admin.user_id)]
    for token in theirs:
        calls.send(token, session.WhoAmIRequest())
    request = Remove(user_id=admin.user_id, request_id=str(uuid.uuid4()))
    answer = calls.send("OWNER", request)

    assert [calls.code(token, session.WhoAmIRequest()) for token in theirs] == [UNAUTHENTICATED] * 3
    assert [token.display_name for token in answer.organization_tokens] == ["c", "a"]
    assert answer.organization_tokens[0] == made[2].token
    assert (answer.member.user_id, answer.member.email, answer.member.role) == (admin.user_id, admin.email, "ADMIN")
    assert calls.code(made[0].secret, session.WhoAmIRequest()) is OK
    assert calls.refused("OWNER", pb.GetMemberRequest(user_id=admin.user_id)).reason == "MEMBER_NOT_FOUND"
    assert answer.revision == calls.send("OWNER", session.WhoAmIRequest()).organization.revision
    left = repr(rows_of(site.storage)["credentials"])
    assert not any(id_of(token) in left for token in theirs)


def test_a_repeated_removal_or_change_has_the_first_answer(site: Site) -> None:
    """A repeated `request_id` with the same body has one effect and one answer; with another body, INVALID_ARGUMENT."""
    calls = PeopleCalls(site)
    viewer, admin = site.members["VIEWER"].user_id, site.members["ADMIN"].user_id
    key = str(uuid.uuid4())
    change, remove = Change(user_id=viewer, role="ADMIN", request_id=key), Remove(user_id=viewer, request_id=key)
    changed = calls.send("OWNER", change)
    with nothing_written(site):
        assert calls.send("OWNER", change) == changed
        failure = calls.refused("OWNER", Change(user_id=viewer, role="VIEWER", request_id=key))
        assert (failure.code, failure.reason, failure.field) == (INVALID, "REQUEST_ID_REUSED", "request_id")
    removed = calls.send("OWNER", remove)
    with nothing_written(site):
        assert calls.refused("OWNER", Remove(user_id=admin, request_id=key)).reason == "REQUEST_ID_REUSED"
        assert calls.send("OWNER", remove) == removed


def test_the_last_owner_cannot_be_removed(make_site: MakeSite, sqlite_url: str, policy_folder: Any) -> None:
    """The last owner can't be removed, not even where the policy lets others remove owners."""
    for name, old, new in (
        ("policy.csv", "p, OWNER, owners, remove, allow", "p, ADMIN, owners, remove, allow"),
        ("policy_test.csv", "ADMIN,owners,remove,deny", "ADMIN,owners,remove,allow"),
    ):
        text = (policy_folder / name).read_text(encoding="utf-8")
        assert old in text
        (policy_folder / name).write_text(text.replace(old, new), encoding="utf-8")
    site = make_site(sqlite_url)
    calls = PeopleCalls(site)
    program = put_credential(site, None, kind=PROGRAM, role="ADMIN")
    with nothing_written(site):
        for token in ("ADMIN", program):
            failure = calls.refused(token, Remove(user_id=site.members["OWNER"].user_id))

            assert (failure.code, failure.reason, failure.field) == (UNMET, "LAST_OWNER", "user_id")
            assert failure.unmet == (("LAST_OWNER", "organization:acme", failure.message),)
            assert "with ChangeMemberRole or an invitation" in failure.message
    add_member(site.storage, "acme", "olga@acme.io", "OWNER")

    assert calls.code("ADMIN", Remove(user_id=site.members["OWNER"].user_id)) is OK


def test_leaving_needs_a_permission_and_another_owner(site: Site) -> None:
    """ADMIN, and OWNER beside another; others lack the right, programs are no persons, the last owner must stay."""
    calls = PeopleCalls(site)
    leave = pb.LeaveOrganizationRequest()
    program = put_credential(site, None, kind=PROGRAM, role="ADMIN")
    narrow = put_credential(site, site.members["ADMIN"].user_id, only=(("members", "view"),))
    with nothing_written(site):
        failures = {token: calls.refused(token, leave) for token in (*ROLES[2:], narrow, program, "OWNER")}
    lacking = [failures[token] for token in (*ROLES[2:], narrow)]

    assert {(one.code, one.reason, one.metadata["resource"]) for one in lacking} == {
        (DENIED, "PERMISSION_MISSING", "organization")
    }
    assert (failures[program].code, failures[program].reason) == (DENIED, "PERSON_ONLY")
    assert "use a person's credential" in failures[program].message
    last = failures["OWNER"]
    assert (last.code, last.reason, last.field) == (UNMET, "LAST_OWNER", "")
    assert last.unmet == (("LAST_OWNER", "organization:acme", last.message),)
    assert failures[program].unmet == ()
    add_member(site.storage, "acme", "olga@acme.io", "OWNER")
    for token in ("ADMIN", "OWNER"):
        revision = calls.send(token, leave).revision

        assert calls.code(token, session.WhoAmIRequest()) is UNAUTHENTICATED
        assert revision == calls.send("VIEWER", organization.GetOrganizationRequest()).organization.revision
    assert {one.role for one in calls.members("VIEWER")} == {"OWNER", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS"}
