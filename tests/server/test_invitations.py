"""CreateInvitations over gRPC: batches, permissions, and refused requests."""

import uuid
from typing import Any

import pytest

from rolecall.domain import now
from rolecall.storage import tables
from rolecall.v1 import invitation_pb2 as pb
from rolecall.v1 import session_pb2 as session
from support.credentials import found_other
from support.invitation_requests import PENDING, WEEK, Accept, Get, Resend
from support.people import PeopleCalls, change_rows, inviting, last_entry
from support.roles import ROLES
from support.rows import nothing_written, rows_of
from support.server_calls import DENIED, EXISTS, INVALID, TRAILERS, UNMET, trailer_bytes
from support.sites import Site

# Making them


def test_created_invitation_has_all_fields(site: Site) -> None:
    """The answer has all fields but the secret; a mail is queued; the batch has one revision and one audit entry."""
    calls, before = PeopleCalls(site), now()
    answer = calls.send("ADMIN", inviting(("Ann.B@X.io", "VIEWER"), ("bob@x.io", "ADMIN")))
    first, second = answer.invitations
    entry = last_entry(site)
    mails = rows_of(site.storage)["mails"]
    calls.deliver()
    sent = calls.send("ADMIN", Get(id=first.id)).invitation

    assert (first.email.lower(), first.role, second.email, second.role) == ("ann.b@x.io", "VIEWER", "bob@x.io", "ADMIN")
    assert first.email.startswith("Ann.B@")
    assert first.creator == entry.actor == f"user:{site.members['ADMIN'].user_id}"
    assert first.state == PENDING
    assert before <= first.create_time.ToMicroseconds() <= now()
    assert first.expire_time.ToMicroseconds() - first.create_time.ToMicroseconds() == WEEK
    assert (first.delivery, sent.delivery) == (pb.DELIVERY_STATE_QUEUED, pb.DELIVERY_STATE_SENT)
    assert (sent.etag, sent.id) == (first.etag, first.id)
    assert (entry.action, entry.object) == ("CreateInvitations", "organization:acme")
    assert len(mails) == 2
    assert answer.revision == calls.send("OWNER", session.WhoAmIRequest()).organization.revision
    texts = "".join(path.read_text(encoding="utf-8") for path in site.settings.mail_folder.glob("*.eml"))
    written = repr(rows_of(site.storage))
    for made in (first, second):
        assert calls.secret(made) in texts.replace("=\n", "")
        assert calls.secret(made).split("_")[2] not in written + str(answer)


def test_two_hundred_are_invited_at_once(site: Site) -> None:
    """Two hundred are invited in the order of the request; 0 and 201 are refused, with the numbers in the error."""
    calls = PeopleCalls(site)
    people = [(f"p{number}@x.io", ROLES[number % 5]) for number in range(201)]
    made = calls.invite("OWNER", *people[:200])
    with nothing_written(site):
        for batch in ([], people):
            failure = calls.refused("OWNER", inviting(*batch))

            assert (failure.code, failure.reason, failure.field) == (INVALID, "BATCH_SIZE", "invitations")
            assert (failure.metadata["size"], failure.metadata["maximum"]) == (str(len(batch)), "200")
            assert "it must have 1 to 200" in failure.message

    assert [(one.email, one.role) for one in made] == people[:200]
    assert len({one.id for one in made}) == len({calls.secret(one) for one in made}) == 200
    assert calls.invite("OWNER", people[200])[0].email == "p200@x.io"


