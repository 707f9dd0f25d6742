"""External ids over gRPC: who may set them, what they may be, and that Checks by them are in force at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from google.protobuf.message import Message

from rolecall import Client, audit
from rolecall.client import to_dict
from rolecall.credentials import token_format
from rolecall.domain import CredentialKind, Reason, now
from rolecall.errors import InvalidField, MemberNotFound
from rolecall.identity.batch_loader import BatchLoader
from rolecall.storage import Transaction, tables
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import invitation_pb2 as invitation
from rolecall.v1 import member_pb2 as pb
from support.audit_logs import INTACT, entries, log_of, verify
from support.credentials import found_other, put_credential
from support.invitation_requests import Accept
from support.people import PeopleCalls, change_rows, expected, last_entry, outcome
from support.roles import ROLES
from support.rows import nothing_written
from support.server_calls import ABORTED, DENIED, EXISTS, INVALID, NOT_FOUND
from support.sites import Site, add_member

Change, Remove, ListMembers = pb.ChangeMemberExternalIdRequest, pb.RemoveMemberRequest, pb.ListMembersRequest
Check = authorization.CheckRequest
ALLOW, DENY = authorization.DECISION_ALLOW, authorization.DECISION_DENY

# What identity providers and databases use: Auth0, Google, UUIDs, Firebase, Apple, a URL, another tenant's key.
EXTERNAL_IDS = (
    "auth0|5f7c8ec7c33c6c004bbafe82",
    "110169484474386276334",
    "6b7c3a52-2a43-4ba0-9d28-6f1e0a2b9c11",
    "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
    "000345.5a1b2c3d.0123",
    "https://idp.acme.io/users/7#me?x=%20",
    "role:OWNER",
    "7",
    "x" * 255,
)
MALFORMED = (
    "ann@acme.io",
    "a@b",
    "*",
    "idp:*",
    "ann b",
    " ann",
    "ann\n",
    "ann\0",
    "\u0430nn",
    "\u212aate",
    "größe",
    "x" * 256,
    "0" * 22,
    "Abcdefghij0123456789ZZ",
)


def renamed(site: Site, role: str, external_id: str, **more: str) -> pb.ChangeMemberExternalIdRequest:
    """Make a request to give the demo member with this role the external id."""
    return Change(user_id=site.members[role].user_id, external_id=external_id, **more)


def role_of(calls: PeopleCalls, external_id: str, revision: int = 0) -> str:
    """Return the role that a Check finds for the external id."""
    asked = Check(subject=f"user:{external_id}", action="view", resource="members", at_least_revision=revision)
    return str(calls.send("OWNER", asked).role)


@contextmanager
def database_untouched(monkeypatch: pytest.MonkeyPatch, site: Site) -> Iterator[None]:
    """Fail where a subject is read from the database."""

    def refuse(*_: object) -> None:
        raise AssertionError("a query on the warm path")

    with monkeypatch.context() as patch:
        patch.setattr(BatchLoader, "load", refuse)
        patch.setattr(site.server.storage, "read", refuse)
        yield


def test_external_id_is_a_subject_wherever_one_is_accepted(site: Site) -> None:
    """Check, BatchCheck, ListPermissions and PlanResources answer for the external id as for the user id."""
    calls = PeopleCalls(site)
    for external_id in EXTERNAL_IDS:
        answer = calls.send("OWNER", renamed(site, "CONTRIBUTOR", external_id))
        with Client(site.address, site.tokens["OWNER"]) as client:
            subjects = [f"user:{external_id}", f"user:{answer.member.user_id}", answer.member.email]
            checks = [client.check(subject, "create", "projects", explain=True) for subject in subjects]
            batch = client.batch_check([(subject, "create", "projects") for subject in subjects])
            permissions = [list(client.permissions(subject)) for subject in subjects]
            plans = [client.plan_resources(subject, "create", "projects") for subject in subjects]
            found = next(member for member in client.subjects("create", "projects") if member.role == "CONTRIBUTOR")

        assert checks == [checks[0]] * 3, external_id
        assert (checks[0].role, checks[0].reason) == ("CONTRIBUTOR", Reason.GRANTED)
        assert batch == [batch[0]] * 3
        assert batch[0]
        assert plans == [plans[0]] * 3
        assert permissions == [permissions[0]] * 3
        assert permissions[0]
        assert found.external_id == answer.member.external_id == external_id


def test_check_by_external_id_is_answered_from_the_cache(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second Check, batch or self-check by an external id reads nothing, nor does one of an unknown id."""
    calls = PeopleCalls(site)
    calls.send("OWNER", renamed(site, "VIEWER", "sub|v"))
    known, unknown, item = (
        Check(subject="user:sub|v", action="view", resource="members"),
        Check(subject="user:sub|nobody", action="view", resource="members"),
        authorization.BatchCheckItem(subject="user:sub|v", action="view", resource="members"),
    )
    batch = authorization.BatchCheckRequest(checks=[item, item])
    cold = [calls.send("OWNER", request) for request in (known, unknown, batch)]
    own = calls.send("VIEWER", known)
    with database_untouched(monkeypatch, site):
        warm = [calls.send("OWNER", request) for request in (known, unknown, batch)]
        own_again = calls.send("VIEWER", known)

    assert warm == cold
    assert own == own_again == cold[0]
    assert [one.decision for one in cold[:2]] == [ALLOW, DENY]
    assert cold[1].reason == authorization.REASON_NOT_A_MEMBER


