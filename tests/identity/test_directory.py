"""Subjects: every way of naming one, within one organization and as the database has it now."""

import itertools
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import Mock, patch

import pytest
from sqlalchemy import event, update

from rolecall.credentials import token_format
from rolecall.credentials.token_format import MintedCredential
from rolecall.domain import (
    Caller,
    CredentialKind,
    Effect,
    Member,
    Organization,
    Permission,
    Refusal,
    Restriction,
    Subject,
    SubjectKind,
    now,
)
from rolecall.errors import OrganizationNotFound, StorageUnavailable
from rolecall.formats.networks import parse_address, parse_networks
from rolecall.identity import authentication, directory
from rolecall.identity.authentication import Authenticator, OnMisuse
from rolecall.identity.cache import RevisionCache
from rolecall.identity.change_feed import ChangeFeed
from rolecall.identity.directory import Directory, ResolvedSubject
from rolecall.storage import Storage, Transaction, tables
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage.changes import record_change
from rolecall.storage.credentials import NewCredential
from support.engines import engine_of
from support.waiting import wait_until

HOUR = 3_600_000_000
LOOKED_UP = [kind for kind in SubjectKind if kind is not SubjectKind.ROLE]
NOBODY = Subject(SubjectKind.USER_ID, "nobody")


@dataclass
class DirectoryParts:
    """Database with `acme` (ann OWNER, bob VIEWER) and `other` (ann VIEWER), and a token for each, by `acme/ann`."""

    storage: Storage
    directory: Directory
    authenticator: Authenticator
    tokens: dict[str, MintedCredential]


def make_parts(
    storage: Storage,
    tokens: dict[str, MintedCredential],
    feed: ChangeFeed | None = None,
    on_misuse: OnMisuse = lambda *_: None,
) -> DirectoryParts:
    """Make another directory of the same database, with its own caches if there is a feed."""
    authenticator = Authenticator(storage, feed, on_misuse=on_misuse)
    return DirectoryParts(storage, Directory(storage, authenticator, feed, on_misuse=on_misuse), authenticator, tokens)


@pytest.fixture
def parts(storage: Storage) -> DirectoryParts:
    """Members and their tokens, which expire in an hour; without a cache, each question reads the database."""
    tokens: dict[str, MintedCredential] = {}
    for organization, people in (("acme", {"ann": "OWNER", "bob": "VIEWER"}), ("other", {"ann": "VIEWER"})):
        storage.write(partial(organization_rows.add, organization=Organization(organization, organization, 0, 1)))
        for user, role in people.items():
            tokens[f"{organization}/{user}"] = _add_person(storage, organization, user, role)
    return make_parts(storage, tokens)


@pytest.fixture
def cached_parts(parts: DirectoryParts) -> Iterator[DirectoryParts]:
    """A directory with a cache and a change feed, as a server has it."""
    feed = ChangeFeed(parts.storage, RevisionCache(), max_staleness=60.0)
    feed.start()
    yield make_parts(parts.storage, parts.tokens, feed)
    feed.stop()


def _add_person(storage: Storage, organization: str, user: str, role: str) -> MintedCredential:
    def work(tx: Transaction) -> MintedCredential:
        at = now()
        address = f"{user}@acme.io"
        member = Member(organization, user, address, user, role, at, at, external_id=f"idp:{user}")
        member_rows.add(tx, member, address)
        return _add_token(tx, organization, user, at + HOUR)

    return storage.mutate(organization, work)


def _add_token(tx: Transaction, organization: str, user: str, expires: int) -> MintedCredential:
    minted = token_format.mint(CredentialKind.PERSONAL)
    new = NewCredential(minted, organization, user, None, "laptop", None, "operator", 1, expires)
    credential_rows.add(tx, new)
    return minted


def _presented(minted: MintedCredential, digest: bytes = b"") -> Subject:
    return Subject(SubjectKind.PRESENTED, minted.id, digest or minted.digest)


def _token(minted: MintedCredential) -> Subject:
    return Subject(SubjectKind.TOKEN_ID, minted.id)


def _with_secret_of(minted: MintedCredential, other: MintedCredential) -> str:
    """A well-formed text with the id of one token and the secret of another."""
    body = f"rcp_{minted.id}_{other.text.split('_')[2][:43]}"
    return body + token_format._checksum(body)


