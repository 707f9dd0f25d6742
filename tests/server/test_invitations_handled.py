"""Existing invitations over gRPC: resent, deleted, repeated; and which callers may do so."""

import re
import uuid

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from rolecall.credentials import token_format
from rolecall.domain import now
from rolecall.storage import tables
from rolecall.v1 import invitation_pb2 as pb
from rolecall.v1 import token_pb2 as tokens
from rolecall.v1.member_pb2 import ChangeMemberRoleRequest
from support.credentials import found_other, id_of, put_credential
from support.invitation_requests import DELETED, PENDING, PROGRAM, WEEK, Accept, Change, Delete, Get, Resend, Update
from support.people import PeopleCalls, change_rows, expected, inviting, last_entry, outcome
from support.roles import ROLES
from support.rows import nothing_written
from support.server_calls import ABORTED, DENIED, INVALID, NOT_FOUND, UNMET
from support.sites import QUICK_LIMITS, MakeSite, Site, without_rates


def test_resending_ends_the_older_link(site: Site) -> None:
    """A new secret, a new expiry and etag; the caller is the inviter now; the older secret no longer works."""
    calls = PeopleCalls(site)
    (made,) = calls.invite("OWNER", ("ann@x.io", "VIEWER"))
    change_rows(site, tables.invitations, made.id, expire_time=now() + 1_000_000_000)
    answer = calls.send("ADMIN", Resend(id=made.id, etag=made.etag))
    renewed, entry = answer.invitation, last_entry(site)
    with nothing_written(site):
        older = calls.refused_unauthenticated(Accept(secret=calls.secret(made)))
        stale = calls.refused("OWNER", Resend(id=made.id, etag=made.etag))

    assert (renewed.id, renewed.email, renewed.role, renewed.state) == (made.id, made.email, made.role, PENDING)
    assert renewed.creator == entry.actor == f"user:{site.members['ADMIN'].user_id}"
    assert (entry.action, entry.object) == ("ResendInvitation", f"invitation:{made.id}")
    assert renewed.create_time == made.create_time
    assert abs(renewed.expire_time.ToMicroseconds() - now() - WEEK) < 60_000_000
    assert renewed.delivery == pb.DELIVERY_STATE_QUEUED
    assert (older.code, older.reason) == (NOT_FOUND, "INVITATION_NOT_FOUND")
    assert (stale.code, stale.reason, stale.field) == (ABORTED, "ETAG_MISMATCH", "etag")
    assert calls.send("OWNER", Get(id=made.id)).invitation == renewed
    assert calls.accept(made, generation=2).member.role == "VIEWER"


def test_another_role_ends_the_older_link(site: Site) -> None:
    """A new mail names the new role; the caller is the inviter now; the older secret no longer works; it is audited."""
    calls = PeopleCalls(site)
    (made,) = calls.invite("OWNER", ("ann@x.io", "VIEWER"))
    calls.deliver()
    change_rows(site, tables.invitations, made.id, expire_time=now() + 1_000_000_000)
    answer = calls.send("ADMIN", Update(invitation=Change(id=made.id, role="CONTRIBUTOR", etag=made.etag)))
    changed, entry = answer.invitation, last_entry(site)
    with nothing_written(site):
        older = calls.refused_unauthenticated(Accept(secret=calls.secret(made)))
        stale = calls.refused("OWNER", Update(invitation=Change(id=made.id, role="ADMIN", etag=made.etag)))
        again = calls.send("OWNER", Update(invitation=Change(id=made.id, role="CONTRIBUTOR", etag=changed.etag)))
    calls.deliver()
    mails = [file.read_text(encoding="utf-8").replace("=\n", "") for file in site.settings.mail_folder.glob("*.eml")]

    assert (changed.id, changed.email, changed.role, changed.state) == (made.id, made.email, "CONTRIBUTOR", PENDING)
    assert changed.creator == entry.actor == f"user:{site.members['ADMIN'].user_id}"
    assert (entry.action, entry.object) == ("UpdateInvitation", f"invitation:{made.id}")
    assert '"role":"VIEWER"' in entry.details.partition('"before"')[2]
    assert '"role":"CONTRIBUTOR"' in entry.details.partition('"before"')[0]
    assert abs(changed.expire_time.ToMicroseconds() - now() - WEEK) < 60_000_000
    assert changed.delivery == pb.DELIVERY_STATE_QUEUED
    assert (older.code, older.reason) == (NOT_FOUND, "INVITATION_NOT_FOUND")
    assert (stale.code, stale.reason, stale.field) == (ABORTED, "ETAG_MISMATCH", "invitation.etag")
    assert (again.invitation, again.revision) == (changed, answer.revision)
    assert sorted(("CONTRIBUTOR" in mail, calls.secret(made, 2) in mail) for mail in mails) == [
        (False, False),
        (True, True),
    ]
    assert calls.accept(made, generation=2).member.role == "CONTRIBUTOR"