def test_changed_external_id_is_in_force_from_the_answer_on(site: Site) -> None:
    """However warm the caches are, the old id is nobody's at once, and the new one the member's; then another's."""
    calls = PeopleCalls(site)
    assert role_of(calls, "one") == role_of(calls, "two") == ""
    calls.send("OWNER", renamed(site, "VIEWER", "one"))
    assert (role_of(calls, "one"), role_of(calls, "two")) == ("VIEWER", "")
    calls.send("OWNER", renamed(site, "VIEWER", "two"))
    assert (role_of(calls, "one"), role_of(calls, "two")) == ("", "VIEWER")
    calls.send("OWNER", renamed(site, "ADMIN", "one"))
    assert (role_of(calls, "one"), role_of(calls, "two")) == ("ADMIN", "VIEWER")
    calls.send("OWNER", renamed(site, "VIEWER", ""))
    assert (role_of(calls, "one"), role_of(calls, "two")) == ("ADMIN", "")
    answer = calls.send("OWNER", renamed(site, "CONTRIBUTOR", "two"))
    assert (role_of(calls, "one"), role_of(calls, "two", answer.revision)) == ("ADMIN", "CONTRIBUTOR")
    calls.send("OWNER", Remove(user_id=site.members["ADMIN"].user_id))
    assert (role_of(calls, "one"), role_of(calls, "two")) == ("", "CONTRIBUTOR")
    calls.send("OWNER", renamed(site, "VIEWER", "one"))
    assert role_of(calls, "one") == "VIEWER"


def test_only_the_holder_asks_about_themselves_by_external_id(site: Site) -> None:
    """A caller without `authorization check` may ask about its own external id, about no other, and no earlier one."""
    calls = PeopleCalls(site)
    asked = {name: Check(subject=f"user:{name}", action="view", resource="members") for name in ("mine", "theirs", "")}
    calls.send("OWNER", renamed(site, "VIEWER", "mine"))
    calls.send("OWNER", renamed(site, "ADMIN", "theirs"))
    first = calls.send("VIEWER", asked["mine"])
    refused = calls.refused("VIEWER", asked["theirs"])
    calls.send("OWNER", renamed(site, "VIEWER", ""))
    earlier = calls.refused("VIEWER", asked["mine"])
    program = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER")
    nameless = calls.refused(program, asked["mine"])

    assert (first.decision, first.role) == (ALLOW, "VIEWER")
    assert {one.reason for one in (refused, earlier, nameless)} == {"PERMISSION_MISSING"}
    assert calls.refused("VIEWER", asked[""]).code is INVALID


