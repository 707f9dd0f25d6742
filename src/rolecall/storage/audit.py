"""Queries on the audit log: entries, their erasable personal values, and the signed positions."""

from collections.abc import Collection, Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, delete, exists, func, insert, or_, select, update

from rolecall.domain import AuditFilter
from rolecall.storage.tables import (
    audit_checkpoints,
    audit_entries,
    audit_heads,
    audit_values,
    invitations,
    members,
    organizations,
)
from rolecall.storage.transaction import Transaction

__all__ = [
    "Checkpoint",
    "Head",
    "PersonalValue",
    "StoredEntry",
    "add",
    "add_checkpoint",
    "add_head",
    "add_values",
    "addresses_of",
    "behind_activation",
    "checkpoints",
    "clear",
    "denied_at",
    "erase",
    "hash_at",
    "head",
    "last_before",
    "move_head",
    "move_start",
    "oldest_since",
    "organizations_without_head",
    "other_key_id",
    "page",
    "persons_with_address",
    "persons_with_external_id",
    "prune",
    "sequence_outside",
    "stream",
    "values",
    "values_of",
]

# Rows fetched at once; also the number of an actor's latest entries that are searched for a recorded denial.
BATCH = 1000


class StoredEntry(NamedTuple):
    """Entry as it is stored and hashed. `details` is JSON with commitments in place of personal values."""

    sequence: int
    time: int
    actor: str
    credential_id: str
    action: str
    object: str
    reason: str
    details: str
    call_id: str
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class PersonalValue:
    """Personal value of an entry: its number in the entry, person and kind, and the parts of its commitment."""

    sequence: int
    number: int
    person: str
    kind: str
    salt: bytes
    value: str


@dataclass(frozen=True, slots=True)
class Head:
    """End of a log, and the last entry that was pruned; sequence number 0 for none.

    `activation` is the sequence number of the last activation of a policy that the log records, or of the last before
    the log began.
    """

    organization: str
    sequence: int
    hash: bytes
    signature: bytes
    start_sequence: int
    start_hash: bytes
    start_signature: bytes
    key_id: str
    activation: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Signed hash of one entry."""

    organization: str
    sequence: int
    hash: bytes
    key_id: str
    signature: bytes


_ENTRY = [audit_entries.c[name] for name in StoredEntry._fields]
_VALUES = select(*(audit_values.c[name] for name in ("sequence", "number", "person", "kind", "salt", "value")))
# Built once, as SQLAlchemy takes longer to build a statement than SQLite to run it.
_ADD = insert(audit_entries)
_ADD_VALUES = insert(audit_values)
_HEAD = select(audit_heads).where(audit_heads.c.organization == bindparam("organization"))
_LOCKED_HEAD = _HEAD.with_for_update()
_MOVE_HEAD = (
    update(audit_heads)
    .where(audit_heads.c.organization == bindparam("named"))
    .values({name: bindparam(name) for name in ("sequence", "hash", "signature", "key_id", "activation")})
)


def add_head(tx: Transaction, new: Head) -> None:
    """Insert the head of a new log."""
    tx.connection.execute(insert(audit_heads).values(**asdict(new)))


def head(tx: Transaction, organization: str, *, locked: bool = False) -> Head | None:
    """Read the head of the log; None if missing. `locked`: other writers wait until this transaction ends."""
    row = tx.connection.execute(_LOCKED_HEAD if locked else _HEAD, {"organization": organization}).one_or_none()
    return Head(*row) if row else None


def clear(tx: Transaction, organization: str) -> None:
    """Delete the whole log, its head included."""
    for table in (audit_values, audit_entries, audit_checkpoints, audit_heads):
        tx.connection.execute(delete(table).where(table.c.organization == organization))


def behind_activation(tx: Transaction, activation: int, after: str, limit: int) -> list[str]:
    """Return at most `limit` organizations after `after`, by name, whose logs don't record this activation yet."""
    behind = select(audit_heads.c.organization).where(
        audit_heads.c.activation < activation, audit_heads.c.organization > after
    )
    return list(tx.connection.scalars(behind.order_by(audit_heads.c.organization).limit(limit)))


def organizations_without_head(tx: Transaction) -> list[str]:
    """Return the organizations whose log has no head."""
    no_head = ~exists().where(audit_heads.c.organization == organizations.c.id)
    return list(tx.connection.scalars(select(organizations.c.id).where(no_head).order_by(organizations.c.id)))


def other_key_id(tx: Transaction, key_id: str) -> str | None:
    """Return the id of another key with which a head is signed; None if all are signed with `key_id`."""
    return tx.connection.scalar(select(audit_heads.c.key_id).where(audit_heads.c.key_id != key_id).limit(1))


