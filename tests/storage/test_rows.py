"""Queries on both databases: the rows that they find, write and leave alone."""

import itertools
import os
from collections.abc import Collection
from dataclasses import fields, replace
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError

from rolecall.credentials import token_format
from rolecall.credentials.token_format import MintedCredential
from rolecall.domain import (
    ORGANIZATION,
    Caller,
    CredentialKind,
    Effect,
    Member,
    Organization,
    Permission,
    Refusal,
    Restriction,
    Validity,
    now,
)
from rolecall.errors import OrganizationNotFound
from rolecall.storage import Storage, Transaction, tables
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage.changes import record_change
from rolecall.storage.credentials import CredentialHolder, NewCredential
from rolecall.storage.members import RolesAtScopes

EXAMPLES = 200 if os.environ.get("CI") == "true" else 25
ROLES = ("OWNER", "EDITOR", "VIEWER")
# When credentials are made and expire in these tests: times are microseconds, and any will do.
MADE, EXPIRES = 1_000_000, 2_000_000

_names = (f"org-{number}" for number in itertools.count())


@pytest.fixture
def acme(storage: Storage) -> Storage:
    """A database with the organizations `acme` and `other`, both without members."""
    _add_organization(storage, "acme")
    _add_organization(storage, "other")
    return storage


def _add_organization(storage: Storage, name: str) -> Organization:
    organization = Organization(name, name.title(), 0, 17)
    storage.write(lambda tx: organization_rows.add(tx, organization))
    return organization


def _member(user_id: str, role: str = "VIEWER", organization: str = "acme", email: str = "") -> Member:
    address = email or f"{user_id.title()}@acme.io"
    return Member(organization, user_id, address, user_id.title(), role, 11, 12, external_id=f"idp:{user_id}")


def _add(storage: Storage, *members: Member) -> None:
    """Each in a mutation of its own, under its lower-cased address."""
    for member in members:
        storage.mutate(member.organization, partial(member_rows.add, member=member, email_key=member.email.lower()))


def _add_token(storage: Storage, user_id: str, organization: str = "acme", expires: int = EXPIRES) -> MintedCredential:
    minted = token_format.mint(CredentialKind.PERSONAL)
    new = NewCredential(minted, organization, user_id, None, "laptop", None, "operator", MADE, expires)
    storage.mutate(organization, lambda tx: credential_rows.add(tx, new))
    return minted


def _add_organizations_token(storage: Storage, role: str, restriction: Restriction | None = None) -> MintedCredential:
    minted = token_format.mint(CredentialKind.ORGANIZATION)
    new = NewCredential(minted, "acme", None, role, "service", restriction, "user:ann", MADE, EXPIRES)
    storage.mutate("acme", lambda tx: credential_rows.add(tx, new))
    return minted


def _rotate(storage: Storage, old: MintedCredential, until: int) -> MintedCredential:
    """A new secret for the token; the old one works up to the moment `until`."""
    minted = token_format.mint(old.kind, old.id)
    storage.mutate("acme", lambda tx: credential_rows.rotate(tx, "acme", minted, until))
    return minted


def _revoke(storage: Storage, credential_id: str, at: int) -> bool:
    return storage.mutate("acme", lambda tx: credential_rows.revoke(tx, "acme", credential_id, at))


def _holder(storage: Storage, minted: MintedCredential) -> CredentialHolder | None:
    return storage.read(lambda tx: credential_rows.holders(tx, [(minted.id, minted.digest)]))[0]


def _ended(storage: Storage, minted: MintedCredential, at: int = MADE) -> Refusal | None:
    """Why the credential, which is known, doesn't work at the time `at`; None where it does."""
    held = _holder(storage, minted)
    (token,) = storage.read(lambda tx: credential_rows.tokens(tx, "acme", [minted.id])).values()

    assert held is not None
    assert token.secrets[minted.digest] == held.validity
    return held.validity.ended(at)


