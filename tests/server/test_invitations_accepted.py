"""AcceptInvitation over gRPC: whom it accepts, once, and the errors of all others."""

import time

import grpc
import pytest

from rolecall.credentials import token_format
from rolecall.domain import LinkKind, now
from rolecall.storage import tables
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import invitation_pb2 as pb
from rolecall.v1 import member_pb2 as members
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as tokens
from support.credentials import found_other, id_of, put_credential
from support.forged_secrets import with_changed_character, with_checksum
from support.invitation_requests import Accept, Delete, Get, Resend
from support.people import PeopleCalls, change_rows, inviting, last_entry
from support.rows import nothing_written
from support.server_calls import (
    EXISTS,
    INVALID,
    NOT_FOUND,
    OK,
    TRAILERS,
    UNAUTHENTICATED,
    UNMET,
    Failure,
    SiteCalls,
    trailer_bytes,
)
from support.sites import Site, add_member
from support.waiting import until

HOUR = 60 * 60 * 1_000_000
Change, Remove = members.ChangeMemberRoleRequest, members.RemoveMemberRequest
WhoAmI = session.WhoAmIRequest


def is_unusable_secret(failure: Failure) -> bool:
    """Whether it is the common error for unusable secrets."""
    advice = "sign in with RequestSignIn" in failure.message and "newest mail" in failure.message
    return advice and (failure.code, failure.reason, failure.field) == (NOT_FOUND, "INVITATION_NOT_FOUND", "secret")


def test_the_secret_makes_its_holder_a_member(site: Site) -> None:
    """A caller with the secret and no credential becomes a member with the role, and its session works at once."""
    calls, before = PeopleCalls(site), now()
    calls.invite("OWNER", ("other@x.io", "VIEWER"))
    (made,) = calls.invite("ADMIN", ("Ann.B@x.io", "CONTRIBUTOR"))
    answer = calls.accept(made)
    member, secret, entry = answer.member, answer.session.secret, last_entry(site)
    who = calls.send(secret, WhoAmI())
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
    assert calls.send(secret, check).decision == authorization.DECISION_ALLOW
    assert member in calls.members("VIEWER")
    assert calls.send("OWNER", Get(id=made.id)).invitation.state == pb.INVITATION_STATE_ACCEPTED
    # The secret works once; the session lives on.
    with nothing_written(site):
        assert is_unusable_secret(calls.refused_unauthenticated(Accept(secret=calls.secret(made))))
    assert calls.code(secret, WhoAmI()) is OK
    assert (entry.actor, entry.credential_id) == (f"user:{member.user_id}", id_of(secret))
    assert (entry.action, entry.object, entry.reason) == ("AcceptInvitation", f"invitation:{made.id}", "")
    assert "Ann" not in entry.details


def test_unusable_secrets_get_the_same_error(site: Site) -> None:
    """Mistyped, forged, replaced, deleted and used secrets, and those of another kind or organization: NOT_FOUND."""
    calls = PeopleCalls(site)
    resent, gone, used, made = calls.invite(
        "OWNER", ("a@x.io", "VIEWER"), ("b@x.io", "VIEWER"), ("c@x.io", "VIEWER"), ("d@x.io", "VIEWER")
    )
    calls.send("OWNER", Resend(id=resent.id))
    calls.send("OWNER", Delete(id=gone.id))
    calls.accept(used)
    change_rows(site, tables.invitations, used.id, expire_time=now())
    link = calls.ask("viewer@acme.io")
    secret = calls.secret(made)
    wrong = [
        *("x", "rci_", "é" * 76, "\0", " " + secret, secret + " ", secret[:-1], secret + "0", secret * 50),
        *(with_changed_character(secret, place) for place in (4, 30, 70, 74)),
        *(with_checksum(with_changed_character(secret, place)) for place in (4, 30, 68)),
        *(with_checksum(kind + secret[3:]) for kind in ("rcp", "rcs", "rco")),
        *(calls.secret(made, generation) for generation in (0, 2)),
        calls.links.secret(LinkKind.INVITATION, token_format.new_id(), 1),
        site.tokens["OWNER"],
        *(calls.secret(one) for one in (resent, gone, used)),
    ]
    assert with_checksum(secret) == secret
    with nothing_written(site):
        other = calls.refused_unauthenticated(Accept(secret=link))
        failures = [calls.refused_unauthenticated(Accept(secret=text)) for text in wrong]
        failures += [
            calls.refused_unauthenticated(Accept(secret=secret, organization=name))
            for name in ("other", "nowhere", "ACME")
        ]
        empty = calls.refused_unauthenticated(Accept())

    assert all(is_unusable_secret(one) for one in failures)
    assert len({one.message for one in failures}) == 1
    assert {tuple(one.metadata) for one in failures} == {("call_id",)}
    assert (empty.code, empty.reason, empty.field) == (INVALID, "INVALID_FIELD", "secret")
    assert (other.code, other.reason) == (NOT_FOUND, "INVITATION_NOT_FOUND")
    assert "use SignIn" in other.message
    assert calls.send_unauthenticated(Accept(secret=secret, organization="acme")).member.email == "d@x.io"