def _role(parts: DirectoryParts, subject: Subject, organization: str = "acme") -> str | None:
    resolved = parts.directory.resolve(organization, [subject]).subjects[0]
    return resolved.role if resolved else None


def _resolve(
    directory: Directory, organization: str, subjects: Collection[Subject], at_least: int = 0
) -> tuple[int, dict[str, ResolvedSubject]]:
    """Resolve the subjects; return the revision, and the known ones by key."""
    resolved = directory.resolve(organization, subjects, at_least=at_least)
    pairs = zip(subjects, resolved.subjects, strict=True)
    return resolved.revision, {subject.key: resolved for subject, resolved in pairs if resolved}


def _all(subjects: Iterable[Subject], role: str) -> dict[str, ResolvedSubject]:
    """Each of them with this role, and without a restriction."""
    return dict.fromkeys([subject.key for subject in subjects], ResolvedSubject(role))


def _revoke(storage: Storage, minted: MintedCredential) -> None:
    assert storage.mutate("acme", lambda tx: credential_rows.revoke(tx, "acme", minted.id, now()))


def _change_role(tx: Transaction, user: str, role: str) -> None:
    """Change a member's role and record the change, as a mutation does."""
    same = (tables.members.c.organization == "acme") & (tables.members.c.user_id == user)
    tx.connection.execute(update(tables.members).where(same).values(role=role))
    record_change(tx, "acme", "member", user)


