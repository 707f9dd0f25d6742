"""Sign-in over gRPC: membership is not revealed, and a link works once, for 15 minutes, for one member."""

import uuid

from sqlalchemy import update

from rolecall.credentials import token_format
from rolecall.domain import LinkKind, now
from rolecall.limits import Limits, Rate
from rolecall.services.cleanup import Cleanup
from rolecall.services.unit_of_work import UnauthenticatedCall
from rolecall.storage import tables
from rolecall.v1 import member_pb2 as members
from rolecall.v1 import session_pb2 as pb
from rolecall.v1 import token_pb2 as tokens
from support.credentials import found_other, id_of, put_credential
from support.forged_secrets import with_changed_character, with_checksum
from support.people import PeopleCalls, change_rows, last_entry
from support.rows import nothing_written, rows_of
from support.server_calls import INVALID, OK, UNAUTHENTICATED, Failure, SiteCalls
from support.sites import MakeSite, Site
from support.waiting import until

MINUTE = 60_000_000
HOUR = 60 * MINUTE
Ask, SignIn, WhoAmI = pb.RequestSignInRequest, pb.SignInRequest, pb.WhoAmIRequest


def is_unusable_link(failure: Failure) -> bool:
    """Whether it is the common error for unusable links."""
    advice = "Ask for another mail with RequestSignIn" in failure.message
    return advice and (failure.code, failure.reason, failure.field) == (
        UNAUTHENTICATED,
        "UNAUTHENTICATED_CREDENTIAL",
        "secret",
    )


def delivered(calls: PeopleCalls, email: str) -> str:
    """Request a sign-in as a member; return the secret in the mail."""
    secret = calls.ask(email)
    calls.deliver()
    return secret


# Asking


def test_request_sign_in_reveals_no_member(site: Site) -> None:
    """Members, unknown addresses and an unknown organization get one answer, and equal rows but for their ids."""
    calls = PeopleCalls(site)
    found_other(site)
    asked = [
        Ask(organization="acme", email="viewer@acme.io"),
        Ask(organization="acme", email="stranger@x.io"),
        Ask(organization="other", email="viewer@acme.io"),
        Ask(organization="nowhere", email="viewer@acme.io"),
        Ask(organization="ACME' OR ''='", email="viewer@acme.io"),
    ]
    added = []
    for request in asked:
        before, began = rows_of(site.storage), now()
        answer = calls.send_unauthenticated(request)
        after = rows_of(site.storage)
        new = {name: [row for row in rows if row not in before[name]] for name, rows in after.items()}
        added.append({name: len(rows) for name, rows in new.items() if rows})
        (row,) = new["sign_ins"]
        (mail,) = new["mails"]

        assert answer == pb.RequestSignInResponse()
        assert row[1:4] == (request.organization, request.email, None)
        assert 15 * MINUTE <= row[4] - began < 16 * MINUTE
        assert mail[1:7] == (request.organization, "rcl", row[0], 1, "queued", 0)
        assert {name for name in after if len(after[name]) < len(before[name])} == set()

    assert added == [{"sign_ins": 1, "mails": 1}] * 5


def test_only_a_member_is_sent_a_link(site: Site) -> None:
    """A member is mailed at the address as written, with a link for that organization; the queued row is gone."""
    calls = PeopleCalls(site)
    calls.join("Ann.B@x.io", "VIEWER")
    calls.deliver()
    invited = set(site.settings.mail_folder.glob("*.eml"))
    for email, organization in (("stranger@x.io", "acme"), ("ann.b@x.io", "nowhere"), ("ANN.B@X.IO", "acme")):
        secret = calls.ask(email, organization)
    calls.deliver()
    (file,) = set(site.settings.mail_folder.glob("*.eml")) - invited
    text = file.read_text(encoding="utf-8").replace("=\n", "")

    assert "To: Ann.B@x.io" in text
    assert secret in text
    assert calls.send_unauthenticated(SignIn(secret=secret)).member.email == "Ann.B@x.io"
    assert not [row for row in rows_of(site.storage)["mails"] if row[2] == "rcl"]


