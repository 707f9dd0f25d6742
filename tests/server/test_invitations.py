"""Invitations over gRPC: made for many at once or for nobody, resent, withdrawn; who may, and what is refused."""

import uuid
from typing import Any

import grpc
import pytest
from conftest import Site
from grpc_errors import Told
from people import Office, change_rows, inviting, last_entry
from test_tokens import (
    DENIED,
    INVALID,
    ROLES,
    found_other,
    nothing_written,
    rows_of,
)

from rolecall.domain import CredentialKind, now
from rolecall.storage import tables
from rolecall.v1 import invitation_pb2 as pb
from rolecall.v1 import session_pb2 as session

MINUTE = 60_000_000
WEEK = 7 * 24 * 60 * MINUTE
# The trailers that a client takes by default: 8 KB, each header with 32 bytes more than its text.
TRAILERS = 8192
UNMET = grpc.StatusCode.FAILED_PRECONDITION
ABORTED = grpc.StatusCode.ABORTED
EXISTS = grpc.StatusCode.ALREADY_EXISTS
PROGRAM = CredentialKind.ORGANIZATION
PENDING, DELETED = pb.INVITATION_STATE_PENDING, pb.INVITATION_STATE_DELETED
Resend, Delete, Get = pb.ResendInvitationRequest, pb.DeleteInvitationRequest, pb.GetInvitationRequest
Accept = pb.AcceptInvitationRequest


# Making them


def test_an_invitation_is_answered_whole(site: Site) -> None:
    """All fields but the secret; a mail is queued; one revision and one audit entry for the whole batch."""
    office, before = Office(site), now()
    answer = office.send("ADMIN", inviting(("Ann.B@X.io", "VIEWER"), ("bob@x.io", "ADMIN")))
    first, second = answer.invitations
    entry = last_entry(site)
    mails = rows_of(site.storage)["mails"]
    office.deliver()
    sent = office.send("ADMIN", Get(id=first.id)).invitation

    assert (first.email.lower(), first.role, second.email, second.role) == ("ann.b@x.io", "VIEWER", "bob@x.io", "ADMIN")
    assert first.email.startswith("Ann.B@")
    assert first.inviter == entry.actor == f"user:{site.members['ADMIN'].user_id}"
    assert first.state == PENDING
    assert before <= first.create_time.ToMicroseconds() <= now()
    assert first.expire_time.ToMicroseconds() - first.create_time.ToMicroseconds() == WEEK
    assert (first.delivery, sent.delivery) == (pb.DELIVERY_STATE_QUEUED, pb.DELIVERY_STATE_SENT)
    assert (sent.etag, sent.id) == (first.etag, first.id)
    assert (entry.action, entry.object) == ("CreateInvitations", "organization:acme")
    assert len(mails) == 2
    assert answer.revision == office.send("OWNER", session.WhoAmIRequest()).organization.revision
    texts = "".join(path.read_text(encoding="utf-8") for path in site.settings.mail_folder.glob("*.eml"))
    written = repr(rows_of(site.storage))
    for made in (first, second):
        assert office.secret(made) in texts.replace("=\n", "")
        assert office.secret(made).split("_")[2] not in written + str(answer)


def test_two_hundred_are_invited_at_once(site: Site) -> None:
    """In the order of the request; nobody and 201 are refused, with the numbers in the error."""
    office = Office(site)
    people = [(f"p{number}@x.io", ROLES[number % 5]) for number in range(201)]
    made = office.invite("OWNER", *people[:200])
    with nothing_written(site):
        for batch in ([], people):
            said = office.refused("OWNER", inviting(*batch))

            assert (said.code, said.reason, said.field) == (INVALID, "BATCH_SIZE", "invitations")
            assert (said.metadata["size"], said.metadata["maximum"]) == (str(len(batch)), "200")
            assert "it must have 1 to 200" in said.message

    assert [(one.email, one.role) for one in made] == people[:200]
    assert len({one.id for one in made}) == len({office.secret(one) for one in made}) == 200
    assert office.invite("OWNER", people[200])[0].email == "p200@x.io"


def test_everything_bad_is_named_at_once(site: Site) -> None:
    """By index and field, in the order of the request; the gravest decides the status; nothing is made."""
    office = Office(site)
    office.invite("OWNER", ("live@x.io", "VIEWER"))
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
        faults = office.faults("ADMIN", inviting(*people))
        said = office.refused("ADMIN", inviting(*people))
        checked = office.faults("ADMIN", inviting(*people, validate_only=True))

    assert [fault[:2] for fault in faults] == [(f"invitations[{index}].{leaf}", why) for index, leaf, why in bad]
    assert checked == faults
    assert (said.code, said.reason, said.field) == (INVALID, "INVALID_FIELD", "invitations[0].email")
    assert said.message.endswith("(14 more: see the details.)")
    told_of = {field: description for field, _, description in faults}
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
def test_one_that_is_there_spoils_the_batch(site: Site, email: str, code: Any, reason: str, advice: str) -> None:
    """All or nothing: ALREADY_EXISTS names whom, by the field, and the id of what is there."""
    office = Office(site)
    (live,) = office.invite("OWNER", ("live@x.io", "VIEWER"))
    with nothing_written(site):
        said = office.refused("OWNER", inviting(("new@x.io", "VIEWER"), (email, "VIEWER"), ("newer@x.io", "VIEWER")))

    assert (said.code, said.reason, said.field) == (code, reason, "invitations[1].email")
    assert advice in said.message
    there = said.metadata.get("id") or said.metadata.get("user_id")
    assert there == (live.id if reason == "DUPLICATE_INVITATION" else site.members["VIEWER"].user_id)
    assert office.invite("OWNER", ("new@x.io", "VIEWER"))


