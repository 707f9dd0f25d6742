"""Members, invitations and unauthenticated calls through the client library: complete lists, changes, errors."""

from collections.abc import Iterator

import pytest

from rolecall import Client, UnauthenticatedClient
from rolecall.client import to_dict
from rolecall.credentials import server_key
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.domain import Invitee, LinkKind
from rolecall.errors import (
    AlreadyMember,
    ConfigError,
    EtagMismatch,
    ExternalIdTaken,
    InvalidField,
    InvitationAccepted,
    InvitationNotFound,
    LastOwner,
    UnauthenticatedCredential,
    UnknownRoleName,
)
from support.sites import Site, add_member


@pytest.fixture
def owner(sqlite_site: Site) -> Iterator[Client]:
    """The owner's connection."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        yield client


@pytest.fixture
def guest(sqlite_site: Site) -> Iterator[UnauthenticatedClient]:
    """A connection without a credential."""
    with UnauthenticatedClient(sqlite_site.address) as connection:
        yield connection


def secret_of(site: Site, invitation_id: str, generation: int = 1) -> str:
    """The secret that the mail holds."""
    return MailedSecrets(server_key.read(site.settings.key_file)).secret(LinkKind.INVITATION, invitation_id, generation)


def test_members_over_many_pages(sqlite_site: Site) -> None:
    """The iterator fetches page after page; each member once."""
    for number in range(4):
        add_member(sqlite_site.storage, "acme", f"person{number}@acme.io", "VIEWER")

    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"], page_size=2) as client:
        found = [member.email for member in client.members.list(order="newest")]

    assert found[:4] == [f"person{number}@acme.io" for number in (3, 2, 1, 0)]
    assert len(found) == len(set(found)) == 9


def test_member_is_changed_and_removed(owner: Client, sqlite_site: Site) -> None:
    """A stale etag fails; the changed member comes back; a removed one isn't there."""
    viewer = owner.members.get(sqlite_site.members["VIEWER"].user_id)

    changed = owner.members.change_role(viewer.user_id, "CONTRIBUTOR", etag=viewer.etag)
    with pytest.raises(EtagMismatch):
        owner.members.remove(viewer.user_id, etag=viewer.etag)
    removed = owner.members.remove(viewer.user_id, etag=changed.member.etag)

    assert changed.member.role == "CONTRIBUTOR"
    assert removed.revision == changed.revision + 1
    assert viewer.email not in {member.email for member in owner.members.list()}


def test_external_id_is_changed_filtered_and_refused(owner: Client, sqlite_site: Site) -> None:
    """The member comes back with the id, in lists by it too; a taken one is an error with its holder."""
    viewer, admin = (sqlite_site.members[role].user_id for role in ("VIEWER", "ADMIN"))

    changed = owner.members.change_external_id(viewer, "auth0|7")
    with pytest.raises(ExternalIdTaken) as taken:
        owner.members.change_external_id(admin, "auth0|7")
    with pytest.raises(EtagMismatch):
        owner.members.change_external_id(viewer, "", etag="0")
    (found,) = owner.members.list(external_id="auth0|7")

    assert changed.member.external_id == found.external_id == to_dict(found)["external_id"] == "auth0|7"
    assert found.user_id == viewer
    assert (taken.value.field, taken.value.metadata["user_id"]) == ("external_id", viewer)
    assert owner.check("user:auth0|7", "view", "members").role == "VIEWER"
    assert list(owner.members.list(external_id="auth0|8")) == []


def test_invitation_is_changed(owner: Client, guest: UnauthenticatedClient, sqlite_site: Site) -> None:
    """Only what is given is changed, an empty value clears, and nothing given is an error."""
    person = Invitee("bob@x.io", "ADMIN", "Bob", "idp:bob")
    made = owner.invitations.create([person, ("eve@x.io", "VIEWER")]).invitations[0]

    changed = owner.invitations.update(made.id, role="VIEWER", etag=made.etag).invitation
    with pytest.raises(EtagMismatch):
        owner.invitations.update(made.id, role="ADMIN", etag=made.etag)
    with pytest.raises(InvalidField, match="changes nothing"):
        owner.invitations.update(made.id)
    cleared = owner.invitations.update(made.id, display_name="").invitation
    joined = guest.accept_invitation(secret_of(sqlite_site, made.id, 3)).member

    assert (made.display_name, made.external_id) == ("Bob", "idp:bob")
    assert (changed.role, changed.display_name, changed.external_id) == ("VIEWER", "Bob", "idp:bob")
    assert (cleared.role, cleared.display_name, cleared.external_id) == ("VIEWER", "", "idp:bob")
    assert (joined.role, joined.display_name, joined.external_id) == ("VIEWER", "bob", "idp:bob")
    assert [one.email for one in owner.invitations.list(external_id="idp:bob", show_deleted=True)] == []