def test_all_invalid_entries_are_named(site: Site) -> None:
    """All faults are named by index and field, in order; the most important decides the status; nothing is created."""
    calls = PeopleCalls(site)
    calls.invite("OWNER", ("live@x.io", "VIEWER"))
    found_other(site)
    people = [
        ("nobody", "VIEWER"),
        ("a@x.io,b@y.io", "VIEWER"),
        ("", ""),
        ("x" * 248 + "@y.i.oo", "VIEWER"),
        ("a\r\nBcc: b@x.io", "VIEWER"),
        ("\u212aelvin@x.io", "VIEWER"),
        ("\u0430nn@x.io", "VIEWER"),
        ("fine@x.io", "CHIEF"),
        ("good@x.io", "OWNER"),
        ("once@x.io", "VIEWER"),
        ("ONCE@X.IO", "VIEWER"),
        ("LIVE@x.io", "VIEWER"),
        ("Viewer@ACME.io", "VIEWER"),
        ("ok@x.io", "ADMIN"),
        ("bad@", "x" * 65),
    ]
    bad = [(index, "email", "INVALID_FIELD") for index in range(7)]
    bad.insert(2, (2, "role", "INVALID_FIELD"))
    bad += [
        (7, "role", "UNKNOWN_ROLE_NAME"),
        (8, "role", "ROLE_BEYOND_CALLER"),
        (10, "email", "DUPLICATE_INVITATION"),
        (11, "email", "DUPLICATE_INVITATION"),
        (12, "email", "ALREADY_MEMBER"),
        (14, "role", "INVALID_FIELD"),
        (14, "email", "INVALID_FIELD"),
    ]
    with nothing_written(site):
        violations = calls.violations("ADMIN", inviting(*people))
        failure = calls.refused("ADMIN", inviting(*people))
        checked = calls.violations("ADMIN", inviting(*people, validate_only=True))

    assert [fault[:2] for fault in violations] == [(f"invitations[{index}].{leaf}", why) for index, leaf, why in bad]
    assert checked == violations
    assert (failure.code, failure.reason, failure.field) == (INVALID, "INVALID_FIELD", "invitations[0].email")
    assert failure.message.endswith("(14 more: see the details.)")
    told_of = {field: description for field, _, description in violations}
    assert "choose one of" in told_of["invitations[7].role"]
    assert "choose another role" in told_of["invitations[8].role"]
    assert "same address as that of invitations[9]" in told_of["invitations[10].email"]
    assert "ResendInvitation" in told_of["invitations[11].email"]
    assert "ChangeMemberRole" in told_of["invitations[12].email"]


@pytest.mark.parametrize(
    ("email", "code", "reason", "advice"),
    [
        ("viewer@acme.io", EXISTS, "ALREADY_MEMBER", "ChangeMemberRole gives another role"),
        ("live@x.io", EXISTS, "DUPLICATE_INVITATION", "ResendInvitation sends the mail again"),
    ],
)
def test_existing_member_or_invitation_fails_the_batch(
    site: Site, email: str, code: Any, reason: str, advice: str
) -> None:
    """A batch is all or nothing: ALREADY_EXISTS names the field and the id of the existing one."""
    calls = PeopleCalls(site)
    (live,) = calls.invite("OWNER", ("live@x.io", "VIEWER"))
    with nothing_written(site):
        failure = calls.refused("OWNER", inviting(("new@x.io", "VIEWER"), (email, "VIEWER"), ("newer@x.io", "VIEWER")))

    assert (failure.code, failure.reason, failure.field) == (code, reason, "invitations[1].email")
    assert advice in failure.message
    there = failure.metadata.get("id") or failure.metadata.get("user_id")
    assert there == (live.id if reason == "DUPLICATE_INVITATION" else site.members["VIEWER"].user_id)
    assert calls.invite("OWNER", ("new@x.io", "VIEWER"))


# Entries with the longest possible errors: these repeat or name each refused character.
_UNSAFE = [*range(0xE0020, 0xE0080), *range(0x1D173, 0x1D17B), *range(0xE000, 0xE080)]
WORST = {
    "short": ("nobody", "VIEWER"),
    "beyond": ("p%d@x.io", "OWNER"),
    "both": ("nobody", ""),
    "unknown": ("p%d@x.io", "\U0001f600" * 64),
    "the same": ("a" * 60 + "@" + "b" * 60 + "." + "c" * 60 + "." + "d" * 60 + ".io", "OWNER"),
    "emoji": ("a@" + "\U0001f600\U0001f601\U0001f602" * 80 + ".io", "OWNER"),
    "letters": ("".join(chr(0x1D400 + number) for number in range(60)) + "@x.io", "OWNER"),
    "private": ("a@" + "".join(chr(0xE000 + number) for number in range(245)) + ".io", "OWNER"),
    "unsafe": ("a@" + "".join(map(chr, _UNSAFE)) + ".io", "OWNER"),
}