# What stands for entries that are bad in as many words as can be: letters that are refused are repeated, or named.
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
    """However long what is said of each, the error fits into the trailers that any client takes."""
    office = Office(sqlite_site)
    email, role = WORST[kind]
    people = [(email % number if "%d" in email else email, role) for number in range(200)]
    request = inviting(*people)
    with nothing_written(sqlite_site):
        said = office.refused("ADMIN", request)
    assert said.code in {INVALID, DENIED}, said.message
    named = {number for field, _, _ in office.faults("ADMIN", request) for number in _numbers(field)}

    assert named == set(range(200))
    assert said.metadata["request_id"]
    assert taken_by(said) < TRAILERS


def _numbers(field: str) -> list[int]:
    """The entries that a violation speaks of."""
    return [int(number) for number in field.partition("[")[2].partition("]")[0].split(",")]


def taken_by(said: Told) -> int:
    """How many bytes the trailers take, as HTTP/2 counts them."""
    headers = {"grpc-status": "16", "grpc-message": said.message, **said.trailers}
    return sum(32 + len(key) + _on_the_wire(value) for key, value in headers.items())


def _on_the_wire(value: str | bytes) -> int:
    """How many bytes a value takes: what is binary goes as base64, what isn't ASCII in per cent."""
    if isinstance(value, bytes):
        return -(-len(value) * 4 // 3)
    return sum(1 if " " <= letter <= "~" else 3 * len(letter.encode()) for letter in value)


def test_one_bad_address_is_refused_in_few_words(sqlite_site: Site) -> None:
    """One alone, in a batch or to sign in, fits too, and its field is named."""
    office = Office(sqlite_site)
    for email, _ in list(WORST.values())[-4:]:
        asked = office.turned_away(session.RequestSignInRequest(organization="acme", email=email))
        invited = office.refused("OWNER", inviting((email, "VIEWER")))

        assert (asked.code, asked.reason, asked.field) == (INVALID, "INVALID_FIELD", "email")
        assert (invited.code, invited.reason, invited.field) == (INVALID, "INVALID_FIELD", "invitations[0].email")
        assert max(taken_by(asked), taken_by(invited)) < TRAILERS


def test_to_validate_does_nothing(site: Site) -> None:
    """No row, revision, audit entry or mail; the answer is what would be made, without ids."""
    office = Office(site)
    people = (("Ann@x.io", "VIEWER"), ("bob@x.io", "OWNER"))
    with nothing_written(site):
        answer = office.send("OWNER", inviting(*people, validate_only=True, request_id=str(uuid.uuid4())))

    assert [(one.email, one.role, one.id, one.state) for one in answer.invitations] == [
        (email, role, "", PENDING) for email, role in people
    ]
    assert answer.invitations[0].delivery == pb.DELIVERY_STATE_UNSPECIFIED
    assert answer.revision == office.send("OWNER", session.WhoAmIRequest()).organization.revision
    assert len(office.invite("OWNER", *people)) == 2


def test_an_expired_invitation_is_in_nobodys_way(site: Site) -> None:
    """The address is invited anew; the older one stays expired, and neither its link nor ResendInvitation wakes it."""
    office = Office(site)
    (old,) = office.invite("OWNER", ("ann@x.io", "VIEWER"))
    change_rows(site, tables.invitations, old.id, expire_time=now())
    with nothing_written(site):
        said = office.refused("OWNER", Resend(id=old.id))
        assert (said.code, said.reason, said.field) == (UNMET, "INVITATION_EXPIRED", "id")
        assert said.unmet == (("INVITATION_EXPIRED", f"invitation:{old.id}", said.message),)
        assert "invite the address anew" in said.message
    (new,) = office.invite("ADMIN", ("ANN@x.io", "CONTRIBUTOR"))
    with nothing_written(site):
        assert office.refused("OWNER", Resend(id=old.id)).reason == "INVITATION_EXPIRED"
        assert office.turned_away(Accept(secret=office.secret(old))).reason == "INVITATION_EXPIRED"
        assert office.refused("OWNER", inviting(("ann@x.io", "VIEWER"))).reason == "DUPLICATE_INVITATION"

    assert office.send("OWNER", Get(id=old.id)).invitation.state == pb.INVITATION_STATE_EXPIRED
    assert office.accept(new).member.role == "CONTRIBUTOR"
