"""Signing in over gRPC: nobody learns who is a member, and a link works once, for a while, for one person."""

import uuid

import pytest
from conftest import Site
from grpc_errors import Told
from people import Office, change_rows, last_entry
from sqlalchemy import update
from test_accepting import flipped, whole
from test_tokens import (
    INVALID,
    OK,
    UNAUTHENTICATED,
    Desk,
    found_other,
    id_of,
    nothing_written,
    put_credential,
    rows_of,
    until,
)

from rolecall import credentials, sweep
from rolecall.domain import LinkKind, now
from rolecall.mutations import Arrival
from rolecall.storage import tables
from rolecall.v1 import member_pb2 as members
from rolecall.v1 import session_pb2 as pb
from rolecall.v1 import token_pb2 as tokens

MINUTE = 60_000_000
HOUR = 60 * MINUTE
Ask, SignIn, WhoAmI = pb.RequestSignInRequest, pb.SignInRequest, pb.WhoAmIRequest


def is_no_link(said: Told) -> bool:
    """Whether it is the one answer to every secret that signs nobody in."""
    advice = "Ask for another mail with RequestSignIn" in said.message
    return advice and (said.code, said.reason, said.field) == (UNAUTHENTICATED, "UNAUTHENTICATED_CREDENTIAL", "secret")


def delivered(office: Office, email: str) -> str:
    """The secret that a member finds in the mail that they asked for."""
    secret = office.ask(email)
    office.deliver()
    return secret


# Asking


def test_asking_tells_nothing_of_who_is_a_member(site: Site) -> None:
    """A member, a stranger and an unknown organization: the same answer, and the same rows but for their ids."""
    office = Office(site)
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
        answer = office.knock(request)
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
    """To the address as the member wrote it, with a link for that organization; what was queued is gone."""
    office = Office(site)
    office.join("Ann.B@x.io", "VIEWER")
    office.deliver()
    invited = set(site.settings.mail_folder.glob("*.eml"))
    for email, organization in (("stranger@x.io", "acme"), ("ann.b@x.io", "nowhere"), ("ANN.B@X.IO", "acme")):
        secret = office.ask(email, organization)
    office.deliver()
    (file,) = set(site.settings.mail_folder.glob("*.eml")) - invited
    text = file.read_text(encoding="utf-8").replace("=\n", "")

    assert "To: Ann.B@x.io" in text
    assert secret in text
    assert office.knock(SignIn(secret=secret)).member.email == "Ann.B@x.io"
    assert not [row for row in rows_of(site.storage)["mails"] if row[2] == "rcl"]


def test_beyond_three_requests_nothing_more_is_written(site: Site) -> None:
    """For one address, however it is written; the earlier links still work, and other addresses aren't held up."""
    office = Office(site)
    links = [office.ask(email) for email in ("viewer@acme.io", "Viewer@acme.io", "VIEWER@ACME.IO")]
    with nothing_written(site):
        for email in ("viewer@acme.io", "vieweR@acme.io"):
            assert office.knock(Ask(organization="acme", email=email)) == pb.RequestSignInResponse()
    for _ in range(3):
        office.ask("stranger@x.io")
    with nothing_written(site):
        assert office.knock(Ask(organization="acme", email="stranger@x.io")) == pb.RequestSignInResponse()
    office.deliver()

    assert office.knock(SignIn(secret=delivered(office, "admin@acme.io"))).member.role == "ADMIN"
    for link in links:
        assert office.knock(SignIn(secret=link)).member.role == "VIEWER"


