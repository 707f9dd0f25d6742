"""Maintenance: values can be erased, and old entries dropped; the log verifies afterwards, and records both."""

import io
from pathlib import Path

import pytest

from rolecall import Client, UnauthenticatedClient, audit
from rolecall.audit import Event, Private
from rolecall.client import to_dict
from rolecall.credentials import server_key
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.domain import LinkKind, now
from rolecall.errors import InvalidField, MemberNotFound, OrganizationNotFound
from rolecall.v1 import invitation_pb2
from support.audit_logs import INTACT, dump, entries, head, log_of, record_events, revision, sql, stored, verify
from support.sites import MakeSite, Site, add_member

CANARY = "Canary Q. Zeisig"


def names_of(person: str) -> Event:
    """An event with two values of a person, deep within its details, and one of somebody else."""
    people = [{"name": Private(person, CANARY), "email": Private(person, "Canary@acme.io", "email")}]
    return Event("acme", "operator", "Note", "", {"people": people, "other": Private("other", "Somebody Else")})


def values(site: Site) -> set[str]:
    """Return the personal values that are stored."""
    return {row.value for row in sql(site, "SELECT value FROM audit_values")}


@pytest.mark.parametrize("person", ["p1", "canary@acme.io", "CANARY@ACME.IO"])
def test_a_persons_values_can_be_erased(site: Site, person: str) -> None:
    """Erasing by user id, or by an address however written, makes the person's values `[erased]`; others stay."""
    record_events(site, 120, lambda _: names_of("p1"))
    at, others = revision(site), values(site) - {CANARY, "Canary@acme.io"}
    known = stored(site)[100]
    count = audit.erase(site.storage, log_of(site), "acme", person)

    found = entries(site)
    assert count == 240
    assert values(site) == others
    assert to_dict(found[100])["details"] == {
        "people": [{"name": "[erased]", "email": "[erased]"}],
        "other": "Somebody Else",
    }
    assert (found[-1].actor, found[-1].action, found[-1].object) == ("operator", "EraseAuditValues", "user:p1")
    assert to_dict(found[-1])["details"] == {"users": ["p1"], "values": 240}
    assert len(found) == 127
    assert revision(site) == at + 1
    assert verify(site, known=(known.sequence, known.hash.hex())) == INTACT
    assert verify(site, 50, 60) == INTACT


@pytest.mark.parametrize("by", ["id", "address"])
def test_a_member_is_erased_from_the_invitation_too(site: Site, by: str) -> None:
    """Erasing a member erases their accepted invitation's values too; another person's invitation keeps its address."""
    with Client(site.address, site.tokens["OWNER"]) as owner, UnauthenticatedClient(site.address) as guest:
        joined, waiting = owner.invitations.create([("zed@x.io", "VIEWER"), ("kim@x.io", "VIEWER")]).invitations
        secret = MailedSecrets(server_key.read(site.settings.key_file)).secret(LinkKind.INVITATION, joined.id, 1)
        member = guest.accept_invitation(secret).member
        owner.members.remove(member.user_id)

        audit.erase(site.storage, log_of(site), "acme", member.user_id if by == "id" else "ZED@x.io")

        assert not {value for value in values(site) if "zed" in value}
        assert owner.invitations.get(joined.id).email == "[erased]"
        assert owner.invitations.get(waiting.id).email == "kim@x.io"
    assert verify(site) == INTACT


def test_an_address_finds_a_members_other_values(site: Site) -> None:
    """Erasing by a member's address erases the names of the member's tokens too."""
    count = audit.erase(site.storage, log_of(site), "acme", "ann@acme.io")

    assert count == 2
    assert to_dict(entries(site)[1])["details"]["after"]["display_name"] == "[erased]"
    assert "ann@acme.io" not in values(site)
    assert "admin@acme.io" in values(site)
    assert verify(site) == INTACT


def test_an_address_finds_all_who_had_it(site: Site) -> None:
    """An address that two user ids had, one after the other, erases the values of both."""
    record_events(site, 2, lambda number: names_of(f"p{number}"))
    count = audit.erase(site.storage, log_of(site), "acme", "canary@acme.io")

    assert count == 4
    assert to_dict(entries(site)[-1])["details"] == {"users": ["p0", "p1"], "values": 4}
    assert verify(site) == INTACT