@contextmanager
def _count_queries(storage: Storage) -> Iterator[list[str]]:
    """Collect the queries that are sent meanwhile."""
    sent: list[str] = []

    def note(*arguments: object) -> None:
        # The feed asks by itself.
        if threading.current_thread().name != "change-feed" and str(arguments[2]).startswith("SELECT"):
            sent.append(str(arguments[2]))

    event.listen(engine_of(storage), "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine_of(storage), "before_cursor_execute", note)


# Subjects


def test_each_kind_of_subject_resolves_to_the_role(parts: DirectoryParts) -> None:
    """A subject by id, external id, address, token, or presented token has the role. A role alone is no member's."""
    token = parts.tokens["acme/ann"]
    subjects = {
        Subject(SubjectKind.USER_ID, "ann"): "OWNER",
        Subject(SubjectKind.EXTERNAL_ID, "idp:ann"): "OWNER",
        Subject(SubjectKind.EMAIL, "bob@acme.io"): "VIEWER",
        _token(parts.tokens["acme/bob"]): "VIEWER",
        _presented(token): "OWNER",
    }
    resolved = _resolve(parts.directory, "acme", [*subjects, Subject(SubjectKind.ROLE, "AUDITOR")])

    assert {subject.kind for subject in subjects} == set(SubjectKind) - {SubjectKind.ROLE}
    assert resolved == (2, {subject.key: ResolvedSubject(role) for subject, role in subjects.items()})
    assert [_role(parts, subject) for subject in subjects] == list(subjects.values())


def test_unknown_subject_is_left_out(parts: DirectoryParts) -> None:
    """A subject that is unknown in the organization has no entry, and doesn't affect the others."""
    ann = Subject(SubjectKind.USER_ID, "ann")
    unknown = [Subject(kind, value) for kind in LOOKED_UP for value in ("nobody", "", "ANN", "OWNER")]

    assert _resolve(parts.directory, "acme", [*unknown, ann])[1] == _all([ann], "OWNER")


def test_kinds_of_subjects_are_not_confused(parts: DirectoryParts) -> None:
    """An id is no address, an address no id, a token's id no member's, and the other way round."""
    values = ["ann", "ann@acme.io", parts.tokens["acme/ann"].id]
    right = list(zip([SubjectKind.USER_ID, SubjectKind.EMAIL, SubjectKind.TOKEN_ID], values, strict=True))
    found = [
        (kind, value) for kind, value in itertools.product(LOOKED_UP, values) if _role(parts, Subject(kind, value))
    ]

    assert sorted(found, key=str) == sorted(right, key=str)


def test_presented_token_with_another_secret_is_unknown(parts: DirectoryParts) -> None:
    """The right id is not enough: with another digest, or with none, nobody is found."""
    ann, bob = parts.tokens["acme/ann"], parts.tokens["acme/bob"]
    wrong = [bob.digest, bytes(32), ann.digest[:31], ann.digest + b"\0", ann.digest[::-1]]

    assert _role(parts, _presented(ann)) == "OWNER"
    assert [_role(parts, _presented(ann, digest)) for digest in wrong] == [None] * 5
    assert _role(parts, Subject(SubjectKind.PRESENTED, ann.id)) is None


def test_right_and_wrong_secret_in_one_batch(parts: DirectoryParts) -> None:
    """Two presentations of one id are distinguished, whatever their order."""
    ann = parts.tokens["acme/ann"]
    right, wrong = _presented(ann), _presented(ann, bytes(32))

    assert _resolve(parts.directory, "acme", [right, wrong])[1] == _all([right], "OWNER")
    assert _resolve(parts.directory, "acme", [wrong, right])[1] == _all([right], "OWNER")


@pytest.mark.parametrize("end", ["expired", "revoked"])
def test_dead_token_is_unknown(cached_parts: DirectoryParts, end: str) -> None:
    """An expired or revoked token is unknown by id and by text, and authenticates nobody, though it was cached."""
    parts = cached_parts
    expires = now() + (500_000 if end == "expired" else HOUR)
    ann = parts.storage.mutate("acme", lambda tx: _add_token(tx, "acme", "ann", expires))
    before = parts.authenticator.authenticate(ann.text)
    assert _role(parts, _token(ann)) == _role(parts, _presented(ann)) == "OWNER"
    if end == "revoked":
        _revoke(parts.storage, ann)
    else:
        time.sleep(max(0, expires - now()) / 1_000_000)

    assert before is not None
    assert parts.authenticator.authenticate(ann.text) is None
    assert _role(parts, _token(ann)) is None
    assert _role(parts, _presented(ann)) is None
    assert parts.authenticator.authenticate(parts.tokens["acme/ann"].text) is not None
    assert parts.authenticator.authenticate(parts.tokens["acme/bob"].text) is not None


def test_resolved_subject_has_the_restriction(parts: DirectoryParts) -> None:
    """A restricted token as a subject has its holder's role with the restriction; the holder alone has none."""
    minted = token_format.mint(CredentialKind.PERSONAL)
    restriction = Restriction((Permission("authorization", "check", Effect.ALLOW),))
    new = NewCredential(minted, "acme", "ann", None, "service", restriction, "user:ann", 1, now() + HOUR)
    parts.storage.mutate("acme", lambda tx: credential_rows.add(tx, new))
    ann, by_id, by_text = Subject(SubjectKind.USER_ID, "ann"), _token(minted), _presented(minted)
    caller = parts.authenticator.authenticate(minted.text)

    assert _resolve(parts.directory, "acme", [ann, by_id, by_text])[1] == {
        ann.key: ResolvedSubject("OWNER"),
        by_id.key: ResolvedSubject("OWNER", restriction),
        by_text.key: ResolvedSubject("OWNER", restriction),
    }
    assert caller is not None
    assert (caller.role, caller.restriction) == ("OWNER", restriction)


def test_organization_token_acts_with_its_own_role(parts: DirectoryParts) -> None:
    """An organization's token has the role that it was made with, as a subject and as the caller, and no member."""
    minted = token_format.mint(CredentialKind.ORGANIZATION)
    expires = now() + HOUR
    new = NewCredential(minted, "acme", None, "EDITOR", "service", None, "user:ann", 1, expires)
    parts.storage.mutate("acme", lambda tx: credential_rows.add(tx, new))
    subjects = [_token(minted), _presented(minted)]

    assert _resolve(parts.directory, "acme", subjects)[1] == _all(subjects, "EDITOR")
    assert _resolve(parts.directory, "other", subjects)[1] == {}
    assert parts.authenticator.authenticate(minted.text) == Caller(
        "acme", minted.id, CredentialKind.ORGANIZATION, "", "", "EDITOR", None, expires, minted.digest
    )


def test_other_organizations_members_and_tokens_are_unknown(parts: DirectoryParts) -> None:
    """Within an organization, those of another don't exist; the same id or address means this one's member."""
    theirs = parts.tokens["acme/bob"]
    foreign = [
        Subject(SubjectKind.USER_ID, "bob"),
        Subject(SubjectKind.EMAIL, "bob@acme.io"),
        _token(theirs),
        _presented(theirs),
    ]
    ann = Subject(SubjectKind.USER_ID, "ann")

    assert _resolve(parts.directory, "other", [*foreign, ann]) == (1, _all([ann], "VIEWER"))
    assert _role(parts, _presented(parts.tokens["acme/ann"]), "other") is None
    assert _role(parts, _presented(parts.tokens["other/ann"]), "acme") is None


def test_missing_organization_is_not_found(parts: DirectoryParts) -> None:
    """A missing organization is an error, even for a role as the subject."""
    for subjects in ([], [Subject(SubjectKind.ROLE, "OWNER")], [NOBODY]):
        with pytest.raises(OrganizationNotFound):
            _resolve(parts.directory, "nowhere", subjects)


def test_no_subjects_give_the_revision(parts: DirectoryParts) -> None:
    """Without subjects the answer is empty, at the organization's revision."""
    assert _resolve(parts.directory, "acme", []) == (2, {})


# Freshness


def test_change_is_seen_at_once(cached_parts: DirectoryParts) -> None:
    """The next question after a commit has the new role and the new revision; so has the cached caller."""
    parts, ann = cached_parts, cached_parts.tokens["acme/ann"]
    subjects = [Subject(SubjectKind.USER_ID, "ann"), Subject(SubjectKind.EMAIL, "ann@acme.io"), _token(ann)]
    before, caller_before = _resolve(parts.directory, "acme", subjects), parts.authenticator.authenticate(ann.text)
    parts.storage.mutate("acme", lambda tx: _change_role(tx, "ann", "EDITOR"))
    caller = parts.authenticator.authenticate(ann.text)

    assert before == (2, _all(subjects, "OWNER"))
    assert _resolve(parts.directory, "acme", subjects) == (3, _all(subjects, "EDITOR"))
    assert caller_before is not None
    assert caller_before.role == "OWNER"
    assert caller is not None
    assert caller.role == "EDITOR"


def test_change_of_another_process_to_a_subject_is_seen_soon(cached_parts: DirectoryParts, database_url: str) -> None:
    """A change that another process commits is seen at once by a caller with its revision, and soon by all others."""
    parts, ann = cached_parts, cached_parts.tokens["acme/ann"]
    subjects = [Subject(SubjectKind.USER_ID, "ann"), _token(ann), _presented(ann)]
    before = _resolve(parts.directory, "acme", subjects)
    other = Storage(database_url)
    other.mutate("acme", lambda tx: _change_role(tx, "ann", "EDITOR"))
    lowered = _resolve(parts.directory, "acme", subjects, at_least=3)
    _revoke(other, ann)
    other.close()
    wait_until(lambda: _resolve(parts.directory, "acme", [])[0] == 4, 2)

    assert before == (2, _all(subjects, "OWNER"))
    assert lowered == (3, _all(subjects, "EDITOR"))
    assert _resolve(parts.directory, "acme", subjects) == (4, _all(subjects[:1], "EDITOR"))


@pytest.mark.parametrize("change", ["lowered", "revoked"])
def test_change_of_another_process_to_a_caller_is_seen_soon(
    cached_parts: DirectoryParts, database_url: str, change: str
) -> None:
    """Another process's change to a caller takes effect when the feed has it, however often the caller is looked up."""
    parts = cached_parts
    ann = parts.tokens["acme/ann"]
    other = Storage(database_url)
    before = parts.authenticator.authenticate(ann.text)
    if change == "revoked":
        _revoke(other, ann)
    else:
        other.mutate("acme", lambda tx: _change_role(tx, "ann", "VIEWER"))
    other.close()
    began = time.monotonic()
    while (after := parts.authenticator.authenticate(ann.text)) == before and time.monotonic() < began + 10:
        time.sleep(0.01)

    assert before is not None
    assert before.role == "OWNER"
    assert (after.role if after else None) == (None if change == "revoked" else "VIEWER")
    # It takes some ten milliseconds; the rest is for a slow machine.
    assert time.monotonic() < began + 2


def test_cached_credential_costs_no_query(cached_parts: DirectoryParts) -> None:
    """A credential, live or not, is cached until it or its holder changes; so are subjects, known or unknown."""
    parts = cached_parts
    subjects = [NOBODY, Subject(SubjectKind.EMAIL, "ann@acme.io"), _presented(parts.tokens["acme/bob"])]
    known = _resolve(parts.directory, "acme", subjects)
    ann, forged = parts.tokens["acme/ann"].text, _with_secret_of(parts.tokens["acme/ann"], parts.tokens["acme/bob"])
    first = [parts.authenticator.authenticate(text) for text in (ann, forged)]
    with _count_queries(parts.storage) as sent:
        again = [parts.authenticator.authenticate(text) for text in (ann, forged)]
        assert _resolve(parts.directory, "acme", subjects) == known
        queries_when_cached = list(sent)
        parts.storage.mutate("acme", lambda tx: _change_role(tx, "ann", "EDITOR"))
        sent.clear()
        parts.authenticator.authenticate(ann)

    assert first[0] is not None
    assert first[1] is None
    assert again == first
    assert queries_when_cached == []
    # The credential with its holder, what is assigned to the holder, and the revision that this is of.
    assert len(sent) == 3


def test_subjects_are_resolved_in_one_snapshot(parts: DirectoryParts) -> None:
    """A commit between two of the queries is seen by neither: the roles are those of the returned revision."""
    subjects = [Subject(SubjectKind.USER_ID, "ann"), Subject(SubjectKind.EMAIL, "ann@acme.io")]
    committed: list[int] = []

    def promote(tx: Transaction) -> int:
        tx.connection.execute(update(tables.members).values(role="EDITOR"))
        return tx.revision

    def commit_once(*arguments: object) -> None:
        if str(arguments[2]).startswith("SELECT members.user_id") and not committed:
            committed.append(0)
            committed[0] = parts.storage.mutate("acme", promote)

    event.listen(engine_of(parts.storage), "before_cursor_execute", commit_once)
    during = _resolve(parts.directory, "acme", subjects)

    assert committed == [3]
    assert during == (2, _all(subjects, "OWNER"))
    assert _resolve(parts.directory, "acme", subjects) == (3, _all(subjects, "EDITOR"))


def test_batch_takes_one_query_for_each_kind_of_subject(parts: DirectoryParts) -> None:
    """A thousand subjects cost as many queries as six: the revision, ids, addresses and tokens."""
    tokens = [token_format.mint(CredentialKind.PERSONAL) for _ in range(5)]
    subjects = [
        *(Subject(SubjectKind.USER_ID, f"nobody-{number}") for number in range(400)),
        *(Subject(SubjectKind.EMAIL, f"nobody-{number}@acme.io") for number in range(400)),
        *(Subject(SubjectKind.ROLE, f"ROLE-{number}") for number in range(190)),
        *(_token(token) for token in tokens),
        *(_presented(token) for token in tokens),
    ]
    with _count_queries(parts.storage) as sent:
        resolved = _resolve(parts.directory, "acme", subjects)

    assert len(sent) == 4
    assert resolved[1] == {}


# Callers


def test_caller_is_the_tokens_holder(parts: DirectoryParts) -> None:
    """Organization, credential and member, with the role of now, and until when it is one."""
    expires = now() + HOUR
    token = parts.storage.mutate("other", lambda tx: _add_token(tx, "other", "ann", expires))

    assert parts.authenticator.authenticate(token.text) == Caller(
        "other",
        token.id,
        CredentialKind.PERSONAL,
        "ann",
        "ann@acme.io",
        "VIEWER",
        None,
        expires,
        token.digest,
        (),
        "idp:ann",
    )


def test_caller_with_another_secret_is_not_authenticated(parts: DirectoryParts) -> None:
    """A well-formed text with a live token's id and a wrong secret is looked up, and is invalid."""
    forged = _with_secret_of(parts.tokens["acme/ann"], parts.tokens["acme/bob"])
    with _count_queries(parts.storage) as sent:
        caller = parts.authenticator.authenticate(forged)

    assert caller is None
    assert len(sent) == 2
    assert parts.authenticator.authenticate(parts.tokens["acme/ann"].text) is not None


def test_old_secret_works_until_its_overlap_ends(cached_parts: DirectoryParts) -> None:
    """After a rotation the new secret works; the old one does until the overlap ends, though it is cached.

    Each time that it is presented after that, the callback gets the cause, its organization, user and token.
    """
    parts = cached_parts
    misuses: list[tuple[Refusal, str, str, str]] = []
    rotated = (Refusal.ROTATED, "acme", "ann", parts.tokens["acme/ann"].id)
    feed = parts.directory.cache._feed
    recording = make_parts(parts.storage, parts.tokens, feed, lambda *use: misuses.append(use))
    old = parts.tokens["acme/ann"]
    before = recording.authenticator.authenticate(old.text)
    new = token_format.mint(CredentialKind.PERSONAL, old.id)
    until = now() + 500_000
    parts.storage.mutate("acme", lambda tx: credential_rows.rotate(tx, "acme", new, until))
    during = [recording.authenticator.authenticate(text) for text in (old.text, new.text)]
    roles_during = [_role(parts, _presented(old)), _role(parts, _presented(new))]
    time.sleep(max(0, until - now()) / 1_000_000)
    uncached = make_parts(parts.storage, parts.tokens, feed, lambda *use: misuses.append(use))

    assert before is not None
    assert [caller and caller.user_id for caller in during] == ["ann", "ann"]
    assert roles_during == ["OWNER", "OWNER"]
    assert recording.authenticator.authenticate(old.text) is recording.authenticator.authenticate(old.text) is None
    assert misuses == [rotated] * 2
    assert uncached.authenticator.authenticate(old.text) is None
    assert misuses == [rotated] * 3
    assert recording.authenticator.authenticate(new.text) is not None
    assert [_role(parts, _presented(old)), _role(parts, _presented(new))] == [None, "OWNER"]
    assert _resolve(uncached.directory, "acme", [_presented(old)])[1] == {}
    assert misuses == [rotated] * 4


@contextmanager
def _clock(offset: int) -> Iterator[None]:
    """The clock of callers and subjects goes wrong by `offset` microseconds, and is set right at the end."""
    with (
        patch.object(authentication, "now", lambda: now() + offset),
        patch.object(directory, "now", lambda: now() + offset),
    ):
        yield


def _states(parts: DirectoryParts, minted: MintedCredential) -> tuple[bool, bool, bool]:
    """Whether a credential works as the caller's, named by its id, and presented in a question."""
    by_id, presented = _role(parts, _token(minted)), _role(parts, _presented(minted))
    return parts.authenticator.authenticate(minted.text) is not None, by_id is not None, presented is not None


def test_credential_works_at_once_when_the_clock_is_set_right(cached_parts: DirectoryParts) -> None:
    """A credential found expired under a fast clock works again without a query, and so does an old secret."""
    parts, ann, old = cached_parts, cached_parts.tokens["acme/ann"], cached_parts.tokens["acme/bob"]
    new = token_format.mint(CredentialKind.PERSONAL, old.id)
    parts.storage.mutate("acme", lambda tx: credential_rows.rotate(tx, "acme", new, now() + HOUR // 2))
    with _clock(2 * HOUR):
        wrong = [_states(parts, minted) for minted in (ann, new)]
        wrong_old = parts.authenticator.authenticate(old.text), _role(parts, _presented(old))
    with _count_queries(parts.storage) as sent:
        right = [_states(parts, minted) for minted in (ann, new)]
        right_old = parts.authenticator.authenticate(old.text), _role(parts, _presented(old))

    assert wrong == [(False, False, False)] * 2
    assert wrong_old == (None, None)
    assert right == [(True, True, True)] * 2
    assert right_old[0] is not None
    assert right_old[1] == "VIEWER"
    assert sent == []


def test_credential_ends_at_once_when_the_clock_is_set_right(cached_parts: DirectoryParts) -> None:
    """A credential that a slow clock let live is refused as soon as the clock is right, though it is cached."""
    parts = cached_parts
    ann = parts.storage.mutate("acme", lambda tx: _add_token(tx, "acme", "ann", now() - 1))
    with _clock(-HOUR):
        wrong = _states(parts, ann)

    assert wrong == (True, True, True)
    assert _states(parts, ann) == (False, False, False)


def test_deleted_credential_stays_dead_under_any_clock(cached_parts: DirectoryParts) -> None:
    """No clock brings a revoked credential back, nor the wrong secret of a live one."""
    parts, ann, bob = cached_parts, cached_parts.tokens["acme/ann"], cached_parts.tokens["acme/bob"]
    forged = replace(ann, text=_with_secret_of(ann, bob), digest=bob.digest)
    _revoke(parts.storage, bob)
    for offset in (0, 2 * HOUR, -HOUR, 0):
        with _clock(offset):
            assert _states(parts, bob) == (False, False, False)
            assert parts.authenticator.authenticate(forged.text) is None
            assert _role(parts, _presented(forged)) is None


def test_token_with_networks_works_from_these_only(cached_parts: DirectoryParts) -> None:
    """Cached or not, the peer must be in one of the networks; a mapped address is its IPv4 one, and others fail."""
    parts, minted = cached_parts, token_format.mint(CredentialKind.PERSONAL)
    networks = parse_networks(["10.0.0.0/8", "2001:db8::/32"])
    new = NewCredential(minted, "acme", "ann", None, "office", None, "user:ann", 1, now() + HOUR, networks)
    parts.storage.mutate("acme", lambda tx: credential_rows.add(tx, new))
    peers = {
        "ipv4:11.0.0.1:4711": False,
        "ipv4:10.1.2.3:4711": True,
        "ipv6:%5B2001:db8::7%5D:4711": True,
        "ipv6:%5B2001:db9::7%5D:4711": False,
        "ipv6:%5B::ffff:10.1.2.3%5D:4711": True,
        "ipv6:%5B::ffff:11.0.0.1%5D:4711": False,
        "unix:/run/rolecall.sock": False,
        "unix:": False,
        "": False,
        "somewhere": False,
    }
    found = {peer: parts.authenticator.authenticate(minted.text, lambda: peer) for peer in peers}  # noqa: B023
    uncached = make_parts(parts.storage, parts.tokens)
    again = {peer: uncached.authenticator.authenticate(minted.text, lambda: peer) for peer in peers}  # noqa: B023

    assert {peer: caller is not None for peer, caller in found.items()} == peers
    assert {peer: caller is not None for peer, caller in again.items()} == peers
    caller = found["ipv4:10.1.2.3:4711"]
    assert caller is not None
    assert caller.networks == networks


def test_peer_of_a_token_without_networks_is_not_asked_for(cached_parts: DirectoryParts) -> None:
    """A cached credential that may be used from everywhere costs no look at the connection."""
    parts = cached_parts
    peer = Mock(return_value="ipv4:192.0.2.7:4711")
    first = parts.authenticator.authenticate(parts.tokens["acme/ann"].text, peer)
    peer.reset_mock()

    assert first is not None
    assert parts.authenticator.authenticate(parts.tokens["acme/ann"].text, peer) == first
    assert peer.call_count == 0


def test_presented_token_with_networks_needs_the_address(cached_parts: DirectoryParts) -> None:
    """In a question, the address that the service names must be in a network; without one the token is invalid."""
    parts, minted = cached_parts, token_format.mint(CredentialKind.PERSONAL)
    new = NewCredential(
        minted, "acme", "ann", None, "office", None, "user:ann", 1, now() + HOUR, parse_networks(["10.0.0.0/8"])
    )
    parts.storage.mutate("acme", lambda tx: credential_rows.add(tx, new))
    addresses = [parse_address(text) for text in ("10.1.2.3", "11.0.0.1", "::ffff:10.1.2.3", "::1")]
    subjects = [Subject(SubjectKind.PRESENTED, minted.id, minted.digest, address) for address in (*addresses, None)]
    alone = [_role(parts, subject) for subject in subjects for _ in range(2)]
    together = parts.directory.resolve("acme", subjects).subjects

    assert alone == ["OWNER"] * 2 + [None] * 2 + ["OWNER"] * 2 + [None] * 4
    assert [found and found.role for found in together] == ["OWNER", None, "OWNER", None, None]
    # Named by its id, it is not used from anywhere.
    assert _role(parts, _token(minted)) == "OWNER"


def test_unknown_credential_costs_one_query(cached_parts: DirectoryParts) -> None:
    """A well-formed one that nobody was given is looked up once, however often it is presented."""
    parts, text = cached_parts, token_format.mint(CredentialKind.PERSONAL).text
    with _count_queries(parts.storage) as sent:
        callers = [parts.authenticator.authenticate(text) for _ in range(3)]

    assert callers == [None] * 3
    assert len(sent) == 1


def test_missing_organization_fails_no_other_in_the_batch(cached_parts: DirectoryParts) -> None:
    """Lookups of several organizations' calls share a batch, and each has the result that it has alone."""
    parts, ann = cached_parts, Subject(SubjectKind.USER_ID, "ann")
    loaded = [parts.directory.miss(organization, [ann], "").start() for organization in ("nowhere", "acme", "other")]
    assert isinstance(loaded[0].exception(), OrganizationNotFound)
    assert [each.result().subjects for each in loaded[1:]] == [[ResolvedSubject("OWNER")], [ResolvedSubject("VIEWER")]]

    with _count_queries(parts.storage) as sent:
        assert (_role(parts, ann), _role(parts, ann, "other")) == ("OWNER", "VIEWER")
        assert not sent


def test_concurrent_calls_with_one_credential_are_one_query(
    cached_parts: DirectoryParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More callers with one credential than the queue holds are authenticated by one query; none after a revocation."""
    parts = cached_parts
    minted = parts.tokens["acme/ann"]
    lookups: list[float] = []
    holders = credential_rows.holders
    asked, all_asked = threading.Semaphore(0), threading.Event()

    def slow(*args: Any) -> Any:
        lookups.append(time.monotonic())
        held = holders(*args)
        all_asked.wait(10)
        return held

    def ask() -> Any:
        asked.release()
        return parts.authenticator.authenticate(minted.text, lambda: "peer")

    monkeypatch.setattr(credential_rows, "holders", slow)
    with ThreadPoolExecutor(60) as threads:
        early = [threads.submit(ask) for _ in range(50)]
        wait_until(lambda: bool(lookups))
        _revoke(parts.storage, minted)
        late = [threads.submit(ask) for _ in range(10)]
        for _ in range(60):
            asked.acquire()
        # From here on, each of them needs microseconds until it waits for a lookup.
        time.sleep(0.2)
        all_asked.set()

    assert early[0].result() is not None
    assert [each.result() for each in late] == [None] * 10
    # What was read before the revocation is read again, by one of the concurrent callers.
    assert len(lookups) == 2


def test_malformed_credential_costs_no_query(parts: DirectoryParts) -> None:
    """One wrong character, one missing, one too many, nothing or nonsense: the database isn't asked."""
    text = parts.tokens["acme/ann"].text
    other = "A" if text[30] != "A" else "B"
    malformed = [text[:30] + other + text[31:], text[:-1], text + "0", text + "\n", text.lower() + "x", "", "rcp_", "é"]
    malformed += ["\ud800", text[:-1] + "\ud800"]
    with _count_queries(parts.storage) as sent:
        callers = [parts.authenticator.authenticate(one) for one in malformed]
        queries_so_far = list(sent)
        found = parts.authenticator.authenticate(text)

    assert callers == [None] * len(malformed)
    assert queries_so_far == []
    assert found is not None
    # The credential with its holder, what is assigned to the holder, and the revision that this is of.
    assert len(sent) == 3


def test_malformed_credential_is_refused_without_a_database(sqlite_url: str) -> None:
    """A malformed credential is refused though the database is away; only a well-formed one needs it."""
    authenticator = Authenticator(Storage(sqlite_url.replace("rolecall.db", "nowhere/rolecall.db")))
    text = token_format.mint(CredentialKind.PERSONAL).text

    assert authenticator.authenticate(text[:-1]) is None
    with pytest.raises(StorageUnavailable):
        authenticator.authenticate(text)