def move_head(tx: Transaction, moved: Head) -> None:
    """Store the new end of the log."""
    tx.connection.execute(
        _MOVE_HEAD,
        {
            "named": moved.organization,
            "sequence": moved.sequence,
            "hash": moved.hash,
            "signature": moved.signature,
            "key_id": moved.key_id,
            "activation": moved.activation,
        },
    )


def move_start(tx: Transaction, moved: Head) -> None:
    """Store the new beginning of the log."""
    tx.connection.execute(
        update(audit_heads)
        .where(audit_heads.c.organization == moved.organization)
        .values(start_sequence=moved.start_sequence, start_hash=moved.start_hash, start_signature=moved.start_signature)
    )


def add(tx: Transaction, organization: str, entry: StoredEntry) -> None:
    """Insert an entry."""
    tx.connection.execute(_ADD, {"organization": organization, **entry._asdict()})


def add_values(tx: Transaction, organization: str, new: list[PersonalValue]) -> None:
    """Insert the personal values of an entry."""
    tx.connection.execute(_ADD_VALUES, [{"organization": organization, **asdict(value)} for value in new])


def add_checkpoint(tx: Transaction, new: Checkpoint) -> None:
    """Insert a checkpoint."""
    tx.connection.execute(insert(audit_checkpoints).values(**asdict(new)))


def checkpoints(tx: Transaction, organization: str) -> dict[int, Checkpoint]:
    """Read all checkpoints of the log, by sequence number."""
    rows = tx.connection.execute(select(audit_checkpoints).where(audit_checkpoints.c.organization == organization))
    return {row.sequence: Checkpoint(*row) for row in rows}


def page(tx: Transaction, organization: str, wanted: AuditFilter, below: int | None, limit: int) -> list[StoredEntry]:
    """Read at most `limit` entries, newest first, with sequence numbers below `below`."""
    query = _filtered(organization, wanted)
    if below is not None:
        query = query.where(audit_entries.c.sequence < below)
    rows = tx.connection.execute(query.order_by(audit_entries.c.sequence.desc()).limit(limit))
    return [StoredEntry(*row) for row in rows]


def oldest_since(
    tx: Transaction, organization: str, wanted: AuditFilter, above: int, limit: int | None
) -> list[StoredEntry]:
    """Read at most `limit` entries (None: all), oldest first, with sequence numbers above `above`."""
    query = _filtered(organization, wanted).where(audit_entries.c.sequence > above)
    rows = tx.connection.execute(query.order_by(audit_entries.c.sequence).limit(limit))
    return [StoredEntry(*row) for row in rows]


def stream(tx: Transaction, organization: str, first: int, last: int) -> Generator[StoredEntry]:
    """Stream the entries with the sequence numbers `first` to `last`, in order, 1,000 at a time."""
    query = select(*_ENTRY).where(
        audit_entries.c.organization == organization, audit_entries.c.sequence.between(first, last)
    )
    ordered = query.order_by(audit_entries.c.sequence).execution_options(yield_per=BATCH)
    # A caller that stops reading must not leave a cursor open in the database.
    with closing(tx.connection.execute(ordered)) as rows:
        for row in rows:
            yield StoredEntry._make(row)


def values(tx: Transaction, organization: str, first: int, last: int) -> Generator[PersonalValue]:
    """Stream the personal values of the entries `first` to `last` that weren't erased, in order."""
    query = _VALUES.where(audit_values.c.organization == organization, audit_values.c.sequence.between(first, last))
    ordered = query.order_by(audit_values.c.sequence, audit_values.c.number).execution_options(yield_per=BATCH)
    with closing(tx.connection.execute(ordered)) as rows:
        for row in rows:
            yield PersonalValue(*row)


def sequence_outside(tx: Transaction, organization: str, start: int, end: int) -> int | None:
    """Return the first sequence number that isn't above `start` and at most `end`; None where all are."""
    beyond = or_(audit_entries.c.sequence <= start, audit_entries.c.sequence > end)
    query = select(audit_entries.c.sequence).where(audit_entries.c.organization == organization, beyond)
    return tx.connection.scalar(query.order_by(audit_entries.c.sequence).limit(1))


def values_of(tx: Transaction, organization: str, sequences: Collection[int]) -> list[PersonalValue]:
    """Read the personal values of these entries that weren't erased."""
    rows = tx.connection.execute(
        _VALUES.where(audit_values.c.organization == organization, audit_values.c.sequence.in_(sequences))
    )
    return [PersonalValue(*row) for row in rows]