def test_invitation_to_a_removed_role_is_refused(sqlite_site: Site) -> None:
    """An invitation to a role that is gone is not mailed again, and its holder gets the reason with what to do."""
    site, calls = sqlite_site, PeopleCalls(sqlite_site)
    (made,) = calls.invite("OWNER", ("ann@x.io", "VIEWER"))
    change_rows(site, tables.invitations, made.id, role="GUIDE")
    with nothing_written(site):
        resent = calls.refused("OWNER", Resend(id=made.id))
        accepted = calls.refused_unauthenticated(Accept(secret=calls.secret(made)))

    assert (resent.code, resent.reason) == (INVALID, "UNKNOWN_ROLE_NAME")
    assert (accepted.code, accepted.reason, accepted.field) == (UNMET, "INVITER_LOST_RIGHT", "secret")
    assert accepted.unmet == (("INVITER_LOST_RIGHT", f"invitation:{made.id}", accepted.message),)
    assert "The role GUIDE no longer exists" in accepted.message
    assert calls.send("OWNER", Delete(id=made.id)).invitation.role == "GUIDE"


def test_forged_secrets_do_not_limit_valid_ones(sqlite_site: Site) -> None:
    """Forged secrets beyond the peer's limit cost no lookup, and a good one through the same gateway is accepted."""
    calls = PeopleCalls(sqlite_site)
    made, late = calls.invite("OWNER", ("ann@x.io", "VIEWER"), ("bob@x.io", "VIEWER"))
    change_rows(sqlite_site, tables.invitations, late.id, generation=17)
    forged = [with_checksum(with_changed_character(calls.secret(made), 30 + number % 20)) for number in range(300)]
    reasons = {calls.refused_unauthenticated(Accept(secret=text)).reason for text in forged}
    # So often is nobody's mail resent that it counts as one who may have forged it.
    failure = calls.refused_unauthenticated(Accept(secret=calls.secret(late, 17)))

    assert reasons == {"INVITATION_NOT_FOUND", "RATE_LIMITED"}
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert "try again in 1 s" in failure.message
    assert calls.accept(made).member.email == "ann@x.io"
    time.sleep(1.1)
    assert calls.accept(late, generation=17).member.email == "bob@x.io"


def test_expired_invitation_cannot_be_accepted(site: Site) -> None:
    """Only a caller with the newest secret gets FAILED_PRECONDITION INVITATION_EXPIRED."""
    calls = PeopleCalls(site)
    late, just = calls.invite("OWNER", ("a@x.io", "VIEWER"), ("b@x.io", "VIEWER"))
    change_rows(site, tables.invitations, late.id, expire_time=now())
    change_rows(site, tables.invitations, just.id, expire_time=now() + 60_000_000)
    with nothing_written(site):
        failure = calls.refused_unauthenticated(Accept(secret=calls.secret(late)))
        assert is_unusable_secret(calls.refused_unauthenticated(Accept(secret=calls.secret(late, 2))))

    assert (failure.code, failure.reason, failure.field) == (UNMET, "INVITATION_EXPIRED", "secret")
    assert failure.unmet == (("INVITATION_EXPIRED", f"invitation:{late.id}", failure.message),)
    assert "ask your inviter for another one" in failure.message
    assert calls.accept(just).member.role == "VIEWER"


