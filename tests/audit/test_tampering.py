"""Tampering: direct changes of the log's rows are found, and nothing is appended to a forged end."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from rolecall import Client
from rolecall.audit import erase, prune
from rolecall.audit.chain import NO_HASH, Signer, hash_of
from rolecall.credentials.server_key import ServerKey
from rolecall.errors import AuditLogBroken, Internal, InvalidField
from rolecall.server import build_server
from rolecall.services import organizations
from rolecall.storage.audit import StoredEntry
from rolecall.v1 import audit_pb2, organization_pb2, token_pb2
from support.audit_logs import INTACT, call, dump, entries, head, log_of, record_events, restore, sql, stored, verify
from support.sites import MakeSite, Site

TAMPERED = audit_pb2.AUDIT_VERDICT_TAMPERED
LENGTH = 246
FORGER = Signer(ServerKey(b"f" * 32))

Tampering = Callable[[Site], int]


@pytest.fixture
def long_log(site: Site) -> Site:
    """A site whose log has 246 entries, and so checkpoints at 100 and 200."""
    record_events(site, LENGTH - 6)
    assert head(site).sequence == LENGTH
    return site


def insert(site: Site, entry: StoredEntry, organization: str = "acme") -> None:
    """Put a row into the table of entries."""
    names = ", ".join(StoredEntry._fields)
    places = ", ".join(f":{name}" for name in StoredEntry._fields)
    statement = f"INSERT INTO audit_entries (organization, {names}) VALUES (:organization, {places})"
    sql(site, statement, organization=organization, **entry._asdict())


def forged(sequence: int, previous_hash: bytes) -> StoredEntry:
    """Return an entry that follows another one correctly."""
    entry = StoredEntry(sequence, 1, "operator", "", "Forged", "", "", "{}", "", previous_hash, b"")
    return entry._replace(hash=hash_of("acme", entry))


def changed(value: Any) -> Any:
    """The value with one byte or digit changed; text where there was none."""
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1]) + value[1:]
    if isinstance(value, int):
        return value + 1
    return chr(ord(value[-1]) ^ 1).join([value[:-1], ""]) if value else "x"


@pytest.mark.parametrize("sequence", [1, 130, 200, LENGTH])
def test_untouched_logs_are_intact(long_log: Site, sequence: int) -> None:
    """An untouched log is intact, and its head can be kept as a mark."""
    entry = stored(long_log)[sequence - 1]

    assert verify(long_log) == INTACT
    assert verify(long_log, known=(sequence, entry.hash.hex())) == INTACT


def test_untouched_ranges_are_intact(long_log: Site) -> None:
    """Every range of an intact log is intact, at any distance of its ends from the checkpoints."""
    bounds = [0, 1, 2, 50, 99, 100, 101, 199, 200, 201, 245, LENGTH]
    verdicts = {(a, b): verify(long_log, a, b) for a in bounds for b in bounds if not b or a <= b}

    assert {key: verdict for key, verdict in verdicts.items() if verdict != INTACT} == {}


@pytest.mark.parametrize("column", [name for name in StoredEntry._fields if name != "sequence"])
def test_a_changed_byte_is_found(long_log: Site, column: str) -> None:
    """One byte of any column of one entry: the verdict names the entry, and only ranges around it fail."""
    sequence = 151
    value = getattr(stored(long_log)[sequence - 1], column)
    statement = f"UPDATE audit_entries SET {column} = :value WHERE organization = 'acme' AND sequence = :sequence"
    sql(long_log, statement, value=changed(value), sequence=sequence)

    assert verify(long_log) == (TAMPERED, sequence)
    assert verify(long_log, 101, 200) == (TAMPERED, sequence)
    assert verify(long_log, sequence, sequence) == (TAMPERED, sequence)
    assert verify(long_log, 1, 100) == INTACT
    assert verify(long_log, 201) == INTACT


def test_a_changed_number_is_found(long_log: Site) -> None:
    """An entry with another sequence number is missing where it was."""
    sql(long_log, "UPDATE audit_entries SET sequence = 10151 WHERE organization = 'acme' AND sequence = 152")

    assert verify(long_log) == (TAMPERED, 152)
    assert verify(long_log, 1, 100) == INTACT
    assert verify(long_log, 101, 200) == (TAMPERED, 152)


def test_an_entry_moved_to_another_organization_is_found(long_log: Site) -> None:
    """An entry of another organization is missing in its own."""
    sql(long_log, "INSERT INTO organizations VALUES ('globex', 'globex', 1, 1, 1)")
    sql(long_log, "UPDATE audit_entries SET organization = 'globex' WHERE sequence = 152")

    assert verify(long_log) == (TAMPERED, 152)


@pytest.mark.parametrize("sequence", [1, 2, 100, 101, 152, 200, LENGTH])
def test_a_deleted_entry_is_found(long_log: Site, sequence: int) -> None:
    """Where one row is deleted, anywhere, the verdict names it, and ranges without it are intact."""
    sql(long_log, "DELETE FROM audit_entries WHERE organization = 'acme' AND sequence = :sequence", sequence=sequence)

    parts = {(1, 100), (101, 200), (201, LENGTH)}
    changes_made = {part for part in parts if part[0] <= sequence <= part[1]}
    assert verify(long_log) == (TAMPERED, sequence)
    assert {part for part in parts if verify(long_log, *part) == (TAMPERED, sequence)} == changes_made
    assert {part for part in parts if verify(long_log, *part) == INTACT} == parts - changes_made


def swap(site: Site, one: int, other: int) -> None:
    """Exchange the numbers of two entries without personal values."""
    for old, new in ((one, -1), (other, one), (-1, other)):
        statement = "UPDATE audit_entries SET sequence = :new WHERE organization = 'acme' AND sequence = :old"
        sql(site, statement, old=old, new=new)


@pytest.mark.parametrize(("one", "other"), [(152, 153), (152, 184), (104, 240)])
def test_swapped_entries_are_found(long_log: Site, one: int, other: int) -> None:
    """Two rows that changed places: the verdict names the earlier one."""
    swap(long_log, one, other)

    assert verify(long_log) == (TAMPERED, one)
    assert verify(long_log, 1, 100) == INTACT
    assert verify(long_log, 101, 200)[0] == TAMPERED


def test_entry_after_the_end_is_found(long_log: Site) -> None:
    """An extra row that follows on the last one as it should."""
    insert(long_log, forged(LENGTH + 1, stored(long_log)[-1].hash))

    assert verify(long_log) == (TAMPERED, LENGTH + 1)
    assert verify(long_log, 201) == (TAMPERED, LENGTH + 1)
    assert verify(long_log, 1, 100) == INTACT


def test_removed_last_entries_are_found(long_log: Site) -> None:
    """Removed last entries are found: the head still has the last entry's hash."""
    sql(long_log, "DELETE FROM audit_entries WHERE organization = 'acme' AND sequence > 220")

    assert verify(long_log) == (TAMPERED, 221)
    assert verify(long_log, 201) == (TAMPERED, 221)
    assert verify(long_log, 101, 200) == INTACT