@pytest.mark.parametrize("kind", WORST)
def test_two_hundred_bad_entries_are_all_named(sqlite_site: Site, kind: str) -> None:
    """An error about two hundred bad entries fits into the trailers that any client takes."""
    calls = PeopleCalls(sqlite_site)
    email, role = WORST[kind]
    people = [(email % number if "%d" in email else email, role) for number in range(200)]
    request = inviting(*people)
    with nothing_written(sqlite_site):
        failure = calls.refused("ADMIN", request)
    assert failure.code in {INVALID, DENIED}, failure.message
    named = {number for field, _, _ in calls.violations("ADMIN", request) for number in _numbers(field)}

    assert named == set(range(200))
    assert failure.metadata["call_id"]
    assert trailer_bytes(failure) < TRAILERS


def _numbers(field: str) -> list[int]:
    """Return the indexes of the entries in a violation's field."""
    return [int(number) for number in field.partition("[")[2].partition("]")[0].split(",")]


def test_error_of_a_bad_address_is_short(sqlite_site: Site) -> None:
    """One alone, in a batch or to sign in, fits too, and its field is named."""
    calls = PeopleCalls(sqlite_site)
    for email, _ in list(WORST.values())[-4:]:
        asked = calls.refused_unauthenticated(session.RequestSignInRequest(organization="acme", email=email))
        invited = calls.refused("OWNER", inviting((email, "VIEWER")))

        assert (asked.code, asked.reason, asked.field) == (INVALID, "INVALID_FIELD", "email")
        assert (invited.code, invited.reason, invited.field) == (INVALID, "INVALID_FIELD", "invitations[0].email")
        assert max(trailer_bytes(asked), trailer_bytes(invited)) < TRAILERS


def test_validate_only_changes_nothing(site: Site) -> None:
    """Validation leaves no row, revision, audit entry or mail; the answer is what would be made, without ids."""
    calls = PeopleCalls(site)
    people = (("Ann@x.io", "VIEWER"), ("bob@x.io", "OWNER"))
    with nothing_written(site):
        answer = calls.send("OWNER", inviting(*people, validate_only=True, request_id=str(uuid.uuid4())))

    assert [(one.email, one.role, one.id, one.state) for one in answer.invitations] == [
        (email, role, "", PENDING) for email, role in people
    ]
    assert answer.invitations[0].delivery == pb.DELIVERY_STATE_UNSPECIFIED
    assert answer.revision == calls.send("OWNER", session.WhoAmIRequest()).organization.revision
    assert len(calls.invite("OWNER", *people)) == 2


def test_an_expired_invitation_delays_no_other(site: Site) -> None:
    """The address is invited again; the older invitation stays expired: neither its link nor ResendInvitation works."""
    calls = PeopleCalls(site)
    (old,) = calls.invite("OWNER", ("ann@x.io", "VIEWER"))
    change_rows(site, tables.invitations, old.id, expire_time=now())
    with nothing_written(site):
        failure = calls.refused("OWNER", Resend(id=old.id))
        assert (failure.code, failure.reason, failure.field) == (UNMET, "INVITATION_EXPIRED", "id")
        assert failure.unmet == (("INVITATION_EXPIRED", f"invitation:{old.id}", failure.message),)
        assert "create another one for the address" in failure.message
    (new,) = calls.invite("ADMIN", ("ANN@x.io", "CONTRIBUTOR"))
    with nothing_written(site):
        assert calls.refused("OWNER", Resend(id=old.id)).reason == "INVITATION_EXPIRED"
        assert calls.refused_unauthenticated(Accept(secret=calls.secret(old))).reason == "INVITATION_EXPIRED"
        assert calls.refused("OWNER", inviting(("ann@x.io", "VIEWER"))).reason == "DUPLICATE_INVITATION"

    assert calls.send("OWNER", Get(id=old.id)).invitation.state == pb.INVITATION_STATE_EXPIRED
    assert calls.accept(new).member.role == "CONTRIBUTOR"