def test_update_mask_names_the_fields_to_change(make_site: MakeSite, sqlite_url: str) -> None:
    """Without a mask, what is set is changed; `*` stands for all; a named field that is empty is cleared."""
    site = make_site(sqlite_url, limits=without_rates(QUICK_LIMITS))
    calls = PeopleCalls(site)
    invitee = pb.Invitee(email="ann@x.io", role="VIEWER", display_name="Ann", external_id="sub|1")
    (made,) = calls.send("OWNER", pb.CreateInvitationsRequest(invitations=[invitee])).invitations

    def updated(*paths: str, **values: str) -> tuple[str, str, str]:
        change_rows(site, tables.invitations, made.id, role="VIEWER", display_name="Ann", external_id="sub|1")
        request = Update(invitation=Change(id=made.id, **values), update_mask=FieldMask(paths=paths))  # type: ignore[arg-type]
        got = calls.send("OWNER", request).invitation
        return got.role, got.display_name, got.external_id

    assert updated(role="ADMIN") == ("ADMIN", "Ann", "sub|1")
    assert updated(display_name="Anna") == ("VIEWER", "Anna", "sub|1")
    assert updated("role", role="ADMIN", display_name="Anna", external_id="sub|2") == ("ADMIN", "Ann", "sub|1")
    assert updated("external_id", role="ADMIN", external_id="sub|2") == ("VIEWER", "Ann", "sub|2")
    assert updated("external_id", "display_name") == ("VIEWER", "", "")
    assert updated("*", role="ADMIN", display_name="Anna") == ("ADMIN", "Anna", "")


def test_invalid_updates_are_refused(sqlite_site: Site) -> None:
    """Each bad field, path or role is named by its path, and nothing is written."""
    calls = PeopleCalls(sqlite_site)
    (made,) = calls.invite("OWNER", ("ann@x.io", "VIEWER"))
    cases: list[tuple[pb.UpdateInvitationRequest, str, str]] = [
        (Update(), "invitation", "INVALID_FIELD"),
        (Update(invitation=Change(id=made.id)), "invitation", "INVALID_FIELD"),
        (Update(invitation=Change(role="ADMIN")), "invitation.id", "INVALID_FIELD"),
        (Update(invitation=Change(id=made.id, role="CHIEF")), "invitation.role", "UNKNOWN_ROLE_NAME"),
        (Update(invitation=Change(id=made.id, role="x" * 65)), "invitation.role", "INVALID_FIELD"),
        (Update(invitation=Change(id=made.id), update_mask=FieldMask(paths=["*"])), "invitation.role", "INVALID_FIELD"),
        (Update(invitation=Change(id=made.id, display_name=" ")), "invitation.display_name", "INVALID_FIELD"),
        (Update(invitation=Change(id=made.id, role="ADMIN"), request_id="1"), "request_id", "INVALID_FIELD"),
        *(
            (
                Update(invitation=Change(id=made.id, role="ADMIN"), update_mask=FieldMask(paths=["role", path])),
                "update_mask",
                "INVALID_FIELD",
            )
            for path in ("email", "state", "id", "etag", "invitation.role", "")
        ),
    ]
    with nothing_written(sqlite_site):
        for request, field, reason in cases:
            failure = calls.refused("OWNER", request)

            assert (failure.code, failure.reason, failure.field) == (INVALID, reason, field), request


def test_invitation_to_a_removed_role_can_be_changed(sqlite_site: Site) -> None:
    """The way out for an invitation whose role is gone: another role, by a caller who may `owners invite`."""
    calls = PeopleCalls(sqlite_site)
    (made,) = calls.invite("OWNER", ("ann@x.io", "VIEWER"))
    change_rows(sqlite_site, tables.invitations, made.id, role="GUIDE")
    named = Update(invitation=Change(id=made.id, display_name="Ann"))

    assert calls.refused("OWNER", named).reason == "UNKNOWN_ROLE_NAME"
    assert calls.send("OWNER", Update(invitation=Change(id=made.id, role="VIEWER"))).invitation.role == "VIEWER"


