"""A person's values can be erased, and old entries dropped; the log verifies afterwards, and tells of both."""

import io
from pathlib import Path

import pytest
from audit_logs import WHOLE, dump, entries, grow, head, log_of, revision, sql, stored, verify
from conftest import MakeSite, Site, add_member

from rolecall import Client, Guest, audit, keys
from rolecall.audit import Event, Private, upkeep
from rolecall.client import plain
from rolecall.domain import LinkKind, now
from rolecall.errors import InvalidField, MemberNotFound, OrganizationNotFound
from rolecall.links import Links
from rolecall.v1 import invitation_pb2

CANARY = "Canary Q. Zeisig"


def names_of(person: str) -> Event:
    """An event with two values of a person, deep within its details, and one of somebody else."""
    people = [{"name": Private(person, CANARY), "email": Private(person, "Canary@acme.io", "email")}]
    return Event("acme", "operator", "Note", "", {"people": people, "other": Private("other", "Somebody Else")})


def values(site: Site) -> set[str]:
    """The personal values that are still there."""
    return {row.value for row in sql(site, "SELECT value FROM audit_values")}


@pytest.mark.parametrize("person", ["p1", "canary@acme.io", "CANARY@ACME.IO"])
def test_a_persons_values_can_be_erased(site: Site, person: str) -> None:
    """By user id, or by an address however written: all values of that person read `[erased]`, others stay."""
    grow(site, 120, lambda _: names_of("p1"))
    at, others = revision(site), values(site) - {CANARY, "Canary@acme.io"}
    known = stored(site)[100]
    count = audit.erase(site.storage, log_of(site), "acme", person)

    found = entries(site)
    assert count == 240
    assert values(site) == others
    assert plain(found[100])["details"] == {
        "people": [{"name": "[erased]", "email": "[erased]"}],
        "other": "Somebody Else",
    }
    assert (found[-1].actor, found[-1].action, found[-1].object) == ("operator", "EraseAuditValues", "user:p1")
    assert plain(found[-1])["details"] == {"users": ["p1"], "values": 240}
    assert len(found) == 127
    assert revision(site) == at + 1
    assert verify(site, known=(known.sequence, known.hash.hex())) == WHOLE
    assert verify(site, 50, 60) == WHOLE


@pytest.mark.parametrize("by", ["id", "address"])
def test_whoever_was_invited_is_erased_from_the_invitation_too(site: Site, by: str) -> None:
    """Before a person joined, an invitation stood for them; a pending one of somebody else keeps its address."""
    with Client(site.address, site.tokens["OWNER"]) as owner, Guest(site.address) as guest:
        joined, waiting = owner.invitations.create([("zed@x.io", "VIEWER"), ("kim@x.io", "VIEWER")]).invitations
        secret = Links(keys.read(site.settings.key_file)).secret(LinkKind.INVITATION, joined.id, 1)
        member = guest.accept_invitation(secret).member
        owner.members.remove(member.user_id)

        audit.erase(site.storage, log_of(site), "acme", member.user_id if by == "id" else "ZED@x.io")

        assert not {value for value in values(site) if "zed" in value}
        assert owner.invitations.get(joined.id).email == "[erased]"
        assert owner.invitations.get(waiting.id).email == "kim@x.io"
    assert verify(site) == WHOLE


def test_an_address_finds_a_members_other_values(site: Site) -> None:
    """Who gives a member's address erases what the member's tokens are called, too."""
    count = audit.erase(site.storage, log_of(site), "acme", "ann@acme.io")

    assert count == 2
    assert plain(entries(site)[1])["details"]["after"]["name"] == "[erased]"
    assert "ann@acme.io" not in values(site)
    assert "admin@acme.io" in values(site)
    assert verify(site) == WHOLE


def test_an_address_finds_all_who_had_it(site: Site) -> None:
    """A person who was removed and came back under another id had the address twice."""
    grow(site, 2, lambda number: names_of(f"p{number}"))
    count = audit.erase(site.storage, log_of(site), "acme", "canary@acme.io")

    assert count == 4
    assert plain(entries(site)[-1])["details"] == {"users": ["p0", "p1"], "values": 4}
    assert verify(site) == WHOLE


@pytest.mark.parametrize("person", ["nobody", "nobody@acme.io", "' OR 1=1", "%"])
def test_nobody_can_not_be_erased(site: Site, person: str) -> None:
    """A person of whom the log knows nothing is MEMBER_NOT_FOUND, and nothing is written."""
    before = dump(site)
    with pytest.raises(MemberNotFound):
        audit.erase(site.storage, log_of(site), "acme", person)

    assert dump(site) == before


