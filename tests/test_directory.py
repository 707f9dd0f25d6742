"""Who somebody is: every way of naming a subject, within one organization and as the database has it now."""

import itertools
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from conftest import wait_until
from sqlalchemy import event, update

from rolecall import credentials
from rolecall.credentials import Minted
from rolecall.directory import Directory, Lacking, Standing
from rolecall.domain import (
    Caller,
    CredentialKind,
    Effect,
    Member,
    Organization,
    Permission,
    Subject,
    SubjectKind,
    now,
)
from rolecall.errors import OrganizationNotFound, StorageUnavailable
from rolecall.feed import Feed
from rolecall.remembered import Remembered
from rolecall.storage import Storage, Transaction, tables
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage.changes import record_change
from rolecall.storage.credentials import NewCredential

HOUR = 3_600_000_000
LOOKED_UP = [kind for kind in SubjectKind if kind is not SubjectKind.ROLE]
NOBODY = Subject(SubjectKind.USER_ID, "nobody")


@dataclass
class Town:
    """A database with `acme` (ann OWNER, bob VIEWER) and `other` (ann VIEWER), and a token for each `acme/ann`."""

    storage: Storage
    directory: Directory
    tokens: dict[str, Minted]


@pytest.fixture
def town(storage: Storage) -> Town:
    """The members and their tokens, all live for an hour; each question reads the database."""
    tokens: dict[str, Minted] = {}
    for organization, people in (("acme", {"ann": "OWNER", "bob": "VIEWER"}), ("other", {"ann": "VIEWER"})):
        storage.write(partial(organization_rows.add, organization=Organization(organization, organization, 0, 1)))
        for user, role in people.items():
            tokens[f"{organization}/{user}"] = _add_person(storage, organization, user, role)
    return Town(storage, Directory(storage), tokens)


@pytest.fixture
def remembering(town: Town) -> Iterator[Town]:
    """The same with a directory that remembers, as a server has it."""
    feed = Feed(town.storage, Remembered(1000), max_staleness=60.0)
    feed.start()
    yield Town(town.storage, Directory(town.storage, feed), town.tokens)
    feed.stop()


def _add_person(storage: Storage, organization: str, user: str, role: str) -> Minted:
    def work(tx: Transaction) -> Minted:
        at = now()
        address = f"{user}@acme.io"
        member_rows.add(tx, Member(organization, user, address, user, role, at, at), address)
        return _add_token(tx, organization, user, at + HOUR)

    return storage.mutate(organization, work)


def _add_token(tx: Transaction, organization: str, user: str, expires: int) -> Minted:
    minted = credentials.mint(CredentialKind.PERSONAL)
    new = NewCredential(minted, organization, user, None, "laptop", None, "operator", 1, expires)
    credential_rows.add(tx, new)
    return minted


def _presented(minted: Minted, digest: bytes = b"") -> Subject:
    return Subject(SubjectKind.PRESENTED, minted.id, digest or minted.digest)


def _token(minted: Minted) -> Subject:
    return Subject(SubjectKind.TOKEN_ID, minted.id)


def _with_secret_of(minted: Minted, other: Minted) -> str:
    """A well-formed text with the id of one token and the secret of another."""
    body = f"rcp_{minted.id}_{other.text.split('_')[2][:43]}"
    return body + credentials._checksum(body)


def _role(town: Town, subject: Subject, organization: str = "acme") -> str | None:
    standing = town.directory.standings(organization, [subject]).each[0]
    return standing.role if standing else None


def _stand(
    directory: Directory, organization: str, subjects: Collection[Subject], at_least: int = 0
) -> tuple[int, dict[str, Standing]]:
    """The revision, and who stands there, by key."""
    standings = directory.standings(organization, subjects, at_least=at_least)
    pairs = zip(subjects, standings.each, strict=True)
    return standings.revision, {subject.key: standing for subject, standing in pairs if standing}