@pytest.mark.parametrize("person", ["nobody", "nobody@acme.io", "' OR 1=1", "%"])
def test_erasing_an_unknown_person_is_an_error(site: Site, person: str) -> None:
    """A person that the log doesn't hold is MEMBER_NOT_FOUND, and nothing is written."""
    before = dump(site)
    with pytest.raises(MemberNotFound):
        audit.erase(site.storage, log_of(site), "acme", person)

    assert dump(site) == before


def test_an_invitee_who_never_joined_is_erased(site: Site) -> None:
    """The address of an expired and of a pending invitation is erased, and the pending one deleted."""
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
    assert verify(site) == INTACT


def test_nobody_is_erased_twice(site: Site) -> None:
    """A second erasure finds nothing to erase."""
    audit.erase(site.storage, log_of(site), "acme", "ann@acme.io")
    with pytest.raises(MemberNotFound):
        audit.erase(site.storage, log_of(site), "acme", "ann@acme.io")

    assert verify(site) == INTACT


def test_erasing_affects_only_the_named_organization(site: Site) -> None:
    """A person of the same id in another organization keeps their values; a missing organization is an error."""
    log = log_of(site)
    sql(site, "INSERT INTO organizations VALUES ('globex', 'globex', 1, 1, 1)")
    site.storage.write(lambda tx: log.begin(tx, "globex"))
    record_events(site, 2, lambda number: names_of("p1") if number else Event("globex", "operator", "Note", "", {
        "name": Private("p1", "Globex's own")}))  # fmt: skip
    audit.erase(site.storage, log, "acme", "p1")
    with pytest.raises(OrganizationNotFound):
        audit.erase(site.storage, log, "initech", "p1")
    with pytest.raises(InvalidField):
        audit.erase(site.storage, log, "acme", "@")

    assert "Globex's own" in values(site)


def test_erased_value_is_not_in_the_database_file(sqlite_site: Site) -> None:
    """Neither the name nor the address is in a byte of the SQLite file or its log once the connections are closed."""
    record_events(sqlite_site, 50, lambda _: names_of("p1"))
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


def test_old_entries_can_be_pruned(site: Site) -> None:
    """Pruning drops entries from before a time; the list begins after them, and the log and its ranges are intact."""
    record_events(site, 130)
    before = stored(site)
    middle = now()
    record_events(site, 110)
    at, known = revision(site), stored(site)[150]
    pruned = audit.prune(site.storage, log_of(site), "acme", middle)

    found = entries(site)
    assert (pruned.entries, pruned.last_sequence) == (len(before), len(before))
    assert [entry.sequence for entry in found] == list(range(len(before) + 1, 248))
    assert found[0].previous_hash == before[-1].hash.hex()
    assert (found[-1].actor, found[-1].action, found[-1].object) == ("operator", "PruneAuditLog", "organization:acme")
    assert to_dict(found[-1])["details"]["entries"] == len(before)
    assert revision(site) == at + 1
    assert min(row.sequence for row in sql(site, "SELECT sequence FROM audit_values")) > len(before)
    assert [row.sequence for row in sql(site, "SELECT sequence FROM audit_checkpoints")] == [200]
    assert verify(site, known=(known.sequence, known.hash.hex())) == INTACT
    for first, last in ((1, 0), (137, 0), (100, 150), (140, 150), (201, 0), (247, 247)):
        assert verify(site, first, last) == INTACT
    for last in (10, pruned.last_sequence):
        with pytest.raises(InvalidField, match="were pruned") as caught:
            verify(site, 1, last)
        assert caught.value.field == "last_sequence"


def test_log_can_be_pruned_completely_and_repeatedly(site: Site) -> None:
    """After all entries are pruned, only the entry about this remains; the log continues, and can be pruned again."""
    record_events(site, 210)
    log = log_of(site)
    first = audit.prune(site.storage, log, "acme", now())
    left = entries(site)
    verdicts = [verify(site)]
    second = audit.prune(site.storage, log, "acme", now())
    verdicts.append(verify(site))
    record_events(site, 150)
    verdicts += [verify(site), verify(site, 300, 310), verify(site, 1, 230)]

    assert (first.entries, first.last_sequence) == (216, 216)
    assert [(entry.sequence, entry.action) for entry in left] == [(217, "PruneAuditLog")]
    assert (second.entries, second.last_sequence) == (1, 217)
    assert verdicts == [INTACT] * 5