def test_whoever_was_invited_in_vain_is_erased(site: Site) -> None:
    """Expired or pending, one after the other: the address is gone, and a pending invitation is withdrawn."""
    with Client(site.address, site.tokens["OWNER"]) as owner:
        people = [(f"er{number}@x.io", "VIEWER") for number in range(4)]
        made = list(owner.invitations.create(people).invitations)
        past = "UPDATE invitations SET expire_time = 1 WHERE email_key IN ('er0@x.io', 'er1@x.io')"
        sql(site, past)
        for email, _ in people:
            assert audit.erase(site.storage, log_of(site), "acme", email.upper()) >= 2
        found = [owner.invitations.get(one.id) for one in made]
        with pytest.raises(MemberNotFound):
            audit.erase(site.storage, log_of(site), "acme", "er0@x.io")
        again = owner.invitations.create(people).invitations

    assert {one.email for one in found} == {"[erased]"}
    states = [invitation_pb2.InvitationState.Name(one.state).rpartition("_")[2] for one in found]
    assert states == ["EXPIRED", "EXPIRED", "DELETED", "DELETED"]
    assert len(again) == 4
    assert verify(site) == WHOLE


def test_nobody_is_erased_twice(site: Site) -> None:
    """After an erasure there is nothing to erase."""
    audit.erase(site.storage, log_of(site), "acme", "ann@acme.io")
    with pytest.raises(MemberNotFound):
        audit.erase(site.storage, log_of(site), "acme", "ann@acme.io")

    assert verify(site) == WHOLE


def test_only_the_named_organizations_values_are_erased(site: Site) -> None:
    """A person of the same id in another organization keeps what is theirs; an organization must be there."""
    log = log_of(site)
    sql(site, "INSERT INTO organizations VALUES ('globex', 'globex', 1, 1, 1)")
    site.storage.write(lambda tx: log.begin(tx, "globex"))
    grow(site, 2, lambda number: names_of("p1") if number else Event("globex", "operator", "Note", "", {
        "name": Private("p1", "Globex's own")}))  # fmt: skip
    audit.erase(site.storage, log, "acme", "p1")
    with pytest.raises(OrganizationNotFound):
        audit.erase(site.storage, log, "initech", "p1")
    with pytest.raises(InvalidField):
        audit.erase(site.storage, log, "acme", "@")

    assert "Globex's own" in values(site)


def test_an_erased_value_is_gone_from_the_file(sqlite_site: Site) -> None:
    """Neither the name nor the address is in a byte of the SQLite file or its log once the connections are closed."""
    grow(sqlite_site, 50, lambda _: names_of("p1"))
    path = Path(sqlite_site.settings.database.removeprefix("sqlite:///"))

    def close_and_read() -> bytes:
        sqlite_site.storage.close()
        sqlite_site.server.storage.close()
        return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))

    before = close_and_read()
    audit.erase(sqlite_site.storage, log_of(sqlite_site), "acme", "p1")
    sqlite_site.server.stop(0)
    after = close_and_read()

    assert before.count(CANARY.encode()) >= 50
    assert CANARY.encode() not in after
    assert b"Canary@acme.io" not in after
    assert b"Somebody Else" in after


def test_old_entries_can_be_dropped(site: Site) -> None:
    """What is from before the moment goes; the list begins behind, and the log is whole, as are its ranges."""
    grow(site, 130)
    before = stored(site)
    middle = now()
    grow(site, 110)
    at, known = revision(site), stored(site)[150]
    pruned = audit.prune(site.storage, log_of(site), "acme", middle)

    found = entries(site)
    assert (pruned.entries, pruned.last_sequence) == (len(before), len(before))
    assert [entry.sequence for entry in found] == list(range(len(before) + 1, 248))
    assert found[0].previous_hash == before[-1].hash.hex()
    assert (found[-1].actor, found[-1].action, found[-1].object) == ("operator", "PruneAuditLog", "organization:acme")
    assert plain(found[-1])["details"]["entries"] == len(before)
    assert revision(site) == at + 1
    assert min(row.sequence for row in sql(site, "SELECT sequence FROM audit_values")) > len(before)
    assert [row.sequence for row in sql(site, "SELECT sequence FROM audit_checkpoints")] == [200]
    assert verify(site, known=(known.sequence, known.hash.hex())) == WHOLE
    for first, last in ((1, 0), (137, 0), (100, 150), (140, 150), (201, 0), (247, 247)):
        assert verify(site, first, last) == WHOLE
    for last in (10, pruned.last_sequence):
        with pytest.raises(InvalidField, match="were pruned") as caught:
            verify(site, 1, last)
        assert caught.value.field == "last_sequence"


def test_everything_can_be_dropped_again_and_again(site: Site) -> None:
    """Only the entry that tells of it is left; the log goes on, and can be dropped once more."""
    grow(site, 210)
    log = log_of(site)
    first = audit.prune(site.storage, log, "acme", now())
    left = entries(site)
    verdicts = [verify(site)]
    second = audit.prune(site.storage, log, "acme", now())
    verdicts.append(verify(site))
    grow(site, 150)
    verdicts += [verify(site), verify(site, 300, 310), verify(site, 1, 230)]

    assert (first.entries, first.last_sequence) == (216, 216)
    assert [(entry.sequence, entry.action) for entry in left] == [(217, "PruneAuditLog")]
    assert (second.entries, second.last_sequence) == (1, 217)
    assert verdicts == [WHOLE] * 5


