"""Invitations over gRPC that are there: resent, withdrawn, repeated; and who may handle which."""

import re
import uuid

import grpc
import pytest
from conftest import Site
from google.protobuf.message import Message
from people import Office, change_rows, expected, inviting, last_entry
from test_invitations import ABORTED, DELETED, PENDING, PROGRAM, UNMET, WEEK, Accept, Delete, Get, Resend
from test_members import outcome
from test_tokens import DENIED, INVALID, NOT_FOUND, ROLES, found_other, id_of, nothing_written, put_credential

from rolecall import credentials
from rolecall.domain import now
from rolecall.storage import tables
from rolecall.v1 import invitation_pb2 as pb
from rolecall.v1 import token_pb2 as tokens
from rolecall.v1.member_pb2 import ChangeMemberRoleRequest


def test_resending_kills_the_older_link(site: Site) -> None:
    """A new secret, a new expiry and etag; the caller vouches for it now; the older secret opens nothing."""
    office = Office(site)
    (made,) = office.invite("OWNER", ("ann@x.io", "VIEWER"))
    change_rows(site, tables.invitations, made.id, expire_time=now() + 1_000_000_000)
    answer = office.send("ADMIN", Resend(id=made.id, etag=made.etag))
    renewed, entry = answer.invitation, last_entry(site)
    with nothing_written(site):
        older = office.turned_away(Accept(secret=office.secret(made)))
        stale = office.refused("OWNER", Resend(id=made.id, etag=made.etag))

    assert (renewed.id, renewed.email, renewed.role, renewed.state) == (made.id, made.email, made.role, PENDING)
    assert renewed.inviter == entry.actor == f"user:{site.members['ADMIN'].user_id}"
    assert (entry.action, entry.object) == ("ResendInvitation", f"invitation:{made.id}")
    assert renewed.create_time == made.create_time
    assert abs(renewed.expire_time.ToMicroseconds() - now() - WEEK) < 60_000_000
    assert renewed.delivery == pb.DELIVERY_STATE_QUEUED
    assert (older.code, older.reason) == (NOT_FOUND, "INVITATION_NOT_FOUND")
    assert (stale.code, stale.reason, stale.field) == (ABORTED, "ETAG_MISMATCH", "etag")
    assert office.send("OWNER", Get(id=made.id)).invitation == renewed
    assert office.accept(made, generation=2).member.role == "VIEWER"


def test_nobodys_mailbox_is_flooded(site: Site) -> None:
    """Beyond three resendings at once it is RATE_LIMITED, with how long to wait, and the newest secret works on."""
    office = Office(site)
    made, other = office.invite("OWNER", ("ann@x.io", "VIEWER"), ("bob@x.io", "VIEWER"))
    for _ in range(3):
        office.send("OWNER", Resend(id=made.id))
    with nothing_written(site):
        said = office.refused("ADMIN", Resend(id=made.id))

    assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert re.search(r"try again in \d\d s", said.message)
    assert "one in 60 seconds" in said.message
    assert office.send("ADMIN", Resend(id=other.id)).invitation.id == other.id
    assert office.accept(made, generation=4).member.email == "ann@x.io"


def test_only_the_newest_of_queued_mails_leaves(site: Site) -> None:
    """The mail of a secret that is dead by then isn't sent, nor that of a withdrawn invitation."""
    office = Office(site)
    kept, gone = office.invite("OWNER", ("ann@x.io", "VIEWER"), ("bob@x.io", "VIEWER"))
    office.send("OWNER", Resend(id=kept.id))
    office.send("OWNER", Delete(id=gone.id))
    office.deliver()
    (file,) = site.settings.mail_folder.glob("*.eml")
    text = file.read_text(encoding="utf-8").replace("=\n", "")

    assert office.secret(kept, 2) in text
    assert office.secret(kept) not in text


def test_a_withdrawn_invitation_stays_so(site: Site) -> None:
    """Its link is dead, a second DeleteInvitation is harmless, ResendInvitation finds none, the address is free."""
    office = Office(site)
    (made,) = office.invite("OWNER", ("ann@x.io", "VIEWER"))
    assert office.refused("ADMIN", Delete(id=made.id, etag="0")).reason == "ETAG_MISMATCH"
    answer = office.send("ADMIN", Delete(id=made.id, etag=made.etag))
    entry = last_entry(site)
    with nothing_written(site):
        again = office.send("OWNER", Delete(id=made.id, etag=made.etag))
        resent = office.refused("OWNER", Resend(id=made.id))
        assert office.turned_away(Accept(secret=office.secret(made))).reason == "INVITATION_NOT_FOUND"

    (late,) = office.invite("OWNER", ("late@x.io", "VIEWER"))
    change_rows(site, tables.invitations, late.id, expire_time=now())

    assert answer.invitation.state == DELETED
    assert office.send("OWNER", Delete(id=late.id)).invitation.state == DELETED
    assert (entry.action, entry.object) == ("DeleteInvitation", f"invitation:{made.id}")
    assert answer.invitation.etag != made.etag
    assert (again.invitation, again.revision) == (answer.invitation, answer.revision)
    assert (resent.code, resent.reason, resent.field) == (NOT_FOUND, "INVITATION_NOT_FOUND", "id")
    assert "invite the address anew" in resent.message
    assert office.invite("OWNER", ("Ann@x.io", "ADMIN"))[0].id != made.id