def test_beyond_three_requests_nothing_more_is_written(site: Site) -> None:
    """Requests beyond three for one address, however written, write nothing; earlier links and others still work."""
    calls = PeopleCalls(site)
    links = [calls.ask(email) for email in ("viewer@acme.io", "Viewer@acme.io", "VIEWER@ACME.IO")]
    with nothing_written(site):
        for email in ("viewer@acme.io", "vieweR@acme.io"):
            assert calls.send_unauthenticated(Ask(organization="acme", email=email)) == pb.RequestSignInResponse()
    for _ in range(3):
        calls.ask("stranger@x.io")
    with nothing_written(site):
        assert calls.send_unauthenticated(Ask(organization="acme", email="stranger@x.io")) == pb.RequestSignInResponse()
    calls.deliver()

    assert calls.send_unauthenticated(SignIn(secret=delivered(calls, "admin@acme.io"))).member.role == "ADMIN"
    for link in links:
        assert calls.send_unauthenticated(SignIn(secret=link)).member.role == "VIEWER"


def test_unauthenticated_callers_cannot_block_sign_in_of_others(make_site: MakeSite, sqlite_url: str) -> None:
    """Unauthenticated callers use up the limit of their own network; requests from other networks are still mailed."""
    limits = Limits(sign_ins_per_organization=Rate(0.001, 5))
    site = make_site(sqlite_url, limits=limits)
    calls = PeopleCalls(site)
    sessions = site.core.services[pb.DESCRIPTOR]._sessions
    for number in range(9):
        calls.send_unauthenticated(Ask(organization="acme", email=f"nobody{number}@x.io"))
    full = len(calls.asked())
    arrival = UnauthenticatedCall("RequestSignIn", "call", "198.51.100.7")
    for email in ("viewer@acme.io", "admin@acme.io", "ann@acme.io", "contributor@acme.io"):
        sessions.request_sign_in(arrival, "acme", email)

    assert full == 5
    assert len(calls.asked()) == full + 3


def test_expired_rows_are_deleted(site: Site) -> None:
    """Expired requests to sign in and stored answers are deleted without any call."""
    calls, key = PeopleCalls(site), str(uuid.uuid4())
    calls.send("OWNER", tokens.CreateOrganizationTokenRequest(display_name="ci", role="VIEWER", request_id=key))
    ended, running = calls.ask("viewer@acme.io"), calls.ask("admin@acme.io")
    change_rows(site, tables.sign_ins, id_of(ended), expire_time=now() - 1)
    day = 24 * HOUR
    site.storage.write(lambda tx: tx.connection.execute(update(tables.requests).values(time=now() - day - 1)))
    Cleanup(site.storage, Limits(cleanup_seconds=0.0)).run()

    assert calls.asked() == {id_of(running)}
    assert rows_of(site.storage)["requests"] == []


def test_invalid_requests_are_refused_and_not_written(sqlite_site: Site) -> None:
    """A bad request is INVALID_ARGUMENT with the field and what to do, for members and others alike."""
    calls = PeopleCalls(sqlite_site)
    cases = [
        (Ask(email="viewer@acme.io"), "organization", "say where you want to sign in"),
        (Ask(organization="x" * 65, email="viewer@acme.io"), "organization", "correct it"),
        (Ask(organization="ac\nme", email="viewer@acme.io"), "organization", "correct it"),
        *((Ask(organization=name), "email", "not valid") for name in ("acme", "nowhere")),
        *(
            (Ask(organization="acme", email=email), "email", advice)
            for email, advice in (
                ("viewer", "must have an @-sign"),
                ("viewer@acme.io,b@x.io", "not valid"),
                ("viewer@acme.io\r\nBcc: b@x.io", "not valid"),
                ("v@" + "a" * 250 + ".io", "255 characters, more than 254"),
                ("\u212aelvin@acme.io", "not valid"),
            )
        ),
        (SignIn(), "secret", "copy it from the mail"),
        (SignIn(secret="x", organization="x" * 65), "organization", "correct it"),
    ]
    with nothing_written(sqlite_site):
        for request, field, advice in cases:
            failure = calls.refused_unauthenticated(request)

            assert (failure.code, failure.reason, failure.field) == (INVALID, "INVALID_FIELD", field), request
            assert advice in failure.message, request


# Signing in