def _all(subjects: Iterable[Subject], role: str) -> dict[str, Standing]:
    """Every one of them with this role, and not cut down."""
    return dict.fromkeys([subject.key for subject in subjects], Standing(role))


def _revoke(storage: Storage, minted: Minted) -> None:
    assert storage.mutate("acme", lambda tx: credential_rows.revoke(tx, "acme", minted.id, now()))


def _change_role(tx: Transaction, user: str, role: str) -> None:
    """As a mutation does it: the change is noted."""
    same = (tables.members.c.organization == "acme") & (tables.members.c.user_id == user)
    tx.connection.execute(update(tables.members).where(same).values(role=role))
    record_change(tx, "acme", "member", user)


@contextmanager
def _counting(storage: Storage) -> Iterator[list[str]]:
    """Collects the queries that are sent meanwhile."""
    sent: list[str] = []

    asking = threading.get_ident()

    def note(*arguments: object) -> None:
        # The feed asks by itself.
        if threading.get_ident() == asking and str(arguments[2]).startswith("SELECT"):
            sent.append(str(arguments[2]))

    event.listen(storage._engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(storage._engine, "before_cursor_execute", note)


# Subjects


def test_each_way_of_naming_a_subject_leads_to_the_role(town: Town) -> None:
    """By id, by address, by token, or by what the token's holder presents. A role by itself is nobody's."""
    token = town.tokens["acme/ann"]
    subjects = {
        Subject(SubjectKind.USER_ID, "ann"): "OWNER",
        Subject(SubjectKind.EMAIL, "bob@acme.io"): "VIEWER",
        _token(town.tokens["acme/bob"]): "VIEWER",
        _presented(token): "OWNER",
    }
    standings = _stand(town.directory, "acme", [*subjects, Subject(SubjectKind.ROLE, "AUDITOR")])

    assert {subject.kind for subject in subjects} == set(SubjectKind) - {SubjectKind.ROLE}
    assert standings == (2, {subject.key: Standing(role) for subject, role in subjects.items()})
    assert [_role(town, subject) for subject in subjects] == list(subjects.values())


def test_unknown_subject_is_left_out(town: Town) -> None:
    """Whoever isn't known in the organization has no entry, and doesn't disturb the others."""
    ann = Subject(SubjectKind.USER_ID, "ann")
    unknown = [Subject(kind, value) for kind in LOOKED_UP for value in ("nobody", "", "ANN", "OWNER")]

    assert _stand(town.directory, "acme", [*unknown, ann])[1] == _all([ann], "OWNER")


def test_kinds_are_not_taken_for_each_other(town: Town) -> None:
    """An id is no address, an address no id, a token's id no member's, and the other way round."""
    values = ["ann", "ann@acme.io", town.tokens["acme/ann"].id]
    right = list(zip([SubjectKind.USER_ID, SubjectKind.EMAIL, SubjectKind.TOKEN_ID], values, strict=True))
    found = [(kind, value) for kind, value in itertools.product(LOOKED_UP, values) if _role(town, Subject(kind, value))]

    assert sorted(found, key=str) == sorted(right, key=str)


def test_presented_token_with_another_secret_is_unknown(town: Town) -> None:
    """The right id is not enough: with another digest, or with none, nobody is found."""
    ann, bob = town.tokens["acme/ann"], town.tokens["acme/bob"]
    wrong = [bob.digest, bytes(32), ann.digest[:31], ann.digest + b"\0", ann.digest[::-1]]

    assert _role(town, _presented(ann)) == "OWNER"
    assert [_role(town, _presented(ann, digest)) for digest in wrong] == [None] * 5
    assert _role(town, Subject(SubjectKind.PRESENTED, ann.id)) is None


def test_right_and_wrong_secret_may_stand_in_one_batch(town: Town) -> None:
    """Two presentations of one id are told apart, whatever their order."""
    ann = town.tokens["acme/ann"]
    right, wrong = _presented(ann), _presented(ann, bytes(32))

    assert _stand(town.directory, "acme", [right, wrong])[1] == _all([right], "OWNER")
    assert _stand(town.directory, "acme", [wrong, right])[1] == _all([right], "OWNER")


@pytest.mark.parametrize("end", ["expired", "revoked"])
def test_dead_token_is_unknown(remembering: Town, end: str) -> None:
    """Expired this moment or revoked: neither its id nor its text leads to anybody, and no caller presents it.

    That its caller was remembered doesn't matter.
    """
    town = remembering
    expires = now() + (500_000 if end == "expired" else HOUR)
    ann = town.storage.mutate("acme", lambda tx: _add_token(tx, "acme", "ann", expires))
    before = town.directory.caller(ann.text)
    assert _role(town, _token(ann)) == _role(town, _presented(ann)) == "OWNER"
    if end == "revoked":
        _revoke(town.storage, ann)
    else:
        time.sleep(max(0, expires - now()) / 1_000_000)

    assert before is not None
    assert town.directory.caller(ann.text) is None
    assert _role(town, _token(ann)) is None
    assert _role(town, _presented(ann)) is None
    assert town.directory.caller(town.tokens["acme/ann"].text) is not None
    assert town.directory.caller(town.tokens["acme/bob"].text) is not None


def test_restriction_comes_with_the_standing(town: Town) -> None:
    """Who is named by a restricted token stands with its holder's role, cut down; the holder alone isn't."""
    minted = credentials.mint(CredentialKind.PERSONAL)
    restriction = (Permission("authorization", "check", Effect.ALLOW),)
    new = NewCredential(minted, "acme", "ann", None, "service", restriction, "user:ann", 1, now() + HOUR)
    town.storage.mutate("acme", lambda tx: credential_rows.add(tx, new))
    ann, by_id, by_text = Subject(SubjectKind.USER_ID, "ann"), _token(minted), _presented(minted)
    caller = town.directory.caller(minted.text)

    assert _stand(town.directory, "acme", [ann, by_id, by_text])[1] == {
        ann.key: Standing("OWNER"),
        by_id.key: Standing("OWNER", restriction),
        by_text.key: Standing("OWNER", restriction),
    }
    assert caller is not None
    assert (caller.role, caller.restriction) == ("OWNER", restriction)


def test_organizations_token_stands_with_its_own_role(town: Town) -> None:
    """There is no person behind it: as a subject and as the caller it has the role that it was made with."""
    minted = credentials.mint(CredentialKind.ORGANIZATION)
    expires = now() + HOUR
    new = NewCredential(minted, "acme", None, "EDITOR", "service", None, "user:ann", 1, expires)
    town.storage.mutate("acme", lambda tx: credential_rows.add(tx, new))
    subjects = [_token(minted), _presented(minted)]

    assert _stand(town.directory, "acme", subjects)[1] == _all(subjects, "EDITOR")
    assert _stand(town.directory, "other", subjects)[1] == {}
    assert town.directory.caller(minted.text) == Caller(
        "acme", minted.id, CredentialKind.ORGANIZATION, "", "", "EDITOR", None, expires, minted.digest
    )


def test_other_organizations_members_and_tokens_are_unknown(town: Town) -> None:
    """Within an organization, those of another don't exist; the same id or address means this one's member."""
    theirs = town.tokens["acme/bob"]
    strangers = [
        Subject(SubjectKind.USER_ID, "bob"),
        Subject(SubjectKind.EMAIL, "bob@acme.io"),
        _token(theirs),
        _presented(theirs),
    ]
    ann = Subject(SubjectKind.USER_ID, "ann")

    assert _stand(town.directory, "other", [*strangers, ann]) == (1, _all([ann], "VIEWER"))
    assert _role(town, _presented(town.tokens["acme/ann"]), "other") is None
    assert _role(town, _presented(town.tokens["other/ann"]), "acme") is None


def test_missing_organization_is_not_found(town: Town) -> None:
    """Even a role can't be asked about where there is no organization."""
    for subjects in ([], [Subject(SubjectKind.ROLE, "OWNER")], [NOBODY]):
        with pytest.raises(OrganizationNotFound):
            _stand(town.directory, "nowhere", subjects)


def test_nobody_asked_about_gives_the_revision(town: Town) -> None:
    """Without subjects the answer is empty, at the organization's revision."""
    assert _stand(town.directory, "acme", []) == (2, {})


# Freshness


def test_change_is_seen_at_once(remembering: Town) -> None:
    """The next question after a commit has the new role and the new revision, the remembered caller as well."""
    town, ann = remembering, remembering.tokens["acme/ann"]
    subjects = [Subject(SubjectKind.USER_ID, "ann"), Subject(SubjectKind.EMAIL, "ann@acme.io"), _token(ann)]
    before, caller_before = _stand(town.directory, "acme", subjects), town.directory.caller(ann.text)
    town.storage.mutate("acme", lambda tx: _change_role(tx, "ann", "EDITOR"))
    caller = town.directory.caller(ann.text)

    assert before == (2, _all(subjects, "OWNER"))
    assert _stand(town.directory, "acme", subjects) == (3, _all(subjects, "EDITOR"))
    assert caller_before is not None
    assert caller_before.role == "OWNER"
    assert caller is not None
    assert caller.role == "EDITOR"


def test_anothers_change_to_a_subject_is_seen_soon(remembering: Town, database_url: str) -> None:
    """What another process commits counts at once for who asks for its revision, and soon for everybody."""
    town, ann = remembering, remembering.tokens["acme/ann"]
    subjects = [Subject(SubjectKind.USER_ID, "ann"), _token(ann), _presented(ann)]
    before = _stand(town.directory, "acme", subjects)
    other = Storage(database_url)
    other.mutate("acme", lambda tx: _change_role(tx, "ann", "EDITOR"))
    lowered = _stand(town.directory, "acme", subjects, at_least=3)
    _revoke(other, ann)
    other.close()
    wait_until(lambda: _stand(town.directory, "acme", [])[0] == 4, 2)

    assert before == (2, _all(subjects, "OWNER"))
    assert lowered == (3, _all(subjects, "EDITOR"))
    assert _stand(town.directory, "acme", subjects) == (4, _all(subjects[:1], "EDITOR"))


@pytest.mark.parametrize("change", ["lowered", "revoked"])
def test_anothers_change_to_a_caller_is_seen_soon(remembering: Town, database_url: str, change: str) -> None:
    """What another process commits counts as soon as the feed has it, asked as often as it may be."""
    town = remembering
    ann = town.tokens["acme/ann"]
    other = Storage(database_url)
    before = town.directory.caller(ann.text)
    if change == "revoked":
        _revoke(other, ann)
    else:
        other.mutate("acme", lambda tx: _change_role(tx, "ann", "VIEWER"))
    other.close()
    began = time.monotonic()
    while (after := town.directory.caller(ann.text)) == before and time.monotonic() < began + 10:
        time.sleep(0.01)

    assert before is not None
    assert before.role == "OWNER"
    assert (after.role if after else None) == (None if change == "revoked" else "VIEWER")
    # It takes some ten milliseconds; the rest is for a slow machine.
    assert time.monotonic() < began + 2


def test_what_is_remembered_costs_no_query(remembering: Town) -> None:
    """Live or not, a credential that was looked up is answered from memory, until a change of it or its holder.

    So are subjects, those that there aren't too.
    """
    town = remembering
    subjects = [NOBODY, Subject(SubjectKind.EMAIL, "ann@acme.io"), _presented(town.tokens["acme/bob"])]
    known = _stand(town.directory, "acme", subjects)
    ann, forged = town.tokens["acme/ann"].text, _with_secret_of(town.tokens["acme/ann"], town.tokens["acme/bob"])
    first = [town.directory.caller(text) for text in (ann, forged)]
    with _counting(town.storage) as sent:
        again = [town.directory.caller(text) for text in (ann, forged)]
        assert _stand(town.directory, "acme", subjects) == known
        silent = list(sent)
        town.storage.mutate("acme", lambda tx: _change_role(tx, "ann", "EDITOR"))
        sent.clear()
        town.directory.caller(ann)

    assert first[0] is not None
    assert first[1] is None
    assert again == first
    assert silent == []
    # The credential with its holder, and the revision that this is of.
    assert len(sent) == 2


def test_standings_are_of_one_snapshot(town: Town) -> None:
    """What commits between two of the queries is in none of them: the roles fit the revision beside them."""
    subjects = [Subject(SubjectKind.USER_ID, "ann"), Subject(SubjectKind.EMAIL, "ann@acme.io")]
    committed: list[int] = []

    def promote(tx: Transaction) -> int:
        tx.connection.execute(update(tables.members).values(role="EDITOR"))
        return tx.revision

    def commit_once(*arguments: object) -> None:
        if str(arguments[2]).startswith("SELECT members.user_id") and not committed:
            committed.append(0)
            committed[0] = town.storage.mutate("acme", promote)

    event.listen(town.storage._engine, "before_cursor_execute", commit_once)
    during = _stand(town.directory, "acme", subjects)

    assert committed == [3]
    assert during == (2, _all(subjects, "OWNER"))
    assert _stand(town.directory, "acme", subjects) == (3, _all(subjects, "EDITOR"))


def test_batch_takes_one_query_for_each_way_of_naming(town: Town) -> None:
    """A thousand subjects cost as many queries as six: the revision, ids, addresses, tokens and their old secrets."""
    tokens = [credentials.mint(CredentialKind.PERSONAL) for _ in range(5)]
    subjects = [
        *(Subject(SubjectKind.USER_ID, f"nobody-{number}") for number in range(400)),
        *(Subject(SubjectKind.EMAIL, f"nobody-{number}@acme.io") for number in range(400)),
        *(Subject(SubjectKind.ROLE, f"ROLE-{number}") for number in range(190)),
        *(_token(token) for token in tokens),
        *(_presented(token) for token in tokens),
    ]
    with _counting(town.storage) as sent:
        standings = _stand(town.directory, "acme", subjects)

    assert len(sent) == 5
    assert standings[1] == {}


# Callers


def test_caller_is_the_tokens_holder(town: Town) -> None:
    """Organization, credential and member, with the role of now, and until when it is one."""
    expires = now() + HOUR
    token = town.storage.mutate("other", lambda tx: _add_token(tx, "other", "ann", expires))

    assert town.directory.caller(token.text) == Caller(
        "other", token.id, CredentialKind.PERSONAL, "ann", "ann@acme.io", "VIEWER", None, expires, token.digest
    )


def test_caller_with_another_secret_is_nobody(town: Town) -> None:
    """A well-formed text with a live token's id is looked up, and is neither its secret nor an old one of it."""
    forged = _with_secret_of(town.tokens["acme/ann"], town.tokens["acme/bob"])
    with _counting(town.storage) as sent:
        caller = town.directory.caller(forged)

    assert caller is None
    assert len(sent) == 2
    assert town.directory.caller(town.tokens["acme/ann"].text) is not None


def test_old_secret_works_until_its_overlap_ends(remembering: Town) -> None:
    """After a rotation the new secret is the credential; the old one is too, up to its end and not remembered past it.

    Whose it is, is told when somebody presents it after that.
    """
    town = remembering
    retired: list[tuple[str, str, str]] = []
    feed = town.directory._feed
    minding = Directory(town.storage, feed, on_retired=lambda *whose: retired.append(whose))
    old = town.tokens["acme/ann"]
    before = minding.caller(old.text)
    new = credentials.mint(CredentialKind.PERSONAL, old.id)
    until = now() + 500_000
    town.storage.mutate("acme", lambda tx: credential_rows.rotate(tx, "acme", new, until))
    during = [minding.caller(text) for text in (old.text, new.text)]
    standing_during = [_role(town, _presented(old)), _role(town, _presented(new))]
    time.sleep(max(0, until - now()) / 1_000_000)
    unseen = Directory(town.storage, feed, on_retired=lambda *whose: retired.append(whose))

    assert before is not None
    assert [caller and caller.user_id for caller in during] == ["ann", "ann"]
    assert standing_during == ["OWNER", "OWNER"]
    assert minding.caller(old.text) is minding.caller(old.text) is None
    assert retired == [("acme", "ann", old.id)]
    assert unseen.caller(old.text) is None
    assert retired == [("acme", "ann", old.id)] * 2
    assert minding.caller(new.text) is not None
    assert [_role(town, _presented(old)), _role(town, _presented(new))] == [None, "OWNER"]
    assert _stand(unseen, "acme", [_presented(old)])[1] == {}
    assert set(retired) == {("acme", "ann", old.id)}


def test_unknown_credential_costs_one_query(remembering: Town) -> None:
    """A well-formed one that nobody was given is looked up once, however often it is presented."""
    town, text = remembering, credentials.mint(CredentialKind.PERSONAL).text
    with _counting(town.storage) as sent:
        callers = [town.directory.caller(text) for _ in range(3)]

    assert callers == [None] * 3
    assert len(sent) == 1


def test_one_organizations_absence_is_no_other_ones_trouble(remembering: Town) -> None:
    """What several organizations' calls lack is read together, and each fares as by itself."""
    town, ann = remembering, Subject(SubjectKind.USER_ID, "ann")
    town.directory.remember([Lacking("nowhere", [ann]), Lacking("acme", [ann]), Lacking("other", [ann])])

    with _counting(town.storage) as sent:
        assert (_role(town, ann), _role(town, ann, "other")) == ("OWNER", "VIEWER")
        assert not sent


def test_a_stampede_with_one_credential_is_one_query(remembering: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """More callers than may stand in the queue: all are let in, and whoever comes after a revocation is not."""
    town = remembering
    minted = town.tokens["acme/ann"]
    lookups: list[float] = []
    live_holder = credential_rows.live_holder

    def slow(*args: Any) -> Any:
        lookups.append(time.monotonic())
        held = live_holder(*args)
        time.sleep(0.3)
        return held

    monkeypatch.setattr(credential_rows, "live_holder", slow)
    with ThreadPoolExecutor(60) as threads:
        early = [threads.submit(town.directory.caller, minted.text, lambda: "peer") for _ in range(50)]
        time.sleep(0.1)
        _revoke(town.storage, minted)
        late = [threads.submit(town.directory.caller, minted.text, lambda: "peer") for _ in range(10)]

    assert early[0].result() is not None
    assert [each.result() for each in late] == [None] * 10
    # What was read before the revocation is read once more, by one of those who came together.
    assert len(lookups) == 2


def test_malformed_credential_costs_no_query(town: Town) -> None:
    """One wrong character, one missing, one too many, nothing or nonsense: the database isn't asked."""
    text = town.tokens["acme/ann"].text
    other = "A" if text[30] != "A" else "B"
    malformed = [text[:30] + other + text[31:], text[:-1], text + "0", text + "\n", text.lower() + "x", "", "rcp_", "é"]
    malformed += ["\ud800", text[:-1] + "\ud800"]
    with _counting(town.storage) as sent:
        callers = [town.directory.caller(one) for one in malformed]
        nothing_yet = list(sent)
        found = town.directory.caller(text)

    assert callers == [None] * len(malformed)
    assert nothing_yet == []
    assert found is not None
    # The credential with its holder, and the revision that this is of.
    assert len(sent) == 2


def test_malformed_credential_is_turned_away_without_a_database(sqlite_url: str) -> None:
    """Where the database is away, only a well-formed credential notices."""
    directory = Directory(Storage(sqlite_url.replace("rolecall.db", "nowhere/rolecall.db")))
    text = credentials.mint(CredentialKind.PERSONAL).text

    assert directory.caller(text[:-1]) is None
    with pytest.raises(StorageUnavailable):
        directory.caller(text)
