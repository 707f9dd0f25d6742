"""AcceptInvitation over gRPC: who is let in, once, and what everybody else is told."""

import time
import zlib

import grpc
import pytest
from conftest import Site, add_member
from grpc_errors import Told
from people import Office, change_rows, inviting, last_entry
from test_invitations import EXISTS, TRAILERS, UNMET, Accept, Delete, Get, Resend, taken_by
from test_tokens import (
    INVALID,
    NOT_FOUND,
    OK,
    UNAUTHENTICATED,
    Desk,
    found_other,
    id_of,
    nothing_written,
    put_credential,
    until,
)

from rolecall import credentials
from rolecall.domain import LinkKind, now
from rolecall.storage import tables
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import invitation_pb2 as pb
from rolecall.v1 import member_pb2 as members
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as tokens

HOUR = 60 * 60 * 1_000_000
Change, Remove = members.ChangeMemberRoleRequest, members.RemoveMemberRequest
WhoAmI = session.WhoAmIRequest


def whole(text: str) -> str:
    """A credential's text with a checksum that is right for the rest."""
    number, digits = zlib.crc32(text[:-6].encode()), []
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits.append("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[digit])
    return text[:-6] + "".join(reversed(digits))


def flipped(text: str, place: int) -> str:
    """The text with another character at a place."""
    return text[:place] + ("x" if text[place] != "x" else "y") + text[place + 1 :]


def is_no_secret(said: Told) -> bool:
    """Whether it is the one answer to every secret that opens nothing."""
    advice = "sign in with RequestSignIn" in said.message and "newest mail" in said.message
    return advice and (said.code, said.reason, said.field) == (NOT_FOUND, "INVITATION_NOT_FOUND", "secret")


def test_whoever_has_the_secret_is_let_in(site: Site) -> None:
    """With no credential: a member with the invitation's role, and a session that works at once."""
    office, before = Office(site), now()
    office.invite("OWNER", ("other@x.io", "VIEWER"))
    (made,) = office.invite("ADMIN", ("Ann.B@x.io", "CONTRIBUTOR"))
    answer = office.accept(made)
    member, secret, entry = answer.member, answer.session.secret, last_entry(site)
    who = office.send(secret, WhoAmI())
    check = authorization.CheckRequest(
        subject=f"user:{member.user_id}", action="create", resource="projects", at_least_revision=answer.revision
    )

    assert (answer.organization, member.email, member.role) == ("acme", "Ann.B@x.io", "CONTRIBUTOR")
    assert member.display_name == "Ann.B"
    assert secret.startswith("rcs_")
    assert 12 * HOUR <= answer.session.expire_time.ToMicroseconds() - before < 12 * HOUR + 60_000_000
    assert (who.member, who.role, who.credential.id) == (member, "CONTRIBUTOR", id_of(secret))
    assert who.credential.expire_time == answer.session.expire_time
    assert answer.revision == who.organization.revision
    assert office.send(secret, check).decision == authorization.DECISION_ALLOW
    assert member in office.members("VIEWER")
    assert office.send("OWNER", Get(id=made.id)).invitation.state == pb.INVITATION_STATE_ACCEPTED
    # The secret works once; the session lives on.
    with nothing_written(site):
        assert is_no_secret(office.turned_away(Accept(secret=office.secret(made))))
    assert office.code(secret, WhoAmI()) is OK
    assert (entry.actor, entry.credential_id) == (f"user:{member.user_id}", id_of(secret))
    assert (entry.action, entry.object, entry.reason) == ("AcceptInvitation", f"invitation:{made.id}", "")
    assert "Ann" not in entry.details


def test_a_secret_that_opens_nothing_has_one_answer(site: Site) -> None:
    """Mistyped, forged, of another kind, superseded, withdrawn, used, to elsewhere: NOT_FOUND, unwritten."""
    office = Office(site)
    resent, gone, used, made = office.invite(
        "OWNER", ("a@x.io", "VIEWER"), ("b@x.io", "VIEWER"), ("c@x.io", "VIEWER"), ("d@x.io", "VIEWER")
    )
    office.send("OWNER", Resend(id=resent.id))
    office.send("OWNER", Delete(id=gone.id))
    office.accept(used)
    change_rows(site, tables.invitations, used.id, expire_time=now())
    link = office.ask("viewer@acme.io")
    secret = office.secret(made)
    wrong = [
        *("x", "rci_", "é" * 76, "\0", " " + secret, secret + " ", secret[:-1], secret + "0", secret * 50),
        *(flipped(secret, place) for place in (4, 30, 70, 74)),
        *(whole(flipped(secret, place)) for place in (4, 30, 68)),
        *(whole(kind + secret[3:]) for kind in ("rcp", "rcs", "rco")),
        *(office.secret(made, generation) for generation in (0, 2)),
        office.links.secret(LinkKind.INVITATION, credentials.new_id(), 1),
        site.tokens["OWNER"],
        *(office.secret(one) for one in (resent, gone, used)),
    ]
    assert whole(secret) == secret
    with nothing_written(site):
        other = office.turned_away(Accept(secret=link))
        said = [office.turned_away(Accept(secret=text)) for text in wrong]
        said += [office.turned_away(Accept(secret=secret, organization=name)) for name in ("other", "nowhere", "ACME")]
        empty = office.turned_away(Accept())

    assert all(is_no_secret(one) for one in said)
    assert len({one.message for one in said}) == 1
    assert {tuple(one.metadata) for one in said} == {("request_id",)}
    assert (empty.code, empty.reason, empty.field) == (INVALID, "INVALID_FIELD", "secret")
    assert (other.code, other.reason) == (NOT_FOUND, "INVITATION_NOT_FOUND")
    assert "use SignIn" in other.message
    assert office.knock(Accept(secret=secret, organization="acme")).member.email == "d@x.io"


def test_a_role_that_is_gone_is_nobodys_fault(sqlite_site: Site) -> None:
    """Its invitation is mailed to nobody once more, and whoever has its mail is told what to ask for."""
    site, office = sqlite_site, Office(sqlite_site)
    (made,) = office.invite("OWNER", ("ann@x.io", "VIEWER"))
    change_rows(site, tables.invitations, made.id, role="GUIDE")
    with nothing_written(site):
        resent = office.refused("OWNER", Resend(id=made.id))
        accepted = office.turned_away(Accept(secret=office.secret(made)))

    assert (resent.code, resent.reason) == (INVALID, "UNKNOWN_ROLE_NAME")
    assert (accepted.code, accepted.reason, accepted.field) == (UNMET, "INVITER_LOST_RIGHT", "secret")
    assert accepted.unmet == (("INVITER_LOST_RIGHT", f"invitation:{made.id}", accepted.message),)
    assert "no role GUIDE any more" in accepted.message
    assert office.send("OWNER", Delete(id=made.id)).invitation.role == "GUIDE"


def test_forged_secrets_hold_up_no_good_one(sqlite_site: Site) -> None:
    """Beyond the peer's limit they cost no look-up, and whoever comes through the same gateway is let in."""
    office = Office(sqlite_site)
    made, late = office.invite("OWNER", ("ann@x.io", "VIEWER"), ("bob@x.io", "VIEWER"))
    change_rows(sqlite_site, tables.invitations, late.id, generation=17)
    forged = [whole(flipped(office.secret(made), 30 + number % 20)) for number in range(300)]
    reasons = {office.turned_away(Accept(secret=text)).reason for text in forged}
    # So often is nobody's mail resent that it counts as one who may have forged it.
    said = office.turned_away(Accept(secret=office.secret(late, 17)))

    assert reasons == {"INVITATION_NOT_FOUND", "RATE_LIMITED"}
    assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert "try again in 1 s" in said.message
    assert office.accept(made).member.email == "ann@x.io"
    time.sleep(1.1)
    assert office.accept(late, generation=17).member.email == "bob@x.io"


def test_an_expired_invitation_is_over(site: Site) -> None:
    """Only whoever has its newest secret is told: FAILED_PRECONDITION INVITATION_EXPIRED."""
    office = Office(site)
    late, just = office.invite("OWNER", ("a@x.io", "VIEWER"), ("b@x.io", "VIEWER"))
    change_rows(site, tables.invitations, late.id, expire_time=now())
    change_rows(site, tables.invitations, just.id, expire_time=now() + 60_000_000)
    with nothing_written(site):
        said = office.turned_away(Accept(secret=office.secret(late)))
        assert is_no_secret(office.turned_away(Accept(secret=office.secret(late, 2))))

    assert (said.code, said.reason, said.field) == (UNMET, "INVITATION_EXPIRED", "secret")
    assert said.unmet == (("INVITATION_EXPIRED", f"invitation:{late.id}", said.message),)
    assert "ask whoever invited you for another one" in said.message
    assert office.accept(just).member.role == "VIEWER"


@pytest.mark.parametrize("how", ["removed", "demoted", "left", "program deleted", "program expired", "role beyond"])
def test_the_inviter_must_still_be_one_who_may(site: Site, how: str) -> None:
    """Else FAILED_PRECONDITION INVITER_LOST_RIGHT, until somebody who may sends it again."""
    office, admin = Office(site), site.members["ADMIN"].user_id
    inviter, role = "ADMIN", "CONTRIBUTOR"
    if how.startswith("program"):
        inviter = office.send("OWNER", tokens.CreateOrganizationTokenRequest(name="hr", role="ADMIN")).secret
    if how == "role beyond":
        inviter, role = office.join("olga@acme.io", "OWNER").session.secret, "OWNER"
    (made,) = office.invite(inviter, ("new@x.io", role))
    if how == "removed":
        office.send("OWNER", Remove(user_id=admin))
    elif how == "demoted":
        office.send("OWNER", Change(user_id=admin, role="CONTRIBUTOR"))
    elif how == "left":
        office.send("ADMIN", members.LeaveOrganizationRequest())
    elif how == "program deleted":
        office.send("OWNER", tokens.DeleteTokenRequest(id=id_of(inviter)))
    elif how == "program expired":
        change_rows(site, tables.credentials, id_of(inviter), expire_time=now())
    else:
        office.send("OWNER", Change(user_id=made.inviter.removeprefix("user:"), role="ADMIN"))
    with nothing_written(site):
        said = office.turned_away(Accept(secret=office.secret(made)))

    assert (said.code, said.reason, said.field) == (UNMET, "INVITER_LOST_RIGHT", "secret")
    assert said.unmet == (("INVITER_LOST_RIGHT", f"invitation:{made.id}", said.message),)
    assert "ask somebody of acme to send the invitation again" in said.message
    renewed = office.send("OWNER", Resend(id=made.id)).invitation
    assert renewed.inviter == f"user:{site.members['OWNER'].user_id}"
    assert is_no_secret(office.turned_away(Accept(secret=office.secret(made))))
    assert office.accept(made, generation=2).member.role == role


def test_the_inviter_may_have_lost_the_token_only(site: Site) -> None:
    """A person vouches for it, by whichever credential; what it was cut down to then still counts."""
    office, owner = Office(site), site.members["OWNER"].user_id
    wide = put_credential(site, owner, only=(("*", "*"),))
    (made,) = office.invite(wide, ("new@x.io", "ADMIN"))
    office.send("OWNER", tokens.DeleteTokenRequest(id=id_of(wide)))
    looking = (("members", "*"), ("policy", "view"), ("projects", "*"), ("parameters", "view"), ("templates", "view"))
    narrow = put_credential(site, owner, only=looking)
    (lower,) = office.invite(narrow, ("low@x.io", "VIEWERNOSECRETS"))
    # The role of the invitation is one that the restricted token could not have named.
    change_rows(site, tables.invitations, lower.id, role="VIEWER")

    assert office.accept(made).member.role == "ADMIN"
    assert office.turned_away(Accept(secret=office.secret(lower))).reason == "INVITER_LOST_RIGHT"


def test_a_member_needs_no_invitation(site: Site) -> None:
    """Whoever became one meanwhile is told to sign in; nothing is written."""
    office = Office(site)
    (made,) = office.invite("OWNER", ("new@x.io", "ADMIN"))
    add_member(site.storage, "acme", "New@x.io", "VIEWER")
    with nothing_written(site):
        said = office.turned_away(Accept(secret=office.secret(made)))

    assert (said.code, said.reason, said.field) == (EXISTS, "ALREADY_MEMBER", "secret")
    assert "sign in with RequestSignIn" in said.message


def test_a_secret_is_no_credential(sqlite_site: Site) -> None:
    """UNAUTHENTICATED as a bearer's, of either kind of mail; and a bearer's token beside a secret is ignored."""
    office = Office(sqlite_site)
    (made,) = office.invite("OWNER", ("a@x.io", "VIEWER"))
    link = office.ask("viewer@acme.io")
    with nothing_written(sqlite_site):
        for text in (office.secret(made), link):
            assert office.code(text, WhoAmI()) is UNAUTHENTICATED
            assert office.code(text, inviting(("b@x.io", "VIEWER"))) is UNAUTHENTICATED

    answer = office.send("VIEWER", Accept(secret=office.secret(made)))
    assert office.send(answer.session.secret, WhoAmI()).member.email == "a@x.io"


def test_a_name_to_show(sqlite_site: Site) -> None:
    """1 to 64 printable characters without blanks at the ends, whatever the letters; else the address up to its @."""
    office = Office(sqlite_site)
    local = "l" * 64
    good, default = office.invite("OWNER", ("a@x.io", "VIEWER"), (f"{local}@x.io", "VIEWER"))
    with nothing_written(sqlite_site):
        for name, advice in (
            (" ", "give 1 to 64"),
            ("x" * 65, "shorten it"),
            (" Ann", "remove it"),
            ("Ann ", "remove it"),
            ("An\nn", "remove it"),
            ("A\u202enn", "remove it"),
            ("A\x00", "remove it"),
            ("\u034f", "invisible one: remove it"),
            ("\u3164", "invisible one: remove it"),
            ("Ann\ufe0f", "invisible one: remove it"),
            ("\u0301", "shows nothing: give it a letter"),
        ):
            said = office.turned_away(Accept(secret=office.secret(good), display_name=name))

            assert (said.code, said.reason, said.field) == (INVALID, "INVALID_FIELD", "display_name"), name
            assert advice in said.message
            # A bad name is told of whether or not the secret is right.
            assert office.turned_away(Accept(secret="x", display_name=name)).message == said.message
        said = office.turned_away(Accept(secret=office.secret(good), organization="x" * 65))
        assert (said.code, said.field) == (INVALID, "organization")
        assert taken_by(said) < TRAILERS
    name = "Ånn-Søphie O'Hära 李 e\u0301 नि 🚀 " + "x" * 36

    assert office.knock(Accept(secret=office.secret(good), display_name=name)).member.display_name == name
    assert office.accept(default).member.display_name == local


def test_whoever_comes_back_is_somebody_else(site: Site) -> None:
    """Removed and invited again: another user, whose older tokens and sessions stay dead, as does the older link."""
    office = Office(site)
    first = office.join("ann@x.io", "ADMIN")
    token = office.send(first.session.secret, tokens.CreatePersonalTokenRequest(name="laptop")).secret
    link = office.ask("ann@x.io")
    office.deliver()
    office.send("OWNER", Remove(user_id=first.member.user_id))
    again = office.join("Ann@x.io", "OWNER")

    assert again.member.user_id != first.member.user_id
    for dead in (first.session.secret, token):
        assert office.code(dead, WhoAmI()) is UNAUTHENTICATED
    assert office.turned_away(session.SignInRequest(secret=link)).code is UNAUTHENTICATED
    assert office.send(again.session.secret, WhoAmI()).role == "OWNER"
    assert office.refused("OWNER", Change(user_id=first.member.user_id, role="ADMIN")).reason == "MEMBER_NOT_FOUND"


def test_the_same_person_in_two_organizations_is_two_users(site: Site) -> None:
    """An invitation leads to its own organization, and says so."""
    office = Office(site)
    other = found_other(site)
    (here,) = office.invite("OWNER", ("ann@x.io", "ADMIN"))
    (there,) = office.invite(other, ("ann@x.io", "VIEWER"))
    entered = office.accept(there), office.accept(here)

    assert [one.organization for one in entered] == ["other", "acme"]
    assert [office.send(one.session.secret, WhoAmI()).role for one in entered] == ["VIEWER", "ADMIN"]
    assert entered[0].member.user_id != entered[1].member.user_id
    assert office.refused(entered[0].session.secret, WhoAmI(organization="acme")).code is NOT_FOUND


def test_the_secret_comes_by_mail(sqlite_site: Site) -> None:
    """Sent by the server itself, to the address that was invited."""
    # An office would stop the sending.
    desk = Desk(sqlite_site)
    desk.send("OWNER", inviting(("Ann@x.io", "VIEWER")))
    folder = sqlite_site.settings.mail_folder
    file = until(lambda: next(iter(folder.glob("*.eml")), None))
    text = file.read_text(encoding="utf-8").replace("=\n", "")
    start = text.index("rci_")
    office = Office(sqlite_site)

    assert "To: Ann@x.io" in text
    assert office.knock(Accept(secret=text[start : start + 76])).member.email == "Ann@x.io"