def test_external_id_has_no_form_of_an_address_or_a_user_id(site: Site) -> None:
    """A text that as a subject is an address or a user id is refused as an external id, wherever one is given."""
    calls, viewer = PeopleCalls(site), site.members["VIEWER"].user_id
    (made,) = calls.invite("OWNER", ("new@x.io", "VIEWER"))
    with nothing_written(site):
        for text in (*MALFORMED, viewer, token_format.new_id()):
            invitee = invitation.Invitee(email="a@x.io", role="VIEWER", external_id=text)
            changed = invitation.Invitation(id=made.id, external_id=text)
            requests: list[tuple[Message, str]] = [
                (renamed(site, "ADMIN", text), "external_id"),
                (ListMembers(external_id=text), "external_id"),
                (invitation.ListInvitationsRequest(external_id=text), "external_id"),
                (invitation.CreateInvitationsRequest(invitations=[invitee]), "invitations[0].external_id"),
                (invitation.UpdateInvitationRequest(invitation=changed), "invitation.external_id"),
            ]
            for request, field in requests:
                failure = calls.refused("OWNER", request)

                assert (failure.code, failure.reason, failure.field) == (INVALID, "INVALID_FIELD", field), repr(text)
                assert ":" in failure.message
        secret = renamed(site, "ADMIN", "x" + site.tokens["OWNER"])
        assert site.tokens["OWNER"] not in calls.refused("OWNER", secret).message
    # However it is stored, what has the form of a user id or an address never is an external id.
    owner_id = site.members["OWNER"].user_id
    change_rows(site, tables.members, viewer, external_id=owner_id)
    assert role_of(calls, owner_id) == "OWNER"
    change_rows(site, tables.members, viewer, external_id="ann@acme.io")
    assert role_of(calls, "ann@acme.io") == "OWNER"


@pytest.mark.parametrize("caller", ROLES)
def test_external_ids_follow_rule_1(sqlite_site: Site, caller: str) -> None:
    """Setting one takes what changing from and to the member's role takes: its holder acts with that role."""
    calls = PeopleCalls(sqlite_site)
    wrong = []
    for role in ROLES:
        target = add_member(sqlite_site.storage, "acme", f"{role}@x.io", role).user_id
        for external_id in (f"sub|{role}", ""):
            found = outcome(calls, caller, Change(user_id=target, external_id=external_id))
            if found != expected(caller, "update", role):
                wrong.append((role, external_id, found))

    assert wrong == []


def test_refused_caller_does_not_learn_external_ids(sqlite_site: Site) -> None:
    """A caller who may change nobody gets one refusal, for free and taken ids, for existing and missing members."""
    calls = PeopleCalls(sqlite_site)
    calls.send("OWNER", renamed(sqlite_site, "OWNER", "taken"))
    users = (sqlite_site.members["VIEWER"].user_id, token_format.new_id())
    with nothing_written(sqlite_site):
        failures = [
            calls.refused("CONTRIBUTOR", Change(user_id=user, external_id=external_id))
            for user in users
            for external_id in ("taken", "free", "")
        ]
        missing = calls.refused("OWNER", Change(user_id=users[1], external_id="free"))
        beyond = calls.refused("ADMIN", renamed(sqlite_site, "OWNER", "free"))

    assert {failure.code for failure in failures} == {DENIED}
    assert len({failure.message for failure in failures}) == 1
    assert (missing.code, missing.reason, missing.field) == (NOT_FOUND, "MEMBER_NOT_FOUND", "user_id")
    assert (beyond.code, beyond.reason, beyond.field) == (DENIED, "ROLE_BEYOND_CALLER", "user_id")