def _tokens(
    storage: Storage, ids: list[str], organization: str = "acme"
) -> dict[str, tuple[str, Restriction | None, set[bytes]]]:
    found = storage.read(lambda tx: credential_rows.tokens(tx, organization, ids))
    return {name: (token.role, token.restriction, set(token.secrets)) for name, token in found.items()}


def _page(
    storage: Storage, organization: str, roles: Collection[str], after: str | None, limit: int
) -> list[tuple[str, Member]]:
    allowed = RolesAtScopes(roles, [], [ORGANIZATION], now())
    return storage.read(lambda tx: member_rows.page_with_roles(tx, organization, allowed, after, limit))


def _remove(tx: Transaction, organization: str, user_id: str) -> None:
    tx.connection.execute(
        delete(tables.members).where(tables.members.c.organization == organization, tables.members.c.user_id == user_id)
    )


def _changes(storage: Storage, organization: str = "acme") -> list[tuple[int, str, str]]:
    """The recorded changes, as (revision, kind, key)."""
    columns = tables.changes.c
    query = select(columns.revision, columns.kind, columns.key).where(columns.organization == organization)
    return storage.read(
        lambda tx: [
            (row.revision, row.kind, row.key)
            for row in tx.connection.execute(query.order_by(columns.revision, columns.kind, columns.key))
        ]
    )


def _revision(storage: Storage, organization: str = "acme") -> int:
    return storage.read(lambda tx: organization_rows.revision_of(tx, organization))


# Organizations


def test_organization_is_read_as_it_was_written(storage: Storage) -> None:
    """Every field is read as it was written; an unknown name gives None."""
    organization = Organization("acme", "Äcme & Söhne 🦊", 2**40, 2**50)
    before = storage.read(organization_rows.exists)
    storage.write(lambda tx: organization_rows.add(tx, organization))

    assert before is False
    assert storage.read(organization_rows.exists) is True
    assert storage.read(lambda tx: organization_rows.get(tx, "acme")) == organization
    assert storage.read(lambda tx: organization_rows.get(tx, "Acme")) is None


def test_revision_of_a_missing_organization_is_not_found(acme: Storage) -> None:
    """The error names the organization that was asked for."""
    with pytest.raises(OrganizationNotFound) as caught:
        _revision(acme, "nowhere")

    assert caught.value.metadata == {"organization": "nowhere"}
    assert "`nowhere`" in caught.value.message


# Members


def test_member_is_found_by_address_key(acme: Storage) -> None:
    """All fields of the member are read back, with the address as written; other keys and organizations have nobody."""
    ann = _member("ann")
    _add(acme, ann)

    assert all(getattr(ann, field.name) for field in fields(ann)), "no field may have its default: it could get lost"
    assert acme.read(lambda tx: member_rows.by_email(tx, "acme", "ann@acme.io")) == ann
    assert acme.read(lambda tx: member_rows.by_email(tx, "acme", "Ann@acme.io")) is None
    assert acme.read(lambda tx: member_rows.by_email(tx, "other", "ann@acme.io")) is None


def test_address_key_has_no_wildcards(acme: Storage) -> None:
    """An address is found letter for letter or not at all."""
    _add(acme, _member("ann"))
    keys = ["ann_acme.io", "%", "ann@acme.i_", "ann@acme.io ", " ann@acme.io", "ann@acme.io\n", ""]

    assert acme.read(lambda tx: [member_rows.by_email(tx, "acme", key) for key in keys]) == [None] * len(keys)
    assert acme.read(lambda tx: member_rows.roles_by_email(tx, "acme", keys)) == {}