def test_dropping_nothing_leaves_an_entry(site: Site) -> None:
    """Nothing is old enough: nothing goes, and the log tells of the attempt."""
    before = stored(site)
    pruned = audit.prune(site.storage, log_of(site), "acme", before[0].time)

    assert (pruned.entries, pruned.last_sequence) == (0, 0)
    assert stored(site)[:-1] == before
    assert plain(entries(site)[-1])["details"]["entries"] == 0
    assert verify(site) == WHOLE


def test_entries_behind_a_younger_one_are_not_dropped(site: Site) -> None:
    """Times needn't rise: only the beginning of the log goes, up to the first entry that is to stay."""
    grow(site, 20)
    times = [entry.time for entry in stored(site)]
    pruned = audit.prune(site.storage, log_of(site), "acme", times[10])
    again = audit.prune(site.storage, log_of(site), "acme", times[10])

    assert pruned.last_sequence == next(number for number, time in enumerate(times) if time >= times[10])
    assert (again.entries, again.last_sequence) == (0, pruned.last_sequence)
    assert verify(site) == WHOLE


def test_only_the_named_organizations_entries_are_dropped(site: Site) -> None:
    """Another organization's log stays as it is; an organization must be there."""
    log = log_of(site)
    sql(site, "INSERT INTO organizations VALUES ('globex', 'globex', 1, 1, 1)")
    site.storage.write(lambda tx: log.begin(tx, "globex"))
    grow(site, 120, lambda _: Event("globex", "operator", "Note"))
    before = stored(site, "globex")
    audit.prune(site.storage, log, "acme", now())
    with pytest.raises(OrganizationNotFound):
        audit.prune(site.storage, log, "initech", now())

    assert stored(site, "globex") == before
    assert len(dump(site)["audit_checkpoints"]) == 1


def test_tampering_is_found_after_erasing_and_dropping(site: Site) -> None:
    """Erasing and dropping leave no hole to tamper through."""
    grow(site, 120)
    middle = now()
    grow(site, 120)
    audit.prune(site.storage, log_of(site), "acme", middle)
    audit.erase(site.storage, log_of(site), "acme", "p1")
    before = verify(site)
    first = stored(site)[0].sequence
    sql(site, "UPDATE audit_entries SET actor = 'nobody' WHERE sequence = :first", first=first)

    assert before == WHOLE
    assert verify(site) == (2, first)
    assert verify(site, head(site).sequence) == WHOLE


def test_an_older_beginning_put_back_is_found(site: Site) -> None:
    """The signed beginning from before a pruning: the entries that it speaks of are missing."""
    old = head(site)
    grow(site, 20)
    audit.prune(site.storage, log_of(site), "acme", now())
    statement = "UPDATE audit_heads SET start_sequence = :sequence, start_hash = :hash, start_signature = :signature"
    sql(site, statement, sequence=old.start_sequence, hash=old.start_hash, signature=old.start_signature)

    assert verify(site) == (2, 1)


def test_erasing_a_member_without_values_finds_nothing(make_site: MakeSite, sqlite_url: str) -> None:
    """A member whom the log never named is not found in it."""
    site = make_site(sqlite_url)
    add_member(site.storage, "acme", "zoe@acme.io", "VIEWER")

    with pytest.raises(MemberNotFound):
        audit.erase(site.storage, log_of(site), "acme", "zoe@acme.io")


def test_a_name_like_an_address_erases_nobody_else(site: Site) -> None:
    """A member who called a token like somebody's address isn't taken for that person."""
    with Client(site.address, site.tokens["CONTRIBUTOR"]) as client:
        client.tokens.create_personal("viewer@acme.io")
    audit.erase(site.storage, log_of(site), "acme", "viewer@acme.io")

    assert "viewer@acme.io" in values(site)
    assert plain(entries(site)[-1])["details"]["users"] == [site.members["VIEWER"].user_id]


def test_a_long_log_is_pruned_in_parts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """No writer waits for the whole of it; each part leaves a log that is whole."""
    monkeypatch.setattr(upkeep, "PRUNE_AT_ONCE", 50)
    grow(site, 120)
    length = head(site).sequence
    pruned = audit.prune(site.storage, log_of(site), "acme", now())

    assert (pruned.entries, pruned.last_sequence) == (length, length)
    assert [entry.action for entry in entries(site)] == ["PruneAuditLog"] * 3
    assert verify(site) == WHOLE


def test_a_log_begins_anew_on_the_record(site: Site) -> None:
    """What a forged log held is archived, and the new one's first entry tells where the old one ended."""
    grow(site, 20)
    old = head(site)
    sql(site, "UPDATE audit_heads SET signature = :junk", junk=b"j" * 32)
    archive = io.StringIO()
    count = audit.restart(site.storage, log_of(site), "acme", archive)

    (entry,) = entries(site)
    assert count == len(archive.getvalue().splitlines()) == old.sequence
    assert (entry.sequence, entry.action, entry.actor) == (1, "RestartAuditLog", "operator")
    assert plain(entry)["details"] == {
        "entries": count,
        "ended": {"sequence": old.sequence, "hash": bytes(old.hash).hex(), "key_id": old.key_id},
    }
    assert verify(site) == WHOLE