def test_a_link_opens_one_session(site: Site) -> None:
    """A link opens one session of 12 hours; the audit log has person and session, and no list of tokens shows it."""
    calls, viewer = PeopleCalls(site), site.members["VIEWER"]
    listed = calls.send("VIEWER", tokens.ListTokensRequest())
    link = delivered(calls, "viewer@acme.io")
    before = now()
    answer = calls.send_unauthenticated(SignIn(secret=link, organization="acme"))
    secret, entry = answer.session.secret, last_entry(site)
    who = calls.send(secret, WhoAmI())
    with nothing_written(site):
        assert is_unusable_link(calls.refused_unauthenticated(SignIn(secret=link)))

    assert (answer.organization, answer.member.user_id, answer.member.role) == ("acme", viewer.user_id, "VIEWER")
    assert secret.startswith("rcs_")
    assert 12 * HOUR <= answer.session.expire_time.ToMicroseconds() - before < 12 * HOUR + MINUTE
    assert (who.member, who.credential.id) == (answer.member, id_of(secret))
    assert who.credential.expire_time == answer.session.expire_time
    assert answer.revision == who.organization.revision
    assert (entry.action, entry.actor, entry.credential_id) == ("SignIn", f"user:{viewer.user_id}", id_of(secret))
    for token in ("VIEWER", secret, "OWNER"):
        asked = tokens.ListTokensRequest(user_id=viewer.user_id) if token == "OWNER" else tokens.ListTokensRequest()
        assert [one.id for one in calls.send(token, asked).tokens] == [one.id for one in listed.tokens]
    # Signing out ends this session only.
    assert calls.code(secret, pb.SignOutRequest()) is OK
    assert calls.code(secret, WhoAmI()) is UNAUTHENTICATED
    assert calls.code("VIEWER", WhoAmI()) is OK


def test_unusable_links_get_the_same_error(site: Site) -> None:
    """Mistyped, forged, used and expired links, and those of another kind or organization: UNAUTHENTICATED."""
    calls = PeopleCalls(site)
    link = delivered(calls, "viewer@acme.io")
    used = delivered(calls, "admin@acme.io")
    calls.send_unauthenticated(SignIn(secret=used))
    (made,) = calls.invite("OWNER", ("ann@x.io", "VIEWER"))
    late = delivered(calls, "contributor@acme.io")
    change_rows(site, tables.sign_ins, id_of(late), expire_time=now())
    wrong = [
        *("x", "rcl_", "é" * 76, " " + link, link[:-1], link + "0", used, late, site.tokens["VIEWER"]),
        *(with_changed_character(link, place) for place in (4, 30, 70, 74)),
        *(with_checksum(with_changed_character(link, place)) for place in (4, 30, 68)),
        *(with_checksum(kind + link[3:]) for kind in ("rcs", "rcp")),
        calls.links.secret(LinkKind.SIGN_IN, id_of(link), 2),
        calls.links.secret(LinkKind.SIGN_IN, token_format.new_id(), 1),
        calls.links.secret(LinkKind.SIGN_IN, made.id, 1),
    ]
    with nothing_written(site):
        other = calls.refused_unauthenticated(SignIn(secret=calls.secret(made)))
        failures = [calls.refused_unauthenticated(SignIn(secret=text)) for text in wrong]
        failures += [
            calls.refused_unauthenticated(SignIn(secret=link, organization=name)) for name in ("other", "ACME")
        ]

    assert [text for text, one in zip(wrong, failures, strict=False) if not is_unusable_link(one)] == []
    assert len({one.message for one in failures}) == 1
    assert {tuple(one.metadata) for one in failures} == {("call_id",)}
    assert (other.code, other.reason) == (UNAUTHENTICATED, "UNAUTHENTICATED_CREDENTIAL")
    assert "present it to AcceptInvitation" in other.message
    assert calls.send_unauthenticated(SignIn(secret=link)).member.role == "VIEWER"


def test_a_link_works_for_fifteen_minutes(site: Site) -> None:
    """A link works for 15 minutes; the next request of any caller deletes those that are too old, with their mails."""
    calls = PeopleCalls(site)
    just, late = delivered(calls, "viewer@acme.io"), delivered(calls, "admin@acme.io")
    unsent = calls.ask("owner@x.io")
    for link in (late, unsent):
        change_rows(site, tables.sign_ins, id_of(link), expire_time=now())
    change_rows(site, tables.sign_ins, id_of(just), expire_time=now() + 30_000_000)

    assert is_unusable_link(calls.refused_unauthenticated(SignIn(secret=late)))
    assert calls.send_unauthenticated(SignIn(secret=just)).member.role == "VIEWER"
    new = calls.ask("viewer@acme.io")
    assert calls.asked() == {id_of(new)}
    assert [row[3] for row in rows_of(site.storage)["mails"]] == [id_of(new)]