def test_roles_are_found_by_id_and_by_address(acme: Storage) -> None:
    """Members are in the answer, other subjects are not, and only of the organization asked about."""
    _add(acme, _member("ann", "OWNER"), _member("bob", "EDITOR"), _member("cyd", "VIEWER"))
    _add(acme, _member("ann", "VIEWER", "other"))
    ids, keys = ["ann", "bob", "nobody"], ["ann@acme.io", "cyd@acme.io", "nobody@acme.io"]

    assert acme.read(lambda tx: member_rows.roles_by_id(tx, "acme", ids)) == {
        "ann": ("OWNER", "ann@acme.io"),
        "bob": ("EDITOR", "bob@acme.io"),
    }
    assert acme.read(lambda tx: member_rows.roles_by_email(tx, "acme", keys)) == {
        "ann@acme.io": ("OWNER", "ann"),
        "cyd@acme.io": ("VIEWER", "cyd"),
    }
    assert acme.read(lambda tx: member_rows.roles_by_id(tx, "other", ids)) == {"ann": ("VIEWER", "ann@acme.io")}
    assert acme.read(lambda tx: member_rows.roles_by_email(tx, "other", keys)) == {"ann@acme.io": ("VIEWER", "ann")}


def test_roles_are_found_by_external_id(acme: Storage) -> None:
    """Members are found by external id letter for letter, and only in the organization asked about."""
    _add(acme, _member("ann", "OWNER"), replace(_member("bob"), external_id=""), _member("ann", "VIEWER", "other"))
    keys = ["idp:ann", "idp:bob", "IDP:ANN", "idp:an_", "%", ""]

    assert acme.read(lambda tx: member_rows.roles_by_external_id(tx, "acme", keys)) == {
        "idp:ann": ("OWNER", "ann", "ann@acme.io")
    }
    assert acme.read(lambda tx: member_rows.roles_by_external_id(tx, "other", keys)) == {
        "idp:ann": ("VIEWER", "ann", "ann@acme.io")
    }
    assert acme.read(lambda tx: member_rows.roles_by_external_id(tx, "acme", [])) == {}


def test_external_id_is_unique_in_an_organization(acme: Storage) -> None:
    """A second member with the external id is refused; any number may have none."""
    _add(acme, _member("ann"), *(replace(_member(name), external_id="") for name in ("bob", "cyd")))
    with pytest.raises(IntegrityError):
        _add(acme, replace(_member("dan"), external_id="idp:ann"))

    assert acme.read(lambda tx: member_rows.roles_by_id(tx, "acme", ["ann", "bob", "cyd", "dan"])).keys() == {
        "ann",
        "bob",
        "cyd",
    }


def test_changed_external_id_is_a_change_of_the_member(acme: Storage) -> None:
    """The new external id finds the member, the old one nobody, and the caches are notified of both."""
    ann = _member("ann")
    _add(acme, ann)
    for external_id in ("sub|1", ""):
        acme.mutate("acme", partial(member_rows.change_external_id, member=ann, external_id=external_id, at=13))

        found = acme.read(lambda tx: member_rows.roles_by_external_id(tx, "acme", ["idp:ann", "sub|1"]))
        assert found == ({external_id: ("VIEWER", "ann", "ann@acme.io")} if external_id else {})
    assert _changes(acme) == [(revision, "member", "ann") for revision in (1, 2, 3)]


def test_no_subjects_find_no_roles(acme: Storage) -> None:
    """Empty collections are accepted and find nothing."""
    _add(acme, _member("ann"))

    assert acme.read(lambda tx: member_rows.roles_by_id(tx, "acme", [])) == {}
    assert acme.read(lambda tx: member_rows.roles_by_email(tx, "acme", set())) == {}
    assert acme.read(lambda tx: member_rows.page_with_roles(tx, "acme", RolesAtScopes([], [], [], 0), None, 10)) == []
    assert acme.read(lambda tx: credential_rows.tokens(tx, "acme", [])) == {}


def test_large_batch_is_looked_up_at_once(acme: Storage) -> None:
    """The largest batch that the API takes is one query's worth."""
    _add(acme, _member("ann", "OWNER"))
    ids = [*(f"nobody-{index}" for index in range(999)), "ann"]

    assert acme.read(lambda tx: member_rows.roles_by_id(tx, "acme", ids)) == {"ann": ("OWNER", "ann@acme.io")}