def test_pruning_nothing_leaves_an_entry(site: Site) -> None:
    """Pruning with nothing old enough drops nothing, and the log records the attempt."""
    before = stored(site)
    pruned = audit.prune(site.storage, log_of(site), "acme", before[0].time)

    assert (pruned.entries, pruned.last_sequence) == (0, 0)
    assert stored(site)[:-1] == before
    assert to_dict(entries(site)[-1])["details"]["entries"] == 0
    assert verify(site) == INTACT


def test_entries_after_a_younger_one_are_not_pruned(site: Site) -> None:
    """Times may decrease: only the beginning of the log is pruned, up to the first entry that is not old enough."""
    record_events(site, 20)
    times = [entry.time for entry in stored(site)]
    pruned = audit.prune(site.storage, log_of(site), "acme", times[10])
    again = audit.prune(site.storage, log_of(site), "acme", times[10])

    assert pruned.last_sequence == next(number for number, time in enumerate(times) if time >= times[10])
    assert (again.entries, again.last_sequence) == (0, pruned.last_sequence)
    assert verify(site) == INTACT


def test_pruning_affects_only_the_named_organization(site: Site) -> None:
    """Another organization's log doesn't change; a missing organization is an error."""
    log = log_of(site)
    sql(site, "INSERT INTO organizations VALUES ('globex', 'globex', 1, 1, 1)")
    site.storage.write(lambda tx: log.begin(tx, "globex"))
    record_events(site, 120, lambda _: Event("globex", "operator", "Note"))
    before = stored(site, "globex")
    audit.prune(site.storage, log, "acme", now())
    with pytest.raises(OrganizationNotFound):
        audit.prune(site.storage, log, "initech", now())

    assert stored(site, "globex") == before
    assert len(dump(site)["audit_checkpoints"]) == 1


def test_tampering_is_found_after_erasing_and_pruning(site: Site) -> None:
    """After erasing and pruning, tampering is still found."""
    record_events(site, 120)
    middle = now()
    record_events(site, 120)
    audit.prune(site.storage, log_of(site), "acme", middle)
    audit.erase(site.storage, log_of(site), "acme", "p1")
    before = verify(site)
    first = stored(site)[0].sequence
    sql(site, "UPDATE audit_entries SET actor = 'nobody' WHERE sequence = :first", first=first)

    assert before == INTACT
    assert verify(site) == (2, first)
    assert verify(site, head(site).sequence) == INTACT


def test_restored_older_beginning_is_found(site: Site) -> None:
    """With the signed beginning from before a pruning restored, the pruned entries are reported missing."""
    old = head(site)
    record_events(site, 20)
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
    """A member whose token's name is another person's address is not erased with that person."""
    with Client(site.address, site.tokens["CONTRIBUTOR"]) as client:
        client.tokens.create_personal("viewer@acme.io")
    audit.erase(site.storage, log_of(site), "acme", "viewer@acme.io")

    assert "viewer@acme.io" in values(site)
    assert to_dict(entries(site)[-1])["details"]["users"] == [site.members["VIEWER"].user_id]


def test_a_long_log_is_pruned_in_parts(site: Site) -> None:
    """A long log is pruned in parts, so that no writer waits for all of it; each part leaves an intact log."""
    record_events(site, 120)
    length = head(site).sequence
    pruned = audit.prune(site.storage, log_of(site), "acme", now(), at_once=50)

    assert (pruned.entries, pruned.last_sequence) == (length, length)
    assert [entry.action for entry in entries(site)] == ["PruneAuditLog"] * 3
    assert verify(site) == INTACT


def test_restart_of_a_log_is_recorded(site: Site) -> None:
    """Restarting archives a forged log, and the new one's first entry says where the old one ended."""
    record_events(site, 20)
    old = head(site)
    sql(site, "UPDATE audit_heads SET signature = :junk", junk=b"j" * 32)
    archive = io.StringIO()
    count = audit.restart(site.storage, log_of(site), "acme", archive)

    (entry,) = entries(site)
    assert count == len(archive.getvalue().splitlines()) == old.sequence
    assert (entry.sequence, entry.action, entry.actor) == (1, "RestartAuditLog", "operator")
    assert to_dict(entry)["details"] == {
        "entries": count,
        "ended": {"sequence": old.sequence, "hash": bytes(old.hash).hex(), "key_id": old.key_id},
    }
    assert verify(site) == INTACT