def test_updates_and_resends_are_limited_together(site: Site) -> None:
    """Updates send mails too: beyond three at once it is RATE_LIMITED; one that changes nothing is not."""
    calls = PeopleCalls(site)
    (made,) = calls.invite("OWNER", ("ann@x.io", "VIEWER"))
    calls.send("OWNER", Resend(id=made.id))
    for role in ("ADMIN", "VIEWER"):
        calls.send("OWNER", Update(invitation=Change(id=made.id, role=role)))
    with nothing_written(site):
        failure = calls.refused("ADMIN", Update(invitation=Change(id=made.id, role="CONTRIBUTOR")))
        same = calls.send("ADMIN", Update(invitation=Change(id=made.id, role="VIEWER")))

    assert failure.reason == "RATE_LIMITED"
    assert same.invitation.role == "VIEWER"
    assert calls.accept(made, generation=4).member.role == "VIEWER"


def test_resends_are_limited(site: Site) -> None:
    """Beyond three resendings at once it is RATE_LIMITED, with how long to wait, and the newest secret works on."""
    calls = PeopleCalls(site)
    made, other = calls.invite("OWNER", ("ann@x.io", "VIEWER"), ("bob@x.io", "VIEWER"))
    for _ in range(3):
        calls.send("OWNER", Resend(id=made.id))
    with nothing_written(site):
        failure = calls.refused("ADMIN", Resend(id=made.id))

    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert re.search(r"try again in \d\d s", failure.message)
    assert "one in 60 seconds" in failure.message
    assert calls.send("ADMIN", Resend(id=other.id)).invitation.id == other.id
    assert calls.accept(made, generation=4).member.email == "ann@x.io"


def test_only_the_newest_queued_mail_is_sent(site: Site) -> None:
    """The mail of a secret that is replaced, or whose invitation is deleted, isn't sent."""
    calls = PeopleCalls(site)
    kept, gone = calls.invite("OWNER", ("ann@x.io", "VIEWER"), ("bob@x.io", "VIEWER"))
    calls.send("OWNER", Resend(id=kept.id))
    calls.send("OWNER", Delete(id=gone.id))
    calls.deliver()
    (file,) = site.settings.mail_folder.glob("*.eml")
    text = file.read_text(encoding="utf-8").replace("=\n", "")

    assert calls.secret(kept, 2) in text
    assert calls.secret(kept) not in text


def test_deleted_invitation_stays_deleted(site: Site) -> None:
    """A deleted invitation: its link is invalid, a second delete does nothing, a resend fails, the address is free."""
    calls = PeopleCalls(site)
    (made,) = calls.invite("OWNER", ("ann@x.io", "VIEWER"))
    assert calls.refused("ADMIN", Delete(id=made.id, etag="0")).reason == "ETAG_MISMATCH"
    answer = calls.send("ADMIN", Delete(id=made.id, etag=made.etag))
    entry = last_entry(site)
    with nothing_written(site):
        again = calls.send("OWNER", Delete(id=made.id, etag=made.etag))
        resent = calls.refused("OWNER", Resend(id=made.id))
        assert calls.refused_unauthenticated(Accept(secret=calls.secret(made))).reason == "INVITATION_NOT_FOUND"

    (late,) = calls.invite("OWNER", ("late@x.io", "VIEWER"))
    change_rows(site, tables.invitations, late.id, expire_time=now())

    assert answer.invitation.state == DELETED
    assert calls.send("OWNER", Delete(id=late.id)).invitation.state == DELETED
    assert (entry.action, entry.object) == ("DeleteInvitation", f"invitation:{made.id}")
    assert answer.invitation.etag != made.etag
    assert (again.invitation, again.revision) == (answer.invitation, answer.revision)
    updated = calls.refused("OWNER", Update(invitation=Change(id=made.id, role="ADMIN")))
    assert (updated.code, updated.reason, updated.field) == (NOT_FOUND, "INVITATION_NOT_FOUND", "invitation.id")
    assert (resent.code, resent.reason, resent.field) == (NOT_FOUND, "INVITATION_NOT_FOUND", "id")
    assert "create another one for the address" in resent.message
    assert calls.invite("OWNER", ("Ann@x.io", "ADMIN"))[0].id != made.id


def test_accepted_invitation_cannot_be_changed(site: Site) -> None:
    """FAILED_PRECONDITION INVITATION_ACCEPTED says how to undo it, whether or not the member is still there."""
    calls = PeopleCalls(site)
    (made,) = calls.invite("OWNER", ("ann@x.io", "VIEWER"))
    calls.accept(made)
    with nothing_written(site):
        for request in (Resend(id=made.id), Delete(id=made.id), Resend(id=made.id, etag=made.etag)):
            failure = calls.refused("ADMIN", request)

            assert (failure.code, failure.reason, failure.field) == (UNMET, "INVITATION_ACCEPTED", "id")
            assert failure.unmet == (("INVITATION_ACCEPTED", f"invitation:{made.id}", failure.message),)
            assert "use RemoveMember to undo it" in failure.message
        updated = calls.refused("ADMIN", Update(invitation=Change(id=made.id, role="ADMIN")))
        assert (updated.code, updated.reason, updated.field) == (UNMET, "INVITATION_ACCEPTED", "invitation.id")