def denied_at(
    tx: Transaction,
    organization: str,
    actor: str,
    action: str,
    reason: str,
    since: int,
    until: int,
    about: str | None = None,
) -> int | None:
    """Return when a denial of this kind was last recorded, after `since` and up to `until`; None where none was.

    `about` is its object; None for any.
    """
    recent = (
        select(audit_entries.c.time, audit_entries.c.action, audit_entries.c.reason, audit_entries.c.object)
        .where(audit_entries.c.organization == organization, audit_entries.c.actor == actor)
        .order_by(audit_entries.c.sequence.desc())
        .limit(BATCH)
        .subquery()
    )
    same = [recent.c.action == action, recent.c.reason == reason, recent.c.time > since, recent.c.time <= until]
    if about is not None:
        same.append(recent.c.object == about)
    last: int | None = tx.connection.scalar(select(func.max(recent.c.time)).where(*same))
    return last


def persons_with_address(tx: Transaction, organization: str, email: str, display: str) -> set[str]:
    """Return the persons whose address is or was this one, by key or as written: from the members and from the log."""
    found = set(
        tx.connection.scalars(
            select(members.c.user_id).where(members.c.organization == organization, members.c.email_key == email)
        )
    )
    # Not values of any kind: a member could give a token a name that is another person's address.
    was = select(audit_values.c.person).where(
        audit_values.c.organization == organization,
        audit_values.c.kind == "email",
        func.lower(audit_values.c.value).in_([email, display.lower()]),
    )
    return found | set(tx.connection.scalars(was))


def persons_with_external_id(tx: Transaction, organization: str, external_id: str) -> set[str]:
    """Return the persons who have or had this external id: from members, invitations and the log."""
    queries = (
        select(members.c.user_id).where(members.c.organization == organization, members.c.external_id == external_id),
        select(invitations.c.id).where(
            invitations.c.organization == organization, invitations.c.external_id == external_id
        ),
        select(audit_values.c.person).where(
            audit_values.c.organization == organization,
            audit_values.c.kind == "external_id",
            audit_values.c.value == external_id,
        ),
    )
    return {person for query in queries for person in tx.connection.scalars(query)}


def addresses_of(tx: Transaction, organization: str, persons: Collection[str]) -> dict[str, str]:
    """Return the address of each person (user ids and ids of invitations): a member's, else the last in the log.

    Persons without one, such as erased ones, are left out.
    """
    logged = tx.connection.execute(
        select(audit_values.c.person, audit_values.c.value.label("address"))
        .where(
            audit_values.c.organization == organization,
            audit_values.c.person.in_(persons),
            audit_values.c.kind == "email",
        )
        .order_by(audit_values.c.sequence)
    )
    present = tx.connection.execute(
        select(members.c.user_id.label("person"), members.c.email.label("address")).where(
            members.c.organization == organization, members.c.user_id.in_(persons)
        )
    )
    return {row.person: row.address for row in (*logged, *present)}


def erase(tx: Transaction, organization: str, person: str) -> int:
    """Delete all values of a person with their salts. Returns their number."""
    return tx.connection.execute(
        delete(audit_values).where(audit_values.c.organization == organization, audit_values.c.person == person)
    ).rowcount


def last_before(tx: Transaction, organization: str, before: int) -> int:
    """Return the last sequence number up to which all entries are older than `before`; 0 for none."""
    mine = audit_entries.c.organization == organization
    kept = tx.connection.scalar(select(func.min(audit_entries.c.sequence)).where(mine, audit_entries.c.time >= before))
    if kept is not None:
        return int(kept) - 1
    return int(tx.connection.scalar(select(func.max(audit_entries.c.sequence)).where(mine)) or 0)


def hash_at(tx: Transaction, organization: str, sequence: int) -> bytes | None:
    """Read the hash of an entry; None where it doesn't exist."""
    return tx.connection.scalar(
        select(audit_entries.c.hash).where(
            audit_entries.c.organization == organization, audit_entries.c.sequence == sequence
        )
    )


def prune(tx: Transaction, organization: str, upto: int) -> None:
    """Delete the entries and checkpoints up to this sequence number."""
    for table in (audit_entries, audit_checkpoints):
        tx.connection.execute(delete(table).where(table.c.organization == organization, table.c.sequence <= upto))


def _filtered(organization: str, wanted: AuditFilter) -> Select[Any]:
    query = select(*_ENTRY).where(audit_entries.c.organization == organization)
    for column, values in (("actor", wanted.actors), ("object", wanted.objects)):
        if values:
            query = query.where(audit_entries.c[column].in_(values))
    if wanted.action:
        query = query.where(audit_entries.c.action == wanted.action)
    if wanted.start_time is not None:
        query = query.where(audit_entries.c.time >= wanted.start_time)
    if wanted.end_time is not None:
        query = query.where(audit_entries.c.time < wanted.end_time)
    if wanted.denied is not None:
        query = query.where((audit_entries.c.reason != "") if wanted.denied else (audit_entries.c.reason == ""))
    return query