def test_external_id_belongs_to_one_member_or_pending_invitation(site: Site) -> None:
    """ALREADY_EXISTS EXTERNAL_ID_TAKEN names who has it; what has ended frees it."""
    calls = PeopleCalls(site)

    def invite(email: str, *external_ids: str) -> invitation.CreateInvitationsRequest:
        invitees = [
            invitation.Invitee(email=f"{number}{email}", role="VIEWER", external_id=external_id)
            for number, external_id in enumerate(external_ids)
        ]
        return invitation.CreateInvitationsRequest(invitations=invitees)

    calls.send("OWNER", renamed(site, "VIEWER", "m"))
    (made, other) = calls.send("OWNER", invite("a@x.io", "i", "j")).invitations
    update = invitation.UpdateInvitationRequest(invitation=invitation.Invitation(id=other.id, external_id="i"))
    with nothing_written(site):
        for request, field, holder in (
            (renamed(site, "ADMIN", "m"), "external_id", {"user_id": site.members["VIEWER"].user_id}),
            (renamed(site, "ADMIN", "i"), "external_id", {"id": made.id}),
            (invite("b@x.io", "m"), "invitations[0].external_id", {"user_id": site.members["VIEWER"].user_id}),
            (invite("b@x.io", "i"), "invitations[0].external_id", {"id": made.id}),
            (invite("b@x.io", "n", "n"), "invitations[1].external_id", {}),
            (update, "invitation.external_id", {"id": made.id}),
        ):
            failure = calls.refused("OWNER", request)

            assert (failure.code, failure.reason, failure.field) == (EXISTS, "EXTERNAL_ID_TAKEN", field), request
            assert {name: failure.metadata.get(name) for name in holder} == holder
    # Another organization has its own.
    foreign = found_other(site)
    assert calls.send(foreign, invite("a@x.io", "i", "m")).invitations[1].external_id == "m"
    assert role_of(calls, "m") == "VIEWER"
    # Cases differ, as identity providers tell them apart.
    calls.send("OWNER", renamed(site, "ADMIN", "M"))
    assert (role_of(calls, "m"), role_of(calls, "M")) == ("VIEWER", "ADMIN")
    # What has ended holds none.
    calls.send("OWNER", invitation.DeleteInvitationRequest(id=other.id))
    change_rows(site, tables.invitations, made.id, expire_time=now() - 1)
    assert calls.send("OWNER", invite("c@x.io", "j", "i")).invitations[1].external_id == "i"
    calls.send("OWNER", Remove(user_id=site.members["VIEWER"].user_id))
    assert calls.send("OWNER", renamed(site, "CONTRIBUTOR", "m")).member.external_id == "m"


def test_expired_invitation_never_takes_its_external_id_back(site: Site) -> None:
    """Once a member has the external id of an expired invitation, that stays expired, even if the clock is set back."""
    calls = PeopleCalls(site)
    invitee = invitation.Invitee(email="a@x.io", role="ADMIN", external_id="i")
    (made,) = calls.send("OWNER", invitation.CreateInvitationsRequest(invitations=[invitee])).invitations
    change_rows(site, tables.invitations, made.id, expire_time=now() - 1)
    calls.send("OWNER", renamed(site, "VIEWER", "i"))
    change_rows(site, tables.invitations, made.id, expire_time=now() + 60_000_000)

    shown = calls.send("OWNER", invitation.GetInvitationRequest(id=made.id)).invitation
    with nothing_written(site):
        refused = calls.refused_unauthenticated(Accept(secret=calls.secret(made)))

    assert shown.state == invitation.INVITATION_STATE_EXPIRED
    assert refused.reason == "INVITATION_EXPIRED"
    assert role_of(calls, "i") == "VIEWER"