def test_members_are_moved(owner: Client, sqlite_site: Site) -> None:
    """The etag of a validation guards the move; a repeated move finds nobody."""
    seen = owner.members.move("VIEWER", "CONTRIBUTOR", validate_only=True)
    with pytest.raises(EtagMismatch):
        owner.members.move("VIEWER", "CONTRIBUTOR", etag="other")
    moved = owner.members.move("VIEWER", "CONTRIBUTOR", etag=seen.etag)

    assert moved.member_count == seen.member_count == 1
    assert moved.revision == seen.revision + 1
    assert owner.members.get(sqlite_site.members["VIEWER"].user_id).role == "CONTRIBUTOR"


def test_invited_person_accepts_and_signs_in(owner: Client, guest: UnauthenticatedClient, sqlite_site: Site) -> None:
    """An invitation is accepted once, its session works, and the second use is an error."""
    made = owner.invitations.create([("bob@x.io", "ADMIN")]).invitations[0]
    resent = owner.invitations.resend(made.id, etag=made.etag).invitation

    with pytest.raises(InvitationNotFound):
        guest.accept_invitation(secret_of(sqlite_site, made.id))
    entered = guest.accept_invitation(secret_of(sqlite_site, made.id, 2), display_name="Bob")
    with Client(sqlite_site.address, entered.session.secret) as bob:
        who = bob.session.who_am_i()
    with pytest.raises(InvitationNotFound, match="used already"):
        guest.accept_invitation(secret_of(sqlite_site, made.id, 2))

    assert resent.id == made.id
    assert (who.member.display_name, who.role) == ("Bob", "ADMIN")
    assert [item.email for item in owner.invitations.list(state="accepted")] == ["bob@x.io"]
    assert owner.invitations.get(made.id).email == "bob@x.io"


def test_every_bad_invitee_is_in_the_error(owner: Client) -> None:
    """`all` has one error for each, of the class that the server meant, with its field."""
    people = [("kim@x.io", "VIEWER"), ("ann@acme.io", "VIEWER"), ("lee", "VIEWER"), ("max@x.io", "NOPE")]

    with pytest.raises(InvalidField, match="2 more") as caught:
        owner.invitations.create(people)

    assert [(type(error), error.field) for error in caught.value.all] == [
        (AlreadyMember, "invitations[1].email"),
        (InvalidField, "invitations[2].email"),
        (UnknownRoleName, "invitations[3].role"),
    ]


def test_unmet_precondition_is_in_the_error(owner: Client, guest: UnauthenticatedClient, sqlite_site: Site) -> None:
    """`field` names the field at fault, `subject` the resource; an error without a field has only the subject."""
    (made,) = owner.invitations.create([("bob@x.io", "ADMIN")]).invitations
    guest.accept_invitation(secret_of(sqlite_site, made.id))

    with pytest.raises(LastOwner) as demoted:
        owner.members.change_role(sqlite_site.members["OWNER"].user_id, "VIEWER")
    with pytest.raises(LastOwner) as left:
        owner.members.leave()
    with pytest.raises(InvitationAccepted) as resent:
        owner.invitations.resend(made.id)

    assert (demoted.value.field, demoted.value.subject) == ("user_id", "organization:acme")
    assert (left.value.field, left.value.subject) == ("", "organization:acme")
    assert (resent.value.field, resent.value.subject) == ("id", f"invitation:{made.id}")
    assert demoted.value.all == ()


def test_unauthenticated_client_sends_no_credential(sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unauthenticated client sends no token, not even the environment's; signing in with nonsense is refused."""
    monkeypatch.setenv("ROLECALL_TOKEN", "a dead one, with blanks")
    monkeypatch.setenv("ROLECALL_ORGANIZATION", "acme")
    with UnauthenticatedClient(sqlite_site.address) as guest:
        guest.request_sign_in("viewer@acme.io")
        with pytest.raises(UnauthenticatedCredential, match="does not sign anybody in") as caught:
            guest.sign_in("rcl_nonsense")

    assert caught.value.field == "secret"
    with pytest.raises(ConfigError, match="server's address"):
        UnauthenticatedClient("nowhere:port")