def test_address_is_unique_in_an_organization(acme: Storage) -> None:
    """A second member with the address is refused and leaves nothing, however the address was written."""
    _add(acme, _member("ann"))
    with pytest.raises(IntegrityError):
        _add(acme, _member("anna", email="ANN@Acme.io"))

    assert acme.read(lambda tx: member_rows.roles_by_id(tx, "acme", ["ann", "anna"])) == {
        "ann": ("VIEWER", "ann@acme.io")
    }
    assert _changes(acme) == [(1, "member", "ann")]
    assert _revision(acme) == 1


def test_address_may_be_a_member_of_many_organizations(acme: Storage) -> None:
    """One person, with the same address and even the same id, may be in another organization too."""
    _add(acme, _member("ann", "OWNER"), _member("ann", "VIEWER", "other"))

    assert acme.read(lambda tx: member_rows.roles_by_email(tx, "acme", ["ann@acme.io"])) == {
        "ann@acme.io": ("OWNER", "ann")
    }
    assert acme.read(lambda tx: member_rows.roles_by_email(tx, "other", ["ann@acme.io"])) == {
        "ann@acme.io": ("VIEWER", "ann")
    }


def test_user_id_is_unique_in_an_organization(acme: Storage) -> None:
    """A second member with the id is refused and leaves nothing."""
    _add(acme, _member("ann"))
    with pytest.raises(IntegrityError):
        _add(acme, _member("ann", "OWNER", email="else@acme.io"))

    assert acme.read(lambda tx: member_rows.roles_by_id(tx, "acme", ["ann"])) == {"ann": ("VIEWER", "ann@acme.io")}
    assert _revision(acme) == 1


def test_roles_held_are_those_of_all_organizations(acme: Storage) -> None:
    """Each role that a member of any organization holds is listed once; without members the list is empty."""
    before = acme.read(member_rows.roles_held)
    _add(acme, _member("ann", "OWNER"), _member("bob", "OWNER"), _member("cyd", "EDITOR", "other"))

    assert before == set()
    assert acme.read(member_rows.roles_held) == {"OWNER", "EDITOR"}


def test_organizations_without_a_role_are_named(acme: Storage) -> None:
    """An organization counts as without where nobody holds any of the roles, one with no member at all included."""
    for name in ("empty", "viewers"):
        _add_organization(acme, name)
    _add(acme, _member("ann", "OWNER"), _member("bob", "EDITOR", "other"), _member("cyd", "VIEWER", "viewers"))

    def without(*roles: str, limit: int = 10) -> list[str]:
        return acme.read(lambda tx: member_rows.organizations_without(tx, roles, limit))

    assert without("OWNER") == ["empty", "other", "viewers"]
    assert without("OWNER", "EDITOR") == ["empty", "viewers"]
    assert without(*ROLES) == ["empty"]
    assert without("NOBODY'S") == without() == ["acme", "empty", "other", "viewers"]
    assert without("OWNER", limit=2) == ["empty", "other"]


# Pages


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    people=st.dictionaries(
        st.text("abz019.-_+@é", min_size=1, max_size=6), st.sampled_from(ROLES), min_size=0, max_size=12
    ),
    roles=st.sets(st.sampled_from(ROLES)),
    size=st.integers(1, 13),
)
def test_joined_pages_are_the_whole_list(storage: Storage, people: dict[str, str], roles: set[str], size: int) -> None:
    """Pages of any size have each holder once, in the order of the complete list."""
    name = next(_names)
    _add_organization(storage, name)
    members = {key: _member(f"id-{index}", people[key], name, key) for index, key in enumerate(people)}

    def add_all(tx: Transaction) -> None:
        for key, member in members.items():
            member_rows.add(tx, member, key)

    storage.mutate(name, add_all)
    whole = _page(storage, name, roles, None, 100)
    pages: list[list[tuple[str, Member]]] = []
    after: str | None = None
    while not pages or (pages[-1] and len(pages) <= len(people)):
        pages.append(_page(storage, name, roles, after, size))
        after = pages[-1][-1][0] if pages[-1] else None

    assert dict(whole) == {key: member for key, member in members.items() if member.role in roles}
    assert list(itertools.chain(*pages)) == whole
    assert all(len(page) == size for page in pages[:-2])