@pytest.mark.parametrize("signature", ["checkpoint", "old head", "forger"])
def test_a_head_moved_back_to_a_checkpoint_is_found(long_log: Site, signature: str) -> None:
    """The last entries are removed and the head is set to a checkpoint, whose signature isn't accepted for a head."""
    checkpoint = sql(long_log, "SELECT * FROM audit_checkpoints WHERE sequence = 200")[0]
    signatures = {
        "checkpoint": checkpoint.signature,
        "old head": head(long_log).signature,
        "forger": FORGER.sign("head", "acme", 200, checkpoint.hash),
    }
    sql(long_log, "DELETE FROM audit_entries WHERE organization = 'acme' AND sequence > 200")
    statement = "UPDATE audit_heads SET sequence = 200, hash = :hash, signature = :signature"
    sql(long_log, statement, hash=checkpoint.hash, signature=signatures[signature])

    assert verify(long_log)[0] == TAMPERED
    assert verify(long_log, 101, 200)[0] == TAMPERED


def test_restored_head_is_found_by_the_entries_after_it(long_log: Site) -> None:
    """An earlier, validly signed head is found by the entries after it."""
    old = head(long_log)
    record_events(long_log, 20)
    statement = "UPDATE audit_heads SET sequence = :sequence, hash = :hash, signature = :signature"
    sql(long_log, statement, sequence=old.sequence, hash=old.hash, signature=old.signature)

    assert verify(long_log) == (TAMPERED, LENGTH + 1)