@pytest.mark.parametrize("how", ["removed", "demoted", "left", "program deleted", "program expired", "role beyond"])
def test_inviter_must_still_have_the_permission(site: Site, how: str) -> None:
    """Else FAILED_PRECONDITION INVITER_LOST_RIGHT, until somebody who may sends it again."""
    calls, admin = PeopleCalls(site), site.members["ADMIN"].user_id
    inviter, role = "ADMIN", "CONTRIBUTOR"
    if how.startswith("program"):
        inviter = calls.send("OWNER", tokens.CreateOrganizationTokenRequest(display_name="hr", role="ADMIN")).secret
    if how == "role beyond":
        inviter, role = calls.join("olga@acme.io", "OWNER").session.secret, "OWNER"
    (made,) = calls.invite(inviter, ("new@x.io", role))
    if how == "removed":
        calls.send("OWNER", Remove(user_id=admin))
    elif how == "demoted":
        calls.send("OWNER", Change(user_id=admin, role="CONTRIBUTOR"))
    elif how == "left":
        calls.send("ADMIN", members.LeaveOrganizationRequest())
    elif how == "program deleted":
        calls.send("OWNER", tokens.DeleteTokenRequest(id=id_of(inviter)))
    elif how == "program expired":
        change_rows(site, tables.credentials, id_of(inviter), expire_time=now())
    else:
        calls.send("OWNER", Change(user_id=made.creator.removeprefix("user:"), role="ADMIN"))
    with nothing_written(site):
        failure = calls.refused_unauthenticated(Accept(secret=calls.secret(made)))

    assert (failure.code, failure.reason, failure.field) == (UNMET, "INVITER_LOST_RIGHT", "secret")
    assert failure.unmet == (("INVITER_LOST_RIGHT", f"invitation:{made.id}", failure.message),)
    assert "ask somebody of acme to send the invitation again" in failure.message
    renewed = calls.send("OWNER", Resend(id=made.id)).invitation
    assert renewed.creator == f"user:{site.members['OWNER'].user_id}"
    assert is_unusable_secret(calls.refused_unauthenticated(Accept(secret=calls.secret(made))))
    assert calls.accept(made, generation=2).member.role == role


def test_loss_of_the_inviting_token_does_not_matter_for_a_member(site: Site) -> None:
    """The inviter's role counts, with any credential; the restriction of the one used to invite still applies."""
    calls, owner = PeopleCalls(site), site.members["OWNER"].user_id
    wide = put_credential(site, owner, only=(("*", "*"),))
    (made,) = calls.invite(wide, ("new@x.io", "ADMIN"))
    calls.send("OWNER", tokens.DeleteTokenRequest(id=id_of(wide)))
    looking = (("members", "*"), ("policy", "view"), ("projects", "*"), ("parameters", "view"), ("templates", "view"))
    narrow = put_credential(site, owner, only=looking)
    (lower,) = calls.invite(narrow, ("low@x.io", "VIEWERNOSECRETS"))
    # The role of the invitation is one that the restricted token could not have named.
    change_rows(site, tables.invitations, lower.id, role="VIEWER")

    assert calls.accept(made).member.role == "ADMIN"
    assert calls.refused_unauthenticated(Accept(secret=calls.secret(lower))).reason == "INVITER_LOST_RIGHT"


def test_member_cannot_accept_another_invitation(site: Site) -> None:
    """An invitee who became a member meanwhile is referred to sign-in; nothing is written."""
    calls = PeopleCalls(site)
    (made,) = calls.invite("OWNER", ("new@x.io", "ADMIN"))
    add_member(site.storage, "acme", "New@x.io", "VIEWER")
    with nothing_written(site):
        failure = calls.refused_unauthenticated(Accept(secret=calls.secret(made)))

    assert (failure.code, failure.reason, failure.field) == (EXISTS, "ALREADY_MEMBER", "secret")
    assert "sign in with RequestSignIn" in failure.message


def test_invitation_secret_is_no_credential(sqlite_site: Site) -> None:
    """UNAUTHENTICATED as a bearer's, of either kind of mail; and a bearer's token beside a secret is ignored."""
    calls = PeopleCalls(sqlite_site)
    (made,) = calls.invite("OWNER", ("a@x.io", "VIEWER"))
    link = calls.ask("viewer@acme.io")
    with nothing_written(sqlite_site):
        for text in (calls.secret(made), link):
            assert calls.code(text, WhoAmI()) is UNAUTHENTICATED
            assert calls.code(text, inviting(("b@x.io", "VIEWER"))) is UNAUTHENTICATED

    answer = calls.send("VIEWER", Accept(secret=calls.secret(made)))
    assert calls.send(answer.session.secret, WhoAmI()).member.email == "a@x.io"