def test_strangers_shut_no_organization_out(sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """They use up what is mailed for it; whoever comes from elsewhere is mailed the first few all the same."""
    office = Office(sqlite_site)
    sessions = sqlite_site.server._core.services[pb.DESCRIPTOR]._sessions
    monkeypatch.setattr(sessions._limits["organization"], "_burst", 5)
    monkeypatch.setattr(sessions._limits["organization"], "_rate", 0.001)
    for number in range(9):
        office.knock(Ask(organization="acme", email=f"nobody{number}@x.io"))
    full = len(office.asked())
    arrival = Arrival("RequestSignIn", "call", "198.51.100.7")
    for email in ("viewer@acme.io", "admin@acme.io", "ann@acme.io", "contributor@acme.io"):
        sessions.request_sign_in(arrival, "acme", email)

    assert full == 5
    assert len(office.asked()) == full + 3


def test_old_rows_go_by_themselves(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests to sign in that ended, and answers that are repeated no more; nobody has to ask for anything."""
    office, key = Office(site), str(uuid.uuid4())
    office.send("OWNER", tokens.CreateOrganizationTokenRequest(name="ci", role="VIEWER", request_id=key))
    ended, running = office.ask("viewer@acme.io"), office.ask("admin@acme.io")
    change_rows(site, tables.sign_ins, id_of(ended), expire_time=now() - 1)
    day = 24 * HOUR
    site.storage.write(lambda tx: tx.connection.execute(update(tables.requests).values(time=now() - day - 1)))
    monkeypatch.setattr(sweep, "EVERY_SECONDS", 0.0)
    sweep.Sweep(site.storage).run()

    assert office.asked() == {id_of(running)}
    assert rows_of(site.storage)["requests"] == []


def test_bad_requests_are_refused_unwritten(sqlite_site: Site) -> None:
    """INVALID_ARGUMENT names the field and says what to do, whoever is a member."""
    office = Office(sqlite_site)
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
        (SignIn(), "secret", "give it as the mail holds it"),
        (SignIn(secret="x", organization="x" * 65), "organization", "correct it"),
    ]
    with nothing_written(sqlite_site):
        for request, field, advice in cases:
            said = office.turned_away(request)

            assert (said.code, said.reason, said.field) == (INVALID, "INVALID_FIELD", field), request
            assert advice in said.message, request


# Signing in


def test_a_link_opens_one_session(site: Site) -> None:
    """Of 12 hours, once; the audit log has who came in, by which session, and no list of tokens shows it."""
    office, viewer = Office(site), site.members["VIEWER"]
    listed = office.send("VIEWER", tokens.ListTokensRequest())
    link = delivered(office, "viewer@acme.io")
    before = now()
    answer = office.knock(SignIn(secret=link, organization="acme"))
    secret, entry = answer.session.secret, last_entry(site)
    who = office.send(secret, WhoAmI())
    with nothing_written(site):
        assert is_no_link(office.turned_away(SignIn(secret=link)))

    assert (answer.organization, answer.member.user_id, answer.member.role) == ("acme", viewer.user_id, "VIEWER")
    assert secret.startswith("rcs_")
    assert 12 * HOUR <= answer.session.expire_time.ToMicroseconds() - before < 12 * HOUR + MINUTE
    assert (who.member, who.credential.id) == (answer.member, id_of(secret))
    assert who.credential.expire_time == answer.session.expire_time
    assert answer.revision == who.organization.revision
    assert (entry.action, entry.actor, entry.credential_id) == ("SignIn", f"user:{viewer.user_id}", id_of(secret))
    for token in ("VIEWER", secret, "OWNER"):
        asked = tokens.ListTokensRequest(user_id=viewer.user_id) if token == "OWNER" else tokens.ListTokensRequest()
        assert [one.id for one in office.send(token, asked).tokens] == [one.id for one in listed.tokens]
    # Signed out, only this session is dead.
    assert office.code(secret, pb.SignOutRequest()) is OK
    assert office.code(secret, WhoAmI()) is UNAUTHENTICATED
    assert office.code("VIEWER", WhoAmI()) is OK


def test_what_signs_nobody_in_has_one_answer(site: Site) -> None:
    """Mistyped, forged, of another kind, used, to elsewhere, or too old: UNAUTHENTICATED, and nothing is written."""
    office = Office(site)
    link = delivered(office, "viewer@acme.io")
    used = delivered(office, "admin@acme.io")
    office.knock(SignIn(secret=used))
    (made,) = office.invite("OWNER", ("ann@x.io", "VIEWER"))
    late = delivered(office, "contributor@acme.io")
    change_rows(site, tables.sign_ins, id_of(late), expire_time=now())
    wrong = [
        *("x", "rcl_", "é" * 76, " " + link, link[:-1], link + "0", used, late, site.tokens["VIEWER"]),
        *(flipped(link, place) for place in (4, 30, 70, 74)),
        *(whole(flipped(link, place)) for place in (4, 30, 68)),
        *(whole(kind + link[3:]) for kind in ("rcs", "rcp")),
        office.links.secret(LinkKind.SIGN_IN, id_of(link), 2),
        office.links.secret(LinkKind.SIGN_IN, credentials.new_id(), 1),
        office.links.secret(LinkKind.SIGN_IN, made.id, 1),
    ]
    with nothing_written(site):
        other = office.turned_away(SignIn(secret=office.secret(made)))
        said = [office.turned_away(SignIn(secret=text)) for text in wrong]
        said += [office.turned_away(SignIn(secret=link, organization=name)) for name in ("other", "ACME")]

    assert [text for text, one in zip(wrong, said, strict=False) if not is_no_link(one)] == []
    assert len({one.message for one in said}) == 1
    assert {tuple(one.metadata) for one in said} == {("request_id",)}
    assert (other.code, other.reason) == (UNAUTHENTICATED, "UNAUTHENTICATED_CREDENTIAL")
    assert "present it to AcceptInvitation" in other.message
    assert office.knock(SignIn(secret=link)).member.role == "VIEWER"


def test_a_link_works_for_fifteen_minutes(site: Site) -> None:
    """Not a moment longer; and the next request of anybody clears away what is too old, with its mail."""
    office = Office(site)
    just, late = delivered(office, "viewer@acme.io"), delivered(office, "admin@acme.io")
    unsent = office.ask("owner@x.io")
    for link in (late, unsent):
        change_rows(site, tables.sign_ins, id_of(link), expire_time=now())
    change_rows(site, tables.sign_ins, id_of(just), expire_time=now() + 30_000_000)

    assert is_no_link(office.turned_away(SignIn(secret=late)))
    assert office.knock(SignIn(secret=just)).member.role == "VIEWER"
    new = office.ask("viewer@acme.io")
    assert office.asked() == {id_of(new)}
    assert [row[3] for row in rows_of(site.storage)["mails"]] == [id_of(new)]


def test_a_link_that_wasnt_mailed_yet_opens_nothing(site: Site) -> None:
    """Not for a member, a stranger or an unknown organization, were its secret known; mailed, the member's does."""
    office = Office(site)
    link, stranger, elsewhere = (
        office.ask("viewer@acme.io"),
        office.ask("stranger@x.io"),
        office.ask("viewer@acme.io", "nowhere"),
    )
    with nothing_written(site):
        said = [office.turned_away(SignIn(secret=text)) for text in (link, stranger, elsewhere)]
    office.deliver()

    assert [is_no_link(one) for one in said] == [True] * 3
    assert office.knock(SignIn(secret=link)).member.role == "VIEWER"
    assert is_no_link(office.turned_away(SignIn(secret=stranger)))
    # Who joins later under the address of an older request isn't who asked.
    assert office.join("stranger@x.io", "ADMIN")
    assert is_no_link(office.turned_away(SignIn(secret=stranger)))


def test_a_link_is_for_who_was_a_member_when_it_was_mailed(site: Site) -> None:
    """Removed meanwhile, or removed and invited again under the same address: it opens nothing."""
    office = Office(site)
    for email in ("viewer@acme.io", "admin@acme.io"):
        link = delivered(office, email)
        (there,) = office.members(text=email)
        office.send("OWNER", members.RemoveMemberRequest(user_id=there.user_id))
        with nothing_written(site):
            assert is_no_link(office.turned_away(SignIn(secret=link)))
        again = office.join(email, "OWNER")
        with nothing_written(site):
            assert is_no_link(office.turned_away(SignIn(secret=link)))
        newer = delivered(office, email)

        assert office.knock(SignIn(secret=newer)).member.user_id == again.member.user_id


def test_a_role_that_changed_meanwhile_is_the_sessions(site: Site) -> None:
    """The session acts with the member's present role."""
    office, user = Office(site), site.members["ADMIN"].user_id
    link = delivered(office, "admin@acme.io")
    office.send("OWNER", members.ChangeMemberRoleRequest(user_id=user, role="VIEWER"))
    answer = office.knock(SignIn(secret=link))

    assert answer.member.role == office.send(answer.session.secret, WhoAmI()).role == "VIEWER"
    # A session past its end is dead.
    change_rows(site, tables.credentials, id_of(answer.session.secret), expire_time=now())
    until(lambda: office.code(answer.session.secret, WhoAmI()) is UNAUTHENTICATED)


def test_ended_sessions_are_cleared_away(site: Site) -> None:
    """The member's own, when another one opens; those that live, and tokens that ended, stay."""
    office, viewer = Office(site), site.members["VIEWER"]
    old, live = (office.knock(SignIn(secret=delivered(office, "viewer@acme.io"))).session for _ in range(2))
    others = office.knock(SignIn(secret=delivered(office, "admin@acme.io"))).session
    token = put_credential(site, viewer.user_id)
    for secret in (old.secret, others.secret, token):
        change_rows(site, tables.credentials, id_of(secret), expire_time=now() - 1)
    new = office.knock(SignIn(secret=delivered(office, "viewer@acme.io"))).session
    kept = {row[0] for row in rows_of(site.storage)["credentials"]}

    assert {id_of(one) for one in (live.secret, others.secret, token, new.secret)} <= kept
    assert id_of(old.secret) not in kept
    assert office.code(live.secret, WhoAmI()) is office.code(new.secret, WhoAmI()) is OK


def test_the_server_mails_the_link_itself(sqlite_site: Site) -> None:
    """Within seconds, to the member."""
    # An office would stop the sending.
    desk = Desk(sqlite_site)
    desk.send("VIEWER", Ask(organization="acme", email="viewer@acme.io"))
    file = until(lambda: next(iter(sqlite_site.settings.mail_folder.glob("*.eml")), None))
    text = file.read_text(encoding="utf-8").replace("=\n", "")
    start = text.index("rcl_")

    assert "To: viewer@acme.io" in text
    assert Office(sqlite_site).knock(SignIn(secret=text[start : start + 76])).member.role == "VIEWER"