def test_a_missing_and_a_foreign_invitation_look_the_same(sqlite_site: Site) -> None:
    """NOT_FOUND with one text but for the id; an id that can't be one isn't repeated."""
    calls = PeopleCalls(sqlite_site)
    other = found_other(sqlite_site)
    foreign = calls.send(other, inviting(("ann@x.io", "VIEWER"))).invitations[0]
    missing = token_format.new_id()
    secret = calls.secret(foreign)
    with nothing_written(sqlite_site):
        for kind in (Get, Resend, Delete):
            told_of = [calls.refused("OWNER", kind(id=one)) for one in (foreign.id, missing)]
            for failure, one in zip(told_of, (foreign.id, missing), strict=True):
                assert (failure.code, failure.reason, failure.field) == (NOT_FOUND, "INVITATION_NOT_FOUND", "id")
                assert failure.message.count(one) == 1
                assert "ListInvitations" in failure.message
            assert told_of[0].message.replace(foreign.id, missing) == told_of[1].message
            for wrong in ("", secret, "a b", "x" * 65):
                failure = calls.refused("OWNER", kind(id=wrong))

                assert (failure.code, failure.reason, failure.field) == (INVALID, "INVALID_FIELD", "id")
                assert not wrong or wrong not in failure.message
    assert calls.send(other, Get(id=foreign.id)).invitation == foreign


# Who may


@pytest.mark.parametrize("caller", ROLES)
def test_invitations_follow_rule_1(sqlite_site: Site, caller: str) -> None:
    """Every role, new or there already, as an independent reading of the shipped policy's file says (rule 1)."""
    calls = PeopleCalls(sqlite_site)
    wrong = []
    for role in ROLES:
        (made,) = calls.invite("OWNER", (f"{role}@x.io", role))
        want = expected(caller, "invite", role)
        requests: list[Message] = [
            inviting(("new@x.io", role), validate_only=True),
            inviting((f"{role}.new@x.io", role)),
            Resend(id=made.id),
            Update(invitation=Change(id=made.id, display_name="New")),
            Delete(id=made.id),
        ]
        wrong += [(role, request, got) for request in requests if (got := outcome(calls, caller, request)) != want]

    assert wrong == []


def test_admin_manages_no_invitation_to_an_owner_role(site: Site) -> None:
    """PERMISSION_DENIED ROLE_BEYOND_CALLER names the role, what it takes, and whom to ask; nothing is written."""
    calls = PeopleCalls(site)
    made, mild = calls.invite("OWNER", ("olga@x.io", "OWNER"), ("ann@x.io", "VIEWER"))
    requests: list[tuple[Message, str]] = [
        (inviting(("new@x.io", "OWNER")), "invitations[0].role"),
        (inviting(("ok@x.io", "VIEWER"), ("new@x.io", "OWNER")), "invitations[1].role"),
        (Resend(id=made.id), "id"),
        (Delete(id=made.id), "id"),
        (Resend(id=made.id, etag="stale"), "id"),
        (Update(invitation=Change(id=made.id, role="VIEWER")), "invitation.id"),
        (Update(invitation=Change(id=mild.id, role="OWNER")), "invitation.role"),
    ]
    with nothing_written(site):
        for request, field in requests:
            failure = calls.refused("ADMIN", request)

            assert (failure.code, failure.reason, failure.field) == (DENIED, "ROLE_BEYOND_CALLER", field)
            assert (failure.metadata["role"], failure.metadata["action"], failure.metadata["resource"]) == (
                "OWNER",
                "invite",
                "owners",
            )
            assert "ask somebody who may (OWNER)" in failure.message