def test_an_accepted_invitation_is_closed(site: Site) -> None:
    """FAILED_PRECONDITION INVITATION_ACCEPTED says how to undo it, whether or not the member is still there."""
    office = Office(site)
    (made,) = office.invite("OWNER", ("ann@x.io", "VIEWER"))
    office.accept(made)
    with nothing_written(site):
        for request in (Resend(id=made.id), Delete(id=made.id), Resend(id=made.id, etag=made.etag)):
            said = office.refused("ADMIN", request)

            assert (said.code, said.reason, said.field) == (UNMET, "INVITATION_ACCEPTED", "id")
            assert said.unmet == (("INVITATION_ACCEPTED", f"invitation:{made.id}", said.message),)
            assert "RemoveMember undoes it" in said.message


def test_a_missing_and_a_foreign_invitation_look_the_same(sqlite_site: Site) -> None:
    """NOT_FOUND with one text but for the id; an id that can't be one isn't repeated."""
    office = Office(sqlite_site)
    other = found_other(sqlite_site)
    foreign = office.send(other, inviting(("ann@x.io", "VIEWER"))).invitations[0]
    missing = credentials.new_id()
    secret = office.secret(foreign)
    with nothing_written(sqlite_site):
        for kind in (Get, Resend, Delete):
            told_of = [office.refused("OWNER", kind(id=one)) for one in (foreign.id, missing)]
            for said, one in zip(told_of, (foreign.id, missing), strict=True):
                assert (said.code, said.reason, said.field) == (NOT_FOUND, "INVITATION_NOT_FOUND", "id")
                assert said.message.count(one) == 1
                assert "ListInvitations" in said.message
            assert told_of[0].message.replace(foreign.id, missing) == told_of[1].message
            for wrong in ("", secret, "a b", "x" * 65):
                said = office.refused("OWNER", kind(id=wrong))

                assert (said.code, said.reason, said.field) == (INVALID, "INVALID_FIELD", "id")
                assert not wrong or wrong not in said.message
    assert office.send(other, Get(id=foreign.id)).invitation == foreign


# Who may


@pytest.mark.parametrize("caller", ROLES)
def test_who_invites_to_what(sqlite_site: Site, caller: str) -> None:
    """Every role, new or there already, as an independent reading of the shipped policy's file says (rule 1)."""
    office = Office(sqlite_site)
    wrong = []
    for role in ROLES:
        (made,) = office.invite("OWNER", (f"{role}@x.io", role))
        want = expected(caller, "invite", role)
        requests: list[Message] = [
            inviting(("new@x.io", role), validate_only=True),
            inviting((f"{role}.new@x.io", role)),
            Resend(id=made.id),
            Delete(id=made.id),
        ]
        wrong += [(role, request, got) for request in requests if (got := outcome(office, caller, request)) != want]

    assert wrong == []


def test_an_admin_handles_no_owners_invitation(site: Site) -> None:
    """PERMISSION_DENIED ROLE_BEYOND_CALLER names the role, what it takes, and whom to ask; nothing is written."""
    office = Office(site)
    (made,) = office.invite("OWNER", ("olga@x.io", "OWNER"))
    requests: list[tuple[Message, str]] = [
        (inviting(("new@x.io", "OWNER")), "invitations[0].role"),
        (inviting(("ok@x.io", "VIEWER"), ("new@x.io", "OWNER")), "invitations[1].role"),
        (Resend(id=made.id), "id"),
        (Delete(id=made.id), "id"),
        (Resend(id=made.id, etag="stale"), "id"),
    ]
    with nothing_written(site):
        for request, field in requests:
            said = office.refused("ADMIN", request)

            assert (said.code, said.reason, said.field) == (DENIED, "ROLE_BEYOND_CALLER", field)
            assert (said.metadata["role"], said.metadata["action"], said.metadata["resource"]) == (
                "OWNER",
                "invite",
                "owners",
            )
            assert "ask somebody who may (OWNER)" in said.message