def test_restored_head_is_found_by_a_known_hash(long_log: Site) -> None:
    """An earlier head with the later entries removed is found by the hash of a later entry that was kept elsewhere."""
    old = head(long_log)
    record_events(long_log, 20)
    known = (LENGTH + 20, bytes(head(long_log).hash).hex())
    sql(long_log, "DELETE FROM audit_entries WHERE organization = 'acme' AND sequence > :last", last=LENGTH)
    statement = "UPDATE audit_heads SET sequence = :sequence, hash = :hash, signature = :signature"
    sql(long_log, statement, sequence=old.sequence, hash=old.hash, signature=old.signature)

    assert verify(long_log, known=known) == (TAMPERED, LENGTH + 1)


def test_restored_database_is_found_by_a_known_hash(long_log: Site) -> None:
    """A restored copy of the database: the known entry is missing, or after further entries, differs."""
    old = dump(long_log)
    record_events(long_log, 20)
    sequence, digest = LENGTH + 10, stored(long_log)[LENGTH + 9].hash.hex()
    restore(long_log, old)
    missing = verify(long_log, known=(sequence, digest))
    record_events(long_log, 20)
    other = verify(long_log, known=(sequence, digest))

    assert missing == (TAMPERED, LENGTH + 1)
    assert other == (TAMPERED, sequence)
    assert verify(long_log, 1, 100, known=(sequence, digest)) == (TAMPERED, sequence)


def rewrite(site: Site, sequence: int) -> list[StoredEntry]:
    """Change the actor of one entry, and make all hashes from there on fit again."""
    old = stored(site)
    new: list[StoredEntry] = []
    for entry in old:
        actor = "user:somebody else" if entry.sequence == sequence else entry.actor
        moved = entry._replace(actor=actor, previous_hash=new[-1].hash if new else NO_HASH)
        new.append(moved._replace(hash=hash_of("acme", moved)))
    for entry in new[sequence - 1 :]:
        statement = (
            "UPDATE audit_entries SET actor = :actor, previous_hash = :previous, hash = :hash"
            " WHERE organization = 'acme' AND sequence = :sequence"
        )
        values = {"actor": entry.actor, "previous": entry.previous_hash, "hash": entry.hash}
        sql(site, statement, sequence=entry.sequence, **values)
    return new


@pytest.mark.parametrize(("sequence", "mark"), [(1, 100), (100, 100), (101, 200), (230, LENGTH)])
def test_rehashed_entries_are_found_at_the_next_checkpoint(long_log: Site, sequence: int, mark: int) -> None:
    """All later hashes fit again, but not the next checkpoint; the range before is intact."""
    rewrite(long_log, sequence)

    assert verify(long_log) == (TAMPERED, mark)
    assert verify(long_log, sequence, sequence) == (TAMPERED, mark)
    if sequence > 100:
        assert verify(long_log, 1, 100) == INTACT


@pytest.mark.parametrize("signing", ["kept", "forger"])
@pytest.mark.parametrize("heads", [False, True], ids=["checkpoints", "checkpoints and head"])
def test_rehashed_checkpoints_are_found(long_log: Site, heads: bool, signing: str) -> None:
    """Entries, checkpoints and head are all rewritten, by somebody without the key."""
    new = rewrite(long_log, 30)
    for sequence in (100, 200):
        digest = new[sequence - 1].hash
        statement = "UPDATE audit_checkpoints SET hash = :hash WHERE sequence = :sequence"
        sql(long_log, statement, hash=digest, sequence=sequence)
        if signing == "forger":
            statement = "UPDATE audit_checkpoints SET signature = :signature WHERE sequence = :sequence"
            sql(long_log, statement, signature=FORGER.sign("checkpoint", "acme", sequence, digest), sequence=sequence)
    if heads:
        sql(long_log, "UPDATE audit_heads SET hash = :hash", hash=new[-1].hash)
    if heads and signing == "forger":
        signature = FORGER.sign("head", "acme", LENGTH, new[-1].hash)
        sql(long_log, "UPDATE audit_heads SET signature = :signature", signature=signature)

    assert verify(long_log)[0] == TAMPERED
    assert verify(long_log, 1, 100)[0] == TAMPERED
    if not heads:
        assert verify(long_log) == (TAMPERED, 100)


def test_a_removed_checkpoint_is_found(long_log: Site) -> None:
    """Without the mark at 100, ranges around it can't be verified; those behind the next one can."""
    sql(long_log, "DELETE FROM audit_checkpoints WHERE sequence = 100")

    assert verify(long_log) == (TAMPERED, 100)
    assert verify(long_log, 1, 100) == (TAMPERED, 100)
    assert verify(long_log, 101, 200) == (TAMPERED, 100)
    assert verify(long_log, 201) == INTACT