def test_caller_who_may_not_invite_does_not_learn_who_is_a_member(site: Site) -> None:
    """A member's, an invited and a free address, an id that is there and one that isn't: the same refusal."""
    calls = PeopleCalls(site)
    (made,) = calls.invite("OWNER", ("live@x.io", "VIEWER"))
    only_tokens = put_credential(site, site.members["OWNER"].user_id, only=(("personal-tokens", "create"),))
    emails = ("ann@acme.io", "live@x.io", "free@x.io")
    requests: list[Message] = [
        *(inviting((email, "VIEWER")) for email in emails),
        *(inviting((email, "NOBODY")) for email in emails),
        *(inviting((email, "VIEWER"), validate_only=True) for email in emails),
        *(kind(id=one) for kind in (Resend, Delete, Get) for one in (made.id, token_format.new_id())),
        *(Update(invitation=Change(id=one, role="VIEWER")) for one in (made.id, token_format.new_id())),
    ]
    with nothing_written(site):
        for token in (*ROLES[2:], only_tokens):
            told_of = [calls.refused(token, request) for request in requests]

            assert {failure.code for failure in told_of} == {DENIED}
            assert len({failure.message for failure in told_of}) == 1, token
            assert all(failure.metadata.keys() == {"action", "resource", "call_id"} for failure in told_of)
            # Malformed fields are reported to any caller: that reveals nothing about members.
            assert calls.refused(token, inviting(("nobody", "VIEWER"))).code is INVALID


def test_programs_and_restricted_tokens_invite_to_roles_within_theirs(site: Site) -> None:
    """An organization's token by its own role; a restricted one to no role that may more than itself."""
    calls, owner = PeopleCalls(site), site.members["OWNER"].user_id
    program = calls.send("OWNER", tokens.CreateOrganizationTokenRequest(display_name="hr", role="ADMIN")).secret
    viewer = put_credential(site, None, kind=PROGRAM, role="VIEWER")
    narrow = put_credential(site, owner, only=(("members", "*"),))
    wide = put_credential(site, owner, only=(("*", "*"),))
    looking = (("members", "*"), ("policy", "view"), ("projects", "*"), ("parameters", "view"), ("templates", "view"))
    medium = put_credential(site, owner, only=looking)

    (made,) = calls.invite(program, ("a@x.io", "ADMIN"))
    assert made.creator == f"token:{id_of(program)}"
    assert calls.accept(made).member.role == "ADMIN"
    assert outcome(calls, program, inviting(("b@x.io", "OWNER"))) == "ROLE_BEYOND_CALLER"
    assert outcome(calls, viewer, inviting(("b@x.io", "VIEWER"))) == "PERMISSION_MISSING"
    assert outcome(calls, narrow, inviting(("b@x.io", "VIEWERNOSECRETS"))) == "ROLE_BEYOND_CALLER"
    assert outcome(calls, medium, inviting(("b@x.io", "VIEWERNOSECRETS"))) == "OK"
    assert outcome(calls, medium, inviting(("c@x.io", "VIEWER"))) == "ROLE_BEYOND_CALLER"
    assert outcome(calls, wide, inviting(("c@x.io", "OWNER"))) == "OK"


# Again


def test_a_repeated_request_has_one_effect(site: Site) -> None:
    """A repeated `request_id` and body gets the first answer, though the address is taken; another body is refused."""
    calls = PeopleCalls(site)
    key = str(uuid.uuid4())
    (made,) = calls.invite("OWNER", ("live@x.io", "VIEWER"))
    create = inviting(("ann@x.io", "VIEWER"), ("bob@x.io", "ADMIN"), request_id=key)
    update = Update(invitation=Change(id=made.id, role="ADMIN"), request_id=key)
    resend, delete = Resend(id=made.id, request_id=key), Delete(id=made.id, request_id=key)
    others: list[Message] = [
        inviting(("ann@x.io", "ADMIN"), request_id=key),
        inviting(("zoe@x.io", "VIEWER"), request_id=key),
        inviting(("zoe@x.io", "VIEWER"), request_id=key, validate_only=True),
        Update(invitation=Change(id=made.id, role="VIEWER"), request_id=key),
        Resend(id=made.id, etag=made.etag, request_id=key),
        Delete(id=made.id, etag="x", request_id=key),
    ]
    requests: list[Message] = [create, update, resend, delete]
    answers = []
    for request in requests:
        answers.append(calls.send("OWNER", request))
        with nothing_written(site):
            assert calls.send("OWNER", request) == answers[-1]
    with nothing_written(site):
        for request in others:
            failure = calls.refused("OWNER", request)

            assert (failure.code, failure.reason, failure.field) == (INVALID, "REQUEST_ID_REUSED", "request_id"), (
                request
            )


def test_repeated_request_is_refused_after_the_permission_was_lost(site: Site) -> None:
    """A repeated request is authorized again."""
    calls = PeopleCalls(site)
    request = inviting(("ann@x.io", "VIEWER"), request_id=str(uuid.uuid4()))
    calls.send("ADMIN", request)
    calls.send("OWNER", ChangeMemberRoleRequest(user_id=site.members["ADMIN"].user_id, role="VIEWER"))
    with nothing_written(site):
        assert calls.refused("ADMIN", request).reason == "PERMISSION_MISSING"