def test_page_continues_after_a_member_who_left(acme: Storage) -> None:
    """A page's position is a place in the order: the list continues even if the row there is deleted."""
    _add(acme, *(_member(name) for name in ("ann", "bob", "cyd", "dan")))
    first = _page(acme, "acme", ROLES, None, 2)
    acme.mutate("acme", lambda tx: _remove(tx, "acme", "bob"))
    rest = _page(acme, "acme", ROLES, first[-1][0], 2)

    assert [key for key, _ in first] == ["ann@acme.io", "bob@acme.io"]
    assert [key for key, _ in rest] == ["cyd@acme.io", "dan@acme.io"]


# Credentials


def test_live_credential_has_its_holder(acme: Storage) -> None:
    """A live credential gives its holder's address key and role, and its expiry; the digest must be the right one."""
    _add(acme, _member("ann", "EDITOR"), _member("bob", "OWNER"))
    token, bobs = _add_token(acme, "ann"), _add_token(acme, "bob")
    held = (
        "acme",
        token.id,
        CredentialKind.PERSONAL,
        "ann",
        "ann@acme.io",
        "EDITOR",
        None,
        EXPIRES,
        token.digest,
        (),
        "idp:ann",
    )
    unknown = token_format.mint(CredentialKind.PERSONAL)

    assert _holder(acme, token) == CredentialHolder(Caller(*held), Validity(EXPIRES))
    assert _holder(acme, unknown) is None
    for digest in (bobs.digest, unknown.digest, b"", token.digest[:31], token.digest + b"\0"):
        assert _holder(acme, replace(token, digest=digest)) is None
    assert _tokens(acme, [token.id, "none"]) == {token.id: ("EDITOR", None, {token.digest})}


def test_credential_of_another_organization_is_unknown(acme: Storage) -> None:
    """Asked about within an organization, only its own credentials are found, even where user ids are the same."""
    _add(acme, _member("ann", "OWNER"), _member("ann", "VIEWER", "other"))
    mine, theirs = _add_token(acme, "ann"), _add_token(acme, "ann", "other")
    ids = [mine.id, theirs.id]

    assert _tokens(acme, ids) == {mine.id: ("OWNER", None, {mine.digest})}
    assert _tokens(acme, ids, organization="other") == {theirs.id: ("VIEWER", None, {theirs.digest})}


def test_credential_expires_at_its_expire_time(acme: Storage) -> None:
    """A credential works up to the microsecond before, and is dead from `expire_time` on."""
    _add(acme, _member("ann"))
    token = _add_token(acme, "ann")
    times = [MADE, EXPIRES - 1, EXPIRES, EXPIRES + 1, 2**62]

    assert [_ended(acme, token, at) for at in times] == [None, None, *[Refusal.EXPIRED] * 3]


def test_revoked_credential_is_dead_at_any_time(acme: Storage) -> None:
    """A revoked credential is known, and works at no time; others stay valid."""
    _add(acme, _member("ann"))
    dead, other = _add_token(acme, "ann"), _add_token(acme, "ann")
    done = _revoke(acme, dead.id, EXPIRES - 5)

    assert done is True
    for at in (0, MADE, EXPIRES - 6, EXPIRES - 5, EXPIRES - 1):
        assert _ended(acme, dead, at) is Refusal.DELETED
        assert _ended(acme, other, at) is None