@pytest.mark.parametrize("column", ["hash", "signature"])
def test_a_changed_checkpoint_is_found(long_log: Site, column: str) -> None:
    """A changed byte of a checkpoint's hash or signature is found."""
    value = bytes(sql(long_log, f"SELECT {column} FROM audit_checkpoints WHERE sequence = 200")[0][0])
    sql(long_log, f"UPDATE audit_checkpoints SET {column} = :value WHERE sequence = 200", value=changed(value))

    assert verify(long_log) == (TAMPERED, 200)
    assert verify(long_log, 101, 200) == (TAMPERED, 200)
    assert verify(long_log, 201) == (TAMPERED, 200)
    assert verify(long_log, 1, 100) == INTACT


def test_a_moved_checkpoint_is_found(long_log: Site) -> None:
    """A mark that names another entry is not accepted."""
    sql(long_log, "UPDATE audit_checkpoints SET sequence = 150 WHERE sequence = 100")

    assert verify(long_log) == (TAMPERED, 100)
    assert verify(long_log, 160, 170) == (TAMPERED, 100)


def test_checkpoint_cannot_replace_the_beginning(long_log: Site) -> None:
    """The first entries are removed, and a checkpoint's signature is used as that of a pruning: it isn't accepted."""
    checkpoint = sql(long_log, "SELECT * FROM audit_checkpoints WHERE sequence = 100")[0]
    sql(long_log, "DELETE FROM audit_entries WHERE organization = 'acme' AND sequence <= 100")
    sql(long_log, "DELETE FROM audit_checkpoints WHERE sequence = 100")
    statement = "UPDATE audit_heads SET start_sequence = 100, start_hash = :hash, start_signature = :signature"
    sql(long_log, statement, hash=checkpoint.hash, signature=checkpoint.signature)

    assert verify(long_log) == (TAMPERED, 101)


def test_end_cannot_replace_the_beginning(long_log: Site) -> None:
    """All entries are removed, and the head's signature is used as that of a pruning: it isn't accepted."""
    sql(long_log, "DELETE FROM audit_entries WHERE organization = 'acme'")
    sql(long_log, "UPDATE audit_heads SET start_sequence = sequence, start_hash = hash, start_signature = signature")

    assert verify(long_log)[0] == TAMPERED


@pytest.mark.parametrize("sequence", [1, 6, 100, LENGTH])
def test_a_moved_beginning_is_found(long_log: Site, sequence: int) -> None:
    """Entries are removed and `start_sequence` is raised without a signature: this is found."""
    digest = stored(long_log)[sequence - 1].hash
    sql(long_log, "DELETE FROM audit_entries WHERE organization = 'acme' AND sequence <= :last", last=sequence)
    sql(
        long_log,
        "UPDATE audit_heads SET start_sequence = :sequence, start_hash = :hash",
        sequence=sequence,
        hash=digest,
    )

    assert verify(long_log) == (TAMPERED, sequence + 1)


def test_a_lost_head_is_found(long_log: Site) -> None:
    """A log without a head can't be verified at all."""
    sql(long_log, "DELETE FROM audit_heads")

    assert verify(long_log) == (TAMPERED, 1)
    assert verify(long_log, 101, 200) == (TAMPERED, 1)


def with_other_value(site: Site) -> None:
    """Another name than was written."""
    sql(site, "UPDATE audit_values SET value = 'mallory' WHERE sequence = 151")


def with_other_salt(site: Site) -> None:
    """Another salt, of the right length."""
    sql(site, "UPDATE audit_values SET salt = :salt WHERE sequence = 151", salt=bytes(16))


def with_other_number(site: Site) -> None:
    """A value in another place of its entry."""
    sql(site, "UPDATE audit_values SET number = 7 WHERE sequence = 151")


def with_more_values(site: Site) -> None:
    """A value for which the entry has no commitment."""
    sql(site, "INSERT INTO audit_values SELECT organization, sequence, 9, person, kind, salt, value FROM audit_values"
        " WHERE sequence = 151")  # fmt: skip


def with_matching_commitment(site: Site) -> None:
    """Another name, and an entry that commits to it."""
    with_other_value(site)
    entry = stored(site)[150]
    salt = bytes(sql(site, "SELECT salt FROM audit_values WHERE sequence = 151")[0][0])
    old = entry.details.partition('"sha256":"')[2][:64]
    details = entry.details.replace(old, hashlib.sha256(salt + b"mallory").hexdigest())
    sql(site, "UPDATE audit_entries SET details = :details WHERE sequence = 151", details=details)