def test_invited_person_joins_with_name_and_external_id(site: Site) -> None:
    """The invitation's name is the member's unless they give one; the external id is then the member's alone."""
    calls = PeopleCalls(site)
    invitees = [
        invitation.Invitee(email=f"{name}@x.io", role="VIEWER", display_name=shown, external_id=f"sub|{name}")
        for name, shown in (("kim", "Kim Lee"), ("lee", "Lee Kim"), ("max", ""))
    ]
    made = calls.send("OWNER", invitation.CreateInvitationsRequest(invitations=invitees)).invitations
    assert role_of(calls, "sub|kim") == ""
    kim, lee, maxim = (
        calls.send_unauthenticated(Accept(secret=calls.secret(one), display_name=name)).member
        for one, name in zip(made, ("", "Lee", ""), strict=True)
    )
    shown = calls.send("OWNER", invitation.GetInvitationRequest(id=made[0].id)).invitation

    assert [(one.display_name, one.external_id) for one in made[:2]] == [
        ("Kim Lee", "sub|kim"),
        ("Lee Kim", "sub|lee"),
    ]
    assert [(one.display_name, one.external_id) for one in (kim, lee, maxim)] == [
        ("Kim Lee", "sub|kim"),
        ("Lee", "sub|lee"),
        ("max", "sub|max"),
    ]
    assert role_of(calls, "sub|kim") == "VIEWER"
    assert shown.external_id == ""
    calls.send("OWNER", Change(user_id=kim.user_id, external_id=""))
    calls.send("OWNER", Change(user_id=lee.user_id, external_id="sub|kim"))
    assert calls.send("OWNER", pb.GetMemberRequest(user_id=lee.user_id)).member.external_id == "sub|kim"


def test_lists_are_filtered_by_external_id(site: Site) -> None:
    """The filter matches the whole id, letter for letter; a filter that nobody matches gives an empty list."""
    calls = PeopleCalls(site)
    viewer = calls.send("OWNER", renamed(site, "VIEWER", "sub|1")).member
    calls.send("OWNER", renamed(site, "ADMIN", "sub|10"))
    invitee = invitation.Invitee(email="a@x.io", role="VIEWER", external_id="sub|2")
    (made,) = calls.send("OWNER", invitation.CreateInvitationsRequest(invitations=[invitee])).invitations

    def invited(external_id: str) -> list[invitation.Invitation]:
        return list(calls.send("OWNER", invitation.ListInvitationsRequest(external_id=external_id)).invitations)

    assert calls.members(external_id="sub|1") == [viewer]
    assert calls.members(external_id="sub|1", role="ADMIN") == calls.members(external_id="SUB|1") == []
    assert calls.members(external_id="sub_1") == calls.members(external_id="%") == []
    assert invited("sub|2") == [made]
    assert invited("sub|1") == invited("sub") == []
    first = calls.send("OWNER", ListMembers(page_size=1)).next_page_token
    assert calls.refused("OWNER", ListMembers(page_token=first, external_id="sub|1")).reason == "PAGE_TOKEN"


def test_unchanged_external_id_writes_nothing(site: Site) -> None:
    """The present id again is an answer without a change; a stale etag is refused."""
    calls = PeopleCalls(site)
    before = calls.send("OWNER", renamed(site, "VIEWER", "sub|1"))
    with nothing_written(site):
        again = calls.send("OWNER", renamed(site, "VIEWER", "sub|1", etag=before.member.etag))
        stale = calls.refused("OWNER", renamed(site, "VIEWER", "sub|2", etag="0"))

    assert again == before
    assert (stale.code, stale.reason, stale.field) == (ABORTED, "ETAG_MISMATCH", "etag")
    assert calls.send("OWNER", renamed(site, "VIEWER", "")).member.etag != before.member.etag