def test_display_name_is_validated_or_derived_from_the_address(sqlite_site: Site) -> None:
    """A display name is 1 to 64 printable characters, no blanks at the ends; by default the address up to its @."""
    calls = PeopleCalls(sqlite_site)
    local = "l" * 64
    good, default = calls.invite("OWNER", ("a@x.io", "VIEWER"), (f"{local}@x.io", "VIEWER"))
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
            failure = calls.refused_unauthenticated(Accept(secret=calls.secret(good), display_name=name))

            assert (failure.code, failure.reason, failure.field) == (INVALID, "INVALID_FIELD", "display_name"), name
            assert advice in failure.message
            # An invalid name is reported whether or not the secret is right.
            assert calls.refused_unauthenticated(Accept(secret="x", display_name=name)).message == failure.message
        failure = calls.refused_unauthenticated(Accept(secret=calls.secret(good), organization="x" * 65))
        assert (failure.code, failure.field) == (INVALID, "organization")
        assert trailer_bytes(failure) < TRAILERS
    name = "Ånn-Søphie O'Hära 李 e\u0301 नि 🚀 " + "x" * 36

    assert calls.send_unauthenticated(Accept(secret=calls.secret(good), display_name=name)).member.display_name == name
    assert calls.accept(default).member.display_name == local


def test_removed_person_who_is_invited_again_is_a_new_member(site: Site) -> None:
    """A person who is removed and invited again is another user: their older tokens, sessions and link stay invalid."""
    calls = PeopleCalls(site)
    first = calls.join("ann@x.io", "ADMIN")
    token = calls.send(first.session.secret, tokens.CreatePersonalTokenRequest(display_name="laptop")).secret
    link = calls.ask("ann@x.io")
    calls.deliver()
    calls.send("OWNER", Remove(user_id=first.member.user_id))
    again = calls.join("Ann@x.io", "OWNER")

    assert again.member.user_id != first.member.user_id
    for dead in (first.session.secret, token):
        assert calls.code(dead, WhoAmI()) is UNAUTHENTICATED
    assert calls.refused_unauthenticated(session.SignInRequest(secret=link)).code is UNAUTHENTICATED
    assert calls.send(again.session.secret, WhoAmI()).role == "OWNER"
    assert calls.refused("OWNER", Change(user_id=first.member.user_id, role="ADMIN")).reason == "MEMBER_NOT_FOUND"


def test_the_same_person_in_two_organizations_is_two_users(site: Site) -> None:
    """An accepted invitation makes a member of its own organization, which the answer names."""
    calls = PeopleCalls(site)
    other = found_other(site)
    (here,) = calls.invite("OWNER", ("ann@x.io", "ADMIN"))
    (there,) = calls.invite(other, ("ann@x.io", "VIEWER"))
    entered = calls.accept(there), calls.accept(here)

    assert [one.organization for one in entered] == ["other", "acme"]
    assert [calls.send(one.session.secret, WhoAmI()).role for one in entered] == ["VIEWER", "ADMIN"]
    assert entered[0].member.user_id != entered[1].member.user_id
    assert calls.refused(entered[0].session.secret, WhoAmI(organization="acme")).code is NOT_FOUND


def test_the_secret_comes_by_mail(sqlite_site: Site) -> None:
    """Sent by the server itself, to the address that was invited."""
    # Not `PeopleCalls`, which stops the sending of mails.
    calls = SiteCalls(sqlite_site)
    calls.send("OWNER", inviting(("Ann@x.io", "VIEWER")))
    folder = sqlite_site.settings.mail_folder
    file = until(lambda: next(iter(folder.glob("*.eml")), None))
    text = file.read_text(encoding="utf-8").replace("=\n", "")
    start = text.index("rci_")
    calls = PeopleCalls(sqlite_site)

    assert "To: Ann@x.io" in text
    assert calls.send_unauthenticated(Accept(secret=text[start : start + 76])).member.email == "Ann@x.io"