@pytest.mark.parametrize(
    "tamper", [with_other_value, with_other_salt, with_other_number, with_more_values, with_matching_commitment]
)
def test_a_changed_personal_value_is_found(long_log: Site, tamper: Callable[[Site], None]) -> None:
    """A changed name or address doesn't match its commitment."""
    assert sql(long_log, "SELECT 1 FROM audit_values WHERE sequence = 151")
    tamper(long_log)

    assert verify(long_log) == (TAMPERED, 151)
    assert verify(long_log, 101, 200) == (TAMPERED, 151)
    assert verify(long_log, 1, 100) == INTACT
    assert verify(long_log, 201) == INTACT


FORGERIES = {
    "signature": "UPDATE audit_heads SET signature = :junk",
    "hash": "UPDATE audit_heads SET hash = :junk",
    "sequence": "UPDATE audit_heads SET sequence = sequence + 1",
    "start": "UPDATE audit_heads SET start_sequence = 3",
    "start signature": "UPDATE audit_heads SET start_signature = :junk",
    "gone": "DELETE FROM audit_heads",
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES.keys())
def test_no_entry_is_appended_to_a_forged_head(site: Site, forgery: str) -> None:
    """A change would sign a forged head: it fails as INTERNAL, and writes nothing."""
    sql(site, forgery, **({"junk": bytes(32)} if ":junk" in forgery else {}))
    before = dump(site)
    calls: list[tuple[str, Any]] = [
        ("CreatePersonalToken", token_pb2.CreatePersonalTokenRequest(display_name="laptop")),
        (
            "UpdateOrganization",
            organization_pb2.UpdateOrganizationRequest(organization=organization_pb2.Organization(display_name="Acme")),
        ),
    ]
    failures = []
    for rpc, request in calls:
        with pytest.raises(Internal) as caught:
            call(site, rpc, request, site.tokens["OWNER"])
        failures.append(caught.value)

    assert all("head" not in failure.message for failure in failures), "the client isn't told why"
    assert dump(site) == before
    assert verify(site)[0] == TAMPERED


def test_known_hashes_are_verified(sqlite_site: Site) -> None:
    """A mark with another hash, or behind the end, isn't in the log."""
    last = entries(sqlite_site)[-1]

    assert verify(sqlite_site, known=(last.sequence, last.hash)) == INTACT
    assert verify(sqlite_site, known=(last.sequence, "0" * 64)) == (TAMPERED, last.sequence)
    assert verify(sqlite_site, known=(last.sequence + 1, last.hash)) == (TAMPERED, last.sequence + 1)


@pytest.mark.parametrize(("first", "last", "field"), [(LENGTH + 1, 0, "first_sequence"), (1, 400, "last_sequence")])
def test_ranges_after_the_end_are_refused(sqlite_site: Site, first: int, last: int, field: str) -> None:
    """A range of entries beyond the end is refused, rather than reported as intact."""
    with pytest.raises(InvalidField) as refused:
        verify(sqlite_site, first, last)

    assert refused.value.field == field


def test_missing_personal_values_that_nobody_erased_are_found(long_log: Site) -> None:
    """A missing value without an entry that erased it is tampering; after an erasure it isn't."""
    person, first = sql(long_log, "SELECT person, MIN(sequence) FROM audit_values WHERE person LIKE 'p%' GROUP BY 1")[0]
    before = dump(long_log)
    sql(long_log, "DELETE FROM audit_values WHERE person = :person", person=person)
    removed = verify(long_log)
    restore(long_log, before)
    erase(long_log.server.storage, log_of(long_log), "acme", person)

    assert removed == (TAMPERED, first)
    assert verify(long_log) == INTACT


def test_a_forged_prefix_is_not_pruned(long_log: Site) -> None:
    """Entries whose times were forged are not pruned, as pruning would sign the result."""
    sql(long_log, "UPDATE audit_entries SET time = 0 WHERE sequence <= 14")
    before = dump(long_log)

    with pytest.raises(AuditLogBroken):
        prune(long_log.server.storage, log_of(long_log), "acme", 1)
    assert dump(long_log) == before


@pytest.mark.parametrize("sequence", [0, LENGTH + 4])
def test_entries_outside_the_log_are_found(long_log: Site, sequence: int) -> None:
    """An extra row that no other follows on, before the beginning or far behind the end."""
    insert(long_log, forged(sequence, bytes(32)))

    assert verify(long_log) == (TAMPERED, sequence)