def test_only_a_live_credential_of_the_organization_can_be_revoked(acme: Storage) -> None:
    """Revoking twice, or a foreign or unknown credential, returns False and records no change; the first time stays."""
    _add(acme, _member("ann"), _member("ann", "VIEWER", "other"))
    token, foreign = _add_token(acme, "ann"), _add_token(acme, "ann", "other")
    _revoke(acme, token.id, MADE)
    before = _changes(acme)
    again = [_revoke(acme, credential_id, MADE + 1) for credential_id in (token.id, foreign.id, "unknown")]
    columns = tables.credentials.c
    times = acme.read(lambda tx: set(tx.connection.execute(select(columns.id, columns.revoke_time)).all()))

    assert again == [False] * 3
    assert _changes(acme) == [*before, *((revision, "revision", "") for revision in (4, 5, 6))]
    assert times == {(token.id, MADE), (foreign.id, None)}


def test_credentials_are_deleted_with_the_member(acme: Storage) -> None:
    """A member's credentials are deleted with the row; a new member with that id has none, others keep theirs."""
    _add(acme, _member("ann"), _member("bob"), _member("ann", "VIEWER", "other"))
    gone = [_add_token(acme, "ann"), _add_token(acme, "ann")]
    kept, foreign = _add_token(acme, "bob"), _add_token(acme, "ann", "other")
    acme.mutate("acme", lambda tx: _remove(tx, "acme", "ann"))
    _add(acme, _member("ann"))
    left = acme.read(lambda tx: set(tx.connection.scalars(select(tables.credentials.c.id))))

    assert [_holder(acme, token) for token in gone] == [None, None]
    assert left == {kept.id, foreign.id}


def test_credential_needs_a_member(acme: Storage) -> None:
    """No token can be stored for a person who is not a member of the token's organization."""
    _add(acme, _member("ann"))
    for user_id, organization in (("nobody", "acme"), ("ann", "other")):
        with pytest.raises(IntegrityError):
            _add_token(acme, user_id, organization)

    assert acme.read(lambda tx: tx.connection.scalar(select(func.count()).select_from(tables.credentials))) == 0


def test_stored_credential_is_a_digest(acme: Storage) -> None:
    """The row has the SHA-256 and the last four characters, and no column has more of the text."""
    _add(acme, _member("ann"))
    token = _add_token(acme, "ann")
    row = acme.read(lambda tx: tx.connection.execute(select(tables.credentials)).one())

    assert row.digest == token.digest
    assert row.last_four == token.text[-4:]
    assert (row.kind, row.display_name, row.create_time, row.expire_time) == ("rcp", "laptop", MADE, EXPIRES)
    secret = token.text.rpartition("_")[2]
    assert not any(secret[start : start + 8] in str(value) for value in row for start in range(len(secret) - 7))


def test_organizations_token_has_a_role_and_no_holder(acme: Storage) -> None:
    """An organization token has its own role and no member, and stays after its creator is removed."""
    _add(acme, _member("ann", "OWNER"))
    token = _add_organizations_token(acme, "EDITOR")
    acme.mutate("acme", lambda tx: _remove(tx, "acme", "ann"))
    caller = Caller("acme", token.id, CredentialKind.ORGANIZATION, "", "", "EDITOR", None, EXPIRES, token.digest)

    assert _holder(acme, token) == CredentialHolder(caller, Validity(EXPIRES))
    assert _tokens(acme, [token.id]) == {token.id: ("EDITOR", None, {token.digest})}
    assert _tokens(acme, [token.id], organization="other") == {}


@pytest.mark.parametrize(("user_id", "role"), [(None, None), ("ann", "EDITOR")])
def test_credential_has_a_holder_or_a_role(acme: Storage, user_id: str | None, role: str | None) -> None:
    """No token can be stored without a holder and a role, or with both."""
    _add(acme, _member("ann"))
    minted = token_format.mint(CredentialKind.ORGANIZATION)
    new = NewCredential(minted, "acme", user_id, role, "service", None, "user:ann", MADE, EXPIRES)
    with pytest.raises(IntegrityError):
        acme.mutate("acme", lambda tx: credential_rows.add(tx, new))

    assert _holder(acme, minted) is None