def test_link_does_not_work_before_it_is_mailed(site: Site) -> None:
    """A link whose secret is known works for nobody before it is mailed; afterwards the member's does."""
    calls = PeopleCalls(site)
    link, stranger, elsewhere = (
        calls.ask("viewer@acme.io"),
        calls.ask("stranger@x.io"),
        calls.ask("viewer@acme.io", "nowhere"),
    )
    with nothing_written(site):
        failures = [calls.refused_unauthenticated(SignIn(secret=text)) for text in (link, stranger, elsewhere)]
    calls.deliver()

    assert [is_unusable_link(one) for one in failures] == [True] * 3
    assert calls.send_unauthenticated(SignIn(secret=link)).member.role == "VIEWER"
    assert is_unusable_link(calls.refused_unauthenticated(SignIn(secret=stranger)))
    # Who joins later under the address of an older request isn't who asked.
    assert calls.join("stranger@x.io", "ADMIN")
    assert is_unusable_link(calls.refused_unauthenticated(SignIn(secret=stranger)))


def test_link_signs_in_the_member_it_was_mailed_to(site: Site) -> None:
    """A link doesn't work after its member is removed, even if the address joined again."""
    calls = PeopleCalls(site)
    for email in ("viewer@acme.io", "admin@acme.io"):
        link = delivered(calls, email)
        (there,) = calls.members(text=email)
        calls.send("OWNER", members.RemoveMemberRequest(user_id=there.user_id))
        with nothing_written(site):
            assert is_unusable_link(calls.refused_unauthenticated(SignIn(secret=link)))
        again = calls.join(email, "OWNER")
        with nothing_written(site):
            assert is_unusable_link(calls.refused_unauthenticated(SignIn(secret=link)))
        newer = delivered(calls, email)

        assert calls.send_unauthenticated(SignIn(secret=newer)).member.user_id == again.member.user_id


def test_session_has_the_present_role(site: Site) -> None:
    """The session acts with the member's present role."""
    calls, user = PeopleCalls(site), site.members["ADMIN"].user_id
    link = delivered(calls, "admin@acme.io")
    calls.send("OWNER", members.ChangeMemberRoleRequest(user_id=user, role="VIEWER"))
    answer = calls.send_unauthenticated(SignIn(secret=link))

    assert answer.member.role == calls.send(answer.session.secret, WhoAmI()).role == "VIEWER"
    # An expired session is invalid.
    change_rows(site, tables.credentials, id_of(answer.session.secret), expire_time=now())
    until(lambda: calls.code(answer.session.secret, WhoAmI()) is UNAUTHENTICATED)


def test_expired_sessions_are_deleted(site: Site) -> None:
    """A new session deletes the member's expired sessions, but neither live ones nor expired tokens."""
    calls, viewer = PeopleCalls(site), site.members["VIEWER"]
    old, live = (
        calls.send_unauthenticated(SignIn(secret=delivered(calls, "viewer@acme.io"))).session for _ in range(2)
    )
    others = calls.send_unauthenticated(SignIn(secret=delivered(calls, "admin@acme.io"))).session
    token = put_credential(site, viewer.user_id)
    for secret in (old.secret, others.secret, token):
        change_rows(site, tables.credentials, id_of(secret), expire_time=now() - 1)
    new = calls.send_unauthenticated(SignIn(secret=delivered(calls, "viewer@acme.io"))).session
    kept = {row[0] for row in rows_of(site.storage)["credentials"]}

    assert {id_of(one) for one in (live.secret, others.secret, token, new.secret)} <= kept
    assert id_of(old.secret) not in kept
    assert calls.code(live.secret, WhoAmI()) is calls.code(new.secret, WhoAmI()) is OK


def test_the_server_mails_the_link_itself(sqlite_site: Site) -> None:
    """The server mails the link to the member within seconds."""
    # Not `PeopleCalls`, which stops the sending of mails.
    calls = SiteCalls(sqlite_site)
    calls.send("VIEWER", Ask(organization="acme", email="viewer@acme.io"))
    file = until(lambda: next(iter(sqlite_site.settings.mail_folder.glob("*.eml")), None))
    text = file.read_text(encoding="utf-8").replace("=\n", "")
    start = text.index("rcl_")

    assert "To: viewer@acme.io" in text
    assert (
        PeopleCalls(sqlite_site).send_unauthenticated(SignIn(secret=text[start : start + 76])).member.role == "VIEWER"
    )