def test_external_ids_in_the_audit_log_can_be_erased(site: Site) -> None:
    """Entries have the ids before and after, outside the chain; erasing the person removes them; the log verifies."""
    calls = PeopleCalls(site)
    user = site.members["VIEWER"].user_id
    calls.send("OWNER", renamed(site, "VIEWER", "sub|first"))
    calls.send("OWNER", renamed(site, "VIEWER", "sub|second"))
    entry = last_entry(site)
    shown = to_dict(entries(site)[-1])["details"]
    calls.send("OWNER", renamed(site, "ADMIN", "sub|other"))
    calls.send("OWNER", Remove(user_id=user))
    site.storage.read(partial(_require_absent, text="sub|second"))
    audit.erase(site.storage, log_of(site), "acme", user)
    erased = [one.details for one in entries(site)]

    assert (entry.action, entry.object) == ("ChangeMemberExternalId", f"user:{user}")
    assert (shown["before"]["external_id"], shown["after"]["external_id"]) == ("sub|first", "sub|second")
    assert "sub|" not in entry.details
    assert "sub|first" not in str(erased)
    assert "sub|second" not in str(erased)
    assert "sub|other" in str(erased)
    assert verify(site) == INTACT


def test_erased_invitation_has_neither_name_nor_external_id(site: Site) -> None:
    """Erasing an invited address removes its name and external id everywhere, and frees the id."""
    calls = PeopleCalls(site)
    invitee = invitation.Invitee(email="kim@x.io", role="VIEWER", display_name="Kim Lee", external_id="sub|kim")
    (made,) = calls.send("OWNER", invitation.CreateInvitationsRequest(invitations=[invitee])).invitations
    assert "Kim Lee" in str(entries(site)[-1].details)
    audit.erase(site.storage, log_of(site), "acme", "kim@x.io")
    shown = calls.send("OWNER", invitation.GetInvitationRequest(id=made.id)).invitation

    assert (shown.email, shown.display_name, shown.external_id) == ("[erased]", "", "")
    assert "Kim" not in str([entry.details for entry in entries(site)])
    assert "sub|kim" not in str([entry.details for entry in entries(site)])
    assert verify(site) == INTACT
    assert calls.send("OWNER", renamed(site, "VIEWER", "sub|kim")).member.external_id == "sub|kim"


def test_person_is_erased_by_external_id(site: Site) -> None:
    """An external id, present or former, erases who has or had it, invitations included; one of several people none."""
    calls = PeopleCalls(site)
    erase = partial(audit.erase, site.storage, log_of(site), "acme")
    invitee = invitation.Invitee(email="kim@x.io", role="VIEWER", display_name="Kim Lee", external_id="sub|kim")
    calls.send("OWNER", invitation.CreateInvitationsRequest(invitations=[invitee]))
    calls.send("OWNER", renamed(site, "VIEWER", "sub|old"))
    calls.send("OWNER", renamed(site, "VIEWER", "sub|shared"))
    calls.send("OWNER", renamed(site, "VIEWER", ""))
    calls.send("OWNER", renamed(site, "ADMIN", "sub|shared"))
    with pytest.raises(InvalidField) as several:
        erase("sub|shared")
    with pytest.raises(MemberNotFound):
        erase("sub|nobody")
    assert all(
        text in str([entry.details for entry in entries(site)]) for text in ("kim@x.io", "sub|old", "sub|shared")
    )
    erase("sub|kim")
    erase("sub|old")
    erase("sub|shared")
    details = str([entry.details for entry in entries(site)])

    assert several.value.field == "person"
    assert all(site.members[role].email in several.value.message for role in ("VIEWER", "ADMIN"))
    assert not [text for text in ("kim@x.io", "Kim Lee", "sub|") if text in details]
    assert not [entry.object for entry in entries(site) if "sub|" in entry.object]
    assert verify(site) == INTACT


def _require_absent(tx: Transaction, text: str) -> None:
    """Fail where a member or an invitation still has the text."""
    for table in (tables.members, tables.invitations):
        for row in tx.connection.execute(table.select()):
            assert text not in str(row)