@pytest.mark.parametrize(
    "restriction",
    [
        None,
        Restriction((Permission("authorization", "check", Effect.ALLOW),)),
        Restriction((Permission("secrets/ä/*", "view", Effect.ALLOW), Permission("*", "*", Effect.ALLOW))),
        Restriction((Permission("*", "*", Effect.ALLOW),), "projects/ä"),
        Restriction(None, "projects/billing"),
    ],
)
def test_restriction_is_read_as_it_was_written(acme: Storage, restriction: Restriction | None) -> None:
    """A restriction comes back with the holder as it was written; None stays None."""
    token = _add_organizations_token(acme, "EDITOR", restriction)
    held = _holder(acme, token)

    assert held is not None
    assert held.caller.restriction == restriction
    assert _tokens(acme, [token.id]) == {token.id: ("EDITOR", restriction, {token.digest})}


def test_rotated_credential_has_two_secrets_for_a_while(acme: Storage) -> None:
    """The old secret works up to the microsecond before its end, and has ended by then; the new one lives on."""
    _add(acme, _member("ann"))
    old = _add_token(acme, "ann")
    until = MADE + 1000
    new = _rotate(acme, old, until)
    times = [MADE, until - 1, until, EXPIRES - 1, EXPIRES]
    olds, news = ([_ended(acme, secret, at) for at in times] for secret in (old, new))

    assert olds == [None, None, *[Refusal.ROTATED] * 3]
    assert news == [*[None] * 4, Refusal.EXPIRED]
    assert _tokens(acme, [old.id])[old.id][2] == {old.digest, new.digest}


def test_old_secret_ends_with_its_credential(acme: Storage) -> None:
    """A credential that is revoked, or has expired, is invalid with each of its secrets, within an overlap too."""
    _add(acme, _member("ann"))
    old = _add_token(acme, "ann")
    new = _rotate(acme, old, EXPIRES + 1000)
    expired = [_ended(acme, secret, EXPIRES) for secret in (old, new)]
    held = _holder(acme, old)
    _revoke(acme, old.id, MADE)

    assert held is not None
    assert held.validity == Validity(EXPIRES)
    assert expired == [Refusal.EXPIRED] * 2
    assert [_ended(acme, secret) for secret in (old, new)] == [Refusal.DELETED] * 2


# Changes


def test_each_mutation_records_its_changes(acme: Storage) -> None:
    """A mutation records kind and key under its revision; one that changes nothing records its revision."""
    _add(acme, _member("ann"), _member("bob", "VIEWER", "other"))
    token = _add_token(acme, "ann")
    acme.mutate("acme", lambda tx: None)
    acme.mutate("acme", lambda tx: credential_rows.revoke(tx, "acme", token.id, MADE))

    assert _changes(acme) == [
        (1, "member", "ann"),
        (2, "credential", token.id),
        (3, "revision", ""),
        (4, "credential", token.id),
    ]
    assert _changes(acme, "other") == [(1, "member", "bob")]


def test_one_mutation_may_record_many_changes(acme: Storage) -> None:
    """All changes of one transaction are recorded under its one revision."""

    def work(tx: Transaction) -> None:
        for name in ("ann", "bob"):
            member_rows.add(tx, _member(name), f"{name}@acme.io")
        record_change(tx, "acme", "organization", "acme")

    acme.mutate("acme", work)

    assert _changes(acme) == [(1, "member", "ann"), (1, "member", "bob"), (1, "organization", "acme")]


def test_failed_mutation_records_nothing(acme: Storage) -> None:
    """A failed mutation rolls its recorded changes back with the rows."""

    def work(tx: Transaction) -> None:
        member_rows.add(tx, _member("ann"), "ann@acme.io")
        raise OrganizationNotFound("broken off")

    with pytest.raises(OrganizationNotFound):
        acme.mutate("acme", work)

    assert _changes(acme) == []
    assert _revision(acme) == 0