def test_a_checkpoint_of_somebody_else_ends_no_range(long_log: Site) -> None:
    """A forged position within a range doesn't stop the verification before the next signed one."""
    rewritten = rewrite(long_log, 101)
    sql(
        long_log,
        "INSERT INTO audit_checkpoints (organization, sequence, hash, key_id, signature)"
        " VALUES ('acme', 150, :hash, 'k', :signature)",
        hash=rewritten[149].hash,
        signature=b"j" * 32,
    )

    assert verify(long_log, 101, 150)[0] == TAMPERED


@pytest.mark.parametrize("column", ["action", "details", "actor"])
def test_corrupt_text_is_found(sqlite_site: Site, column: str) -> None:
    """Bytes that aren't text, which SQLite stores, are tampering, not an outage."""
    record_events(sqlite_site, 200)
    sql(sqlite_site, f"UPDATE audit_entries SET {column} = CAST(X'FF41' AS TEXT) WHERE sequence = 151")

    assert verify(sqlite_site) == (TAMPERED, 151)


def test_values_of_another_type_are_found(sqlite_site: Site) -> None:
    """SQLite stores bytes where text was, and text where bytes were; both are found."""
    record_events(sqlite_site, 200)
    before = dump(sqlite_site)
    sql(sqlite_site, "UPDATE audit_entries SET action = CAST(action AS BLOB) WHERE sequence = 151")
    of_an_entry = verify(sqlite_site)
    restore(sqlite_site, before)
    sql(sqlite_site, "UPDATE audit_heads SET signature = 'junk'")

    assert of_an_entry == (TAMPERED, 151)
    assert verify(sqlite_site)[0] == TAMPERED


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_values SET person = 'another' WHERE sequence = (SELECT MIN(sequence) FROM audit_values)",
        "UPDATE audit_heads SET key_id = 'another'",
        "UPDATE audit_checkpoints SET key_id = 'another'",
    ],
)
def test_person_of_a_value_and_key_id_are_protected(long_log: Site, statement: str) -> None:
    """The person of a value, and the key that is said to have signed, can't be changed without being found."""
    sql(long_log, statement)

    assert verify(long_log)[0] == TAMPERED


def test_first_bad_entry_is_named_even_if_the_end_is_forged(long_log: Site) -> None:
    """An invalid head neither hides which entry was changed nor affects a range between valid checkpoints."""
    sql(long_log, "UPDATE audit_entries SET action = 'Another' WHERE sequence = 5")
    sql(long_log, "UPDATE audit_heads SET signature = :junk", junk=b"j" * 32)

    assert verify(long_log) == (TAMPERED, 5)
    assert verify(long_log, 101, 200) == INTACT


def test_known_hash_at_the_beginning_is_compared(long_log: Site) -> None:
    """After pruning, a kept mark of the last dropped entry is still compared; earlier ones can't be."""
    kept = stored(long_log)[119]
    log, storage = log_of(long_log), long_log.server.storage
    pruned = prune(storage, log, "acme", stored(long_log)[120].time)

    assert pruned.last_sequence == kept.sequence
    assert verify(long_log, known=(kept.sequence, kept.hash.hex())) == INTACT
    assert verify(long_log, known=(kept.sequence, "00" * 32)) == (TAMPERED, kept.sequence)
    with pytest.raises(InvalidField) as refused:
        verify(long_log, known=(kept.sequence - 1, kept.hash.hex()))
    assert refused.value.field == "known"


def test_a_server_starts_beside_a_log_without_an_end(
    make_site: MakeSite, database_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where one organization's log has lost its end, only changes there are refused; the server's log names it."""
    site = make_site(database_url)
    policy = site.server.live.in_force.policy
    other = organizations.create(site.storage, log_of(site), policy, "globex", "gus@globex.io")
    sql(site, "DELETE FROM audit_heads WHERE organization = 'acme'")
    site.server.stop(0)

    server = build_server(site.settings, limits=site.limits)
    server.start()
    with Client(server.address, site.tokens["OWNER"]) as acme, Client(server.address, other.token.text) as globex:
        checked = acme.check("ann@acme.io", "update", "owners")
        with pytest.raises(Internal):
            acme.organization.update("Acme")
        updated = globex.organization.update("Globex")
    server.stop(0)

    assert checked
    assert updated.display_name == "Globex"
    assert "whose audit log has lost its end: 1 (acme)" in capfd.readouterr().out
