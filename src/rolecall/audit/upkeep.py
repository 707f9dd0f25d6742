"""What the operator may do to a log: erase a person's values, and drop what is old. Both leave entries of their own."""

from dataclasses import dataclass, replace
from typing import IO

from rolecall import addresses
from rolecall.audit.export import AuditFormat, export_lines
from rolecall.audit.log import ERASE, OPERATOR, AuditLog, Event
from rolecall.audit.reading import read_entries
from rolecall.audit.verify import verify
from rolecall.domain import AuditFilter, now, rfc3339
from rolecall.errors import AuditLogBroken, ConfigError, InvalidField, MemberNotFound
from rolecall.storage import Storage, Transaction
from rolecall.storage import audit as rows
from rolecall.storage import invitations as invitation_rows
from rolecall.storage import organizations as organization_rows

__all__ = ["Pruned", "begin_first", "check_key", "erase", "prune", "restart"]

# Half a second's work.
PRUNE_AT_ONCE = 10_000

# The last schema without audit logs.
BEFORE_AUDIT = "0001"


def check_key(storage: Storage, log: AuditLog) -> None:
    """Raise `ConfigError` where the logs can't be gone on with: their end is gone, or signed with another key."""

    def work(tx: Transaction) -> tuple[list[str], str | None]:
        return rows.without_head(tx), rows.other_key(tx, log.seal.key_id)

    missing, other = storage.read(work)
    if missing:
        raise ConfigError(
            f"Organizations whose audit log has lost its end: {len(missing)}. Somebody removed it: restore the database"
            f" from a backup, or begin anew, on the record, with `rolecall audit restart --organization {missing[0]}`."
        )
    if other:
        raise ConfigError(
            f"The audit logs in the database are signed with the key {other}, and this key file's is {log.seal.key_id}:"
            " restore the key file, or set ROLECALL_KEY_FILE to the right one. If the key is lost for good, begin anew,"
            " on the record, with `rolecall audit restart`, for each organization."
        )


def begin_first(tx: Transaction, log: AuditLog, found: str | None) -> list[str]:
    """Start the logs of the organizations there are, in the upgrade from the schema `found`, if that had none yet.

    Answers their names. Never at another time: a log that is gone later was removed.
    """
    missing = rows.without_head(tx) if found == BEFORE_AUDIT else []
    for organization in missing:
        log.begin(tx, organization)
        log.record(tx, Event(organization, OPERATOR, "BeginAuditLog", f"organization:{organization}"))
    return missing


def restart(storage: Storage, log: AuditLog, organization: str, archive: IO[str]) -> int:
    """Give up a log that can't be gone on with: write its entries to `archive`, and begin a new one that says so.

    Answers how many entries there were. Raises `OrganizationNotFound`.
    """

    def work(tx: Transaction) -> int:
        archive.seek(0)
        archive.truncate()
        head, sequence, count = rows.head(tx, organization), 0, 0
        while entries := read_entries(tx, organization, AuditFilter(), sequence - 1 if not count else sequence, 500):
            archive.write(export_lines(entries, AuditFormat.JSON_LINES, header=False))
            sequence, count = entries[-1].sequence, count + len(entries)
        archive.flush()
        rows.clear(tx, organization)
        log.begin(tx, organization)
        ended = {"sequence": head.sequence, "hash": head.hash.hex(), "key_id": head.key_id} if head else None
        details = {"entries": count, "ended": ended}
        log.record(tx, Event(organization, OPERATOR, "RestartAuditLog", f"organization:{organization}", details))
        return count

    return storage.mutate(organization, work)


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many entries went, and the last that ever did; 0 for none."""

    entries: int
    last_sequence: int


def erase(storage: Storage, log: AuditLog, organization: str, person: str) -> int:
    """Delete the addresses and names in the log that are a person's. `person` is a user id or an address.

    Invitations of theirs lose the address too; one that is pending is withdrawn by that.
    Answers how many there were. The log still verifies. Raises `MemberNotFound` where nothing is known of the person,
    `InvalidField`, `OrganizationNotFound`.
    """
    address = addresses.parse(person, "person") if "@" in person else None

    def work(tx: Transaction) -> int:
        known = rows.persons_with(tx, organization, address.key, address.display) if address else {person}
        # Before they joined, an invitation stood for them.
        known |= invitation_rows.accepted_by(tx, organization, known)
        if address:
            known |= invitation_rows.of_address(tx, organization, address.key)
        persons = sorted(known)
        count = invitation_rows.forget(tx, organization, persons, now())
        count += sum(rows.erase(tx, organization, user_id) for user_id in persons)
        if not count:
            raise MemberNotFound(
                f"The audit log of `{organization}` holds no name or address of such a person: give the user id, or the"
                " address as it was.",
                field="person",
            )
        details = {"users": persons, "values": count}
        log.record(tx, Event(organization, OPERATOR, ERASE, f"user:{persons[0]}", details))
        return count

    return storage.mutate(organization, work)


def prune(storage: Storage, log: AuditLog, organization: str, before: int) -> Pruned:
    """Delete the oldest entries, as long as they are from before the moment `before`; sign where the log begins now.

    Raises `InvalidField` where that is still to come, `AuditLogBroken` where the log isn't whole: pruning would sign
    what somebody forged. `OrganizationNotFound`.
    """
    if before > now():
        raise InvalidField("That moment is still to come: all entries would go. Give one that is over.", field="before")

    def look(tx: Transaction) -> int:
        organization_rows.revision_of(tx, organization)
        verdict = verify(tx, log, organization)
        if not verdict.whole:
            raise AuditLogBroken(
                f"The audit log of {organization} is not whole, so nothing is pruned: {verdict.problem}",
                organization=organization,
            )
        return rows.last_before(tx, organization, before)

    def work(tx: Transaction) -> Pruned:
        head = log.locked_head(tx, organization)
        upto = min(last, head.start_sequence + PRUNE_AT_ONCE)
        digest = rows.hash_at(tx, organization, upto)
        if digest is None:
            upto, digest = head.start_sequence, head.start_hash
        rows.prune(tx, organization, upto)
        signature = log.seal.sign("start", organization, upto, digest)
        rows.move_start(tx, replace(head, start_sequence=upto, start_hash=digest, start_signature=signature))
        gone = upto - head.start_sequence
        details = {"before": rfc3339(before), "entries": gone, "last_sequence": upto}
        log.record(tx, Event(organization, OPERATOR, "PruneAuditLog", f"organization:{organization}", details))
        return Pruned(gone, upto)

    last = storage.read(look)
    # In parts, as nobody else writes meanwhile.
    pruned = storage.mutate(organization, work)
    total = pruned.entries
    while 0 < pruned.last_sequence < last and pruned.entries:
        pruned = storage.mutate(organization, work)
        total += pruned.entries
    return Pruned(total, pruned.last_sequence)