def test_whoever_may_not_invite_learns_of_nobody(site: Site) -> None:
    """A member's, an invited and a free address, an id that is there and one that isn't: the same refusal."""
    office = Office(site)
    (made,) = office.invite("OWNER", ("live@x.io", "VIEWER"))
    only_tokens = put_credential(site, site.members["OWNER"].user_id, only=(("personal-tokens", "create"),))
    emails = ("ann@acme.io", "live@x.io", "free@x.io")
    requests: list[Message] = [
        *(inviting((email, "VIEWER")) for email in emails),
        *(inviting((email, "NOBODY")) for email in emails),
        *(inviting((email, "VIEWER"), validate_only=True) for email in emails),
        *(kind(id=one) for kind in (Resend, Delete, Get) for one in (made.id, credentials.new_id())),
    ]
    with nothing_written(site):
        for token in (*ROLES[2:], only_tokens):
            told_of = [office.refused(token, request) for request in requests]

            assert {said.code for said in told_of} == {DENIED}
            assert len({said.message for said in told_of}) == 1, token
            assert all(said.metadata.keys() == {"action", "resource", "request_id"} for said in told_of)
            # What is malformed is said to anybody: it tells nothing of who is there.
            assert office.refused(token, inviting(("nobody", "VIEWER"))).code is INVALID


def test_programs_and_restricted_tokens_invite_within_their_reach(site: Site) -> None:
    """An organization's token by its own role; a restricted one to no role that may more than itself."""
    office, owner = Office(site), site.members["OWNER"].user_id
    program = office.send("OWNER", tokens.CreateOrganizationTokenRequest(name="hr", role="ADMIN")).secret
    viewer = put_credential(site, None, kind=PROGRAM, role="VIEWER")
    narrow = put_credential(site, owner, only=(("members", "*"),))
    wide = put_credential(site, owner, only=(("*", "*"),))
    looking = (("members", "*"), ("policy", "view"), ("projects", "*"), ("parameters", "view"), ("templates", "view"))
    medium = put_credential(site, owner, only=looking)

    (made,) = office.invite(program, ("a@x.io", "ADMIN"))
    assert made.inviter == f"token:{id_of(program)}"
    assert office.accept(made).member.role == "ADMIN"
    assert outcome(office, program, inviting(("b@x.io", "OWNER"))) == "ROLE_BEYOND_CALLER"
    assert outcome(office, viewer, inviting(("b@x.io", "VIEWER"))) == "PERMISSION_MISSING"
    assert outcome(office, narrow, inviting(("b@x.io", "VIEWERNOSECRETS"))) == "ROLE_BEYOND_CALLER"
    assert outcome(office, medium, inviting(("b@x.io", "VIEWERNOSECRETS"))) == "OK"
    assert outcome(office, medium, inviting(("c@x.io", "VIEWER"))) == "ROLE_BEYOND_CALLER"
    assert outcome(office, wide, inviting(("c@x.io", "OWNER"))) == "OK"


# Again


def test_a_repeated_request_has_one_effect(site: Site) -> None:
    """The same `request_id` and body: the same answer, though the address is taken by then; another body is refused."""
    office = Office(site)
    key = str(uuid.uuid4())
    (made,) = office.invite("OWNER", ("live@x.io", "VIEWER"))
    create = inviting(("ann@x.io", "VIEWER"), ("bob@x.io", "ADMIN"), request_id=key)
    resend, delete = Resend(id=made.id, request_id=key), Delete(id=made.id, request_id=key)
    others: list[Message] = [
        inviting(("ann@x.io", "ADMIN"), request_id=key),
        inviting(("zoe@x.io", "VIEWER"), request_id=key),
        inviting(("zoe@x.io", "VIEWER"), request_id=key, validate_only=True),
        Resend(id=made.id, etag=made.etag, request_id=key),
        Delete(id=made.id, etag="x", request_id=key),
    ]
    requests: list[Message] = [create, resend, delete]
    answers = []
    for request in requests:
        answers.append(office.send("OWNER", request))
        with nothing_written(site):
            assert office.send("OWNER", request) == answers[-1]
    with nothing_written(site):
        for request in others:
            said = office.refused("OWNER", request)

            assert (said.code, said.reason, said.field) == (INVALID, "REQUEST_ID_REUSED", "request_id"), request


def test_who_lost_the_right_gets_no_repeated_answer(site: Site) -> None:
    """A repetition is authorized anew."""
    office = Office(site)
    request = inviting(("ann@x.io", "VIEWER"), request_id=str(uuid.uuid4()))
    office.send("ADMIN", request)
    office.send("OWNER", ChangeMemberRoleRequest(user_id=site.members["ADMIN"].user_id, role="VIEWER"))
    with nothing_written(site):
        assert office.refused("ADMIN", request).reason == "PERMISSION_MISSING"
