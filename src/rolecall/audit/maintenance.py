"""Operator's maintenance of audit logs: erase a person's values, prune old entries, restart a broken log.

Each of these is itself recorded in the log.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import IO

from rolecall.audit.entries import AuditFormat, export_lines, read_entries
from rolecall.audit.log import ERASE, OPERATOR, AuditLog, Event
from rolecall.audit.verify import verify
from rolecall.credentials import token_format
from rolecall.domain import AuditFilter, now, rfc3339
from rolecall.errors import AuditLogBroken, ConfigError, InvalidField, MemberNotFound
from rolecall.formats import email_address
from rolecall.storage import Storage, Transaction
from rolecall.storage import audit as rows
from rolecall.storage import invitations as invitation_rows
from rolecall.storage import organizations as organization_rows

__all__ = ["Pruned", "begin_first", "check_key", "erase", "prune", "restart"]

# Entries pruned in one transaction, which takes half a second and blocks other writers.
PRUNE_AT_ONCE = 10_000

# Maximum organizations that a warning names.
MAX_NAMED = 5

# The last schema without audit logs.
BEFORE_AUDIT = "0001"


def check_key(storage: Storage, log: AuditLog) -> str:
    """Raise `ConfigError` where logs are signed with another key.

    Returns a warning for the operator where logs have lost their end; empty where none has. Nothing can be changed in
    such an organization; all others are served.
    """

    def work(tx: Transaction) -> tuple[list[str], str | None]:
        return rows.organizations_without_head(tx), rows.other_key_id(tx, log.signer.key_id)

    missing, other = storage.read(work)
    if other:
        raise ConfigError(
            f"The audit logs in the database are signed with the key {other}, this key file holds {log.signer.key_id}:"
            " restore the key file, or set ROLECALL_KEY_FILE to the right one. If the key is lost for good, start a"
            " new log, which records this, with `rolecall operator audit restart`, for each organization."
        )
    if not missing:
        return ""
    names = ", ".join(missing[:MAX_NAMED]) + (" and others" if len(missing) > MAX_NAMED else "")
    return (
        f"Organizations whose audit log has lost its end: {len(missing)} ({names}). Somebody removed it, so nothing"
        " can be changed there: restore the database from a backup, or start new logs, which records this, with"
        f" `rolecall operator audit restart --organization {missing[0]}`."
    )


def begin_first(tx: Transaction, log: AuditLog, found: str | None) -> list[str]:
    """Start the logs of existing organizations, in the upgrade from the schema `found`, if that had no logs yet.

    Returns their names. Called at no other time: a log that is missing later was removed.
    """
    missing = rows.organizations_without_head(tx) if found == BEFORE_AUDIT else []
    for organization in missing:
        log.begin(tx, organization)
        log.record(tx, Event(organization, OPERATOR, "BeginAuditLog", f"organization:{organization}"))
    return missing


def restart(storage: Storage, log: AuditLog, organization: str, archive: IO[str]) -> int:
    """Replace a log that can't be continued: write its entries to `archive`, and start a new one that records this.

    Returns the number of entries. Raises `OrganizationNotFound`.
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
    """Number of pruned entries, and the last sequence number that was ever pruned; 0 for none."""

    entries: int
    last_sequence: int


def erase(storage: Storage, log: AuditLog, organization: str, person: str) -> int:
    """Delete a person's addresses, names and external ids from the log.

    `person` is a user id, an address, or an external id, which stands for the address of who has or had it. Their
    invitations lose them too; a pending one is thereby deleted.
    Returns the number of deleted values. The log still verifies. Raises `MemberNotFound` where no value of the person
    is stored, `InvalidField`, also for an external id of several people, `OrganizationNotFound`.
    """
    given = email_address.parse(person, "person") if "@" in person else None

    def work(tx: Transaction) -> int:
        known, address = (set() if given else {person}), given
        if given is None and not token_format.is_id(person):
            holders = rows.persons_with_external_id(tx, organization, person)
            address = _only_address(tx, organization, holders)
            # Never both: the entry about the erasure names the persons, and must not name the external id.
            known = holders or known
        if address:
            known |= rows.persons_with_address(tx, organization, address.key, address.display)
        # Before they joined, their person in the log was the invitation.
        known |= invitation_rows.accepted_by(tx, organization, known)
        if address:
            known |= invitation_rows.of_address(tx, organization, address.key)
        persons = sorted(known)
        count = invitation_rows.erase(tx, organization, persons, now())
        count += sum(rows.erase(tx, organization, user_id) for user_id in persons)
        if not count:
            raise MemberNotFound(
                f"The audit log of `{organization}` holds no name or address of this person: give the user id, the"
                " address as it was written, or an external id.",
                field="person",
            )
        details = {"users": persons, "values": count}
        log.record(tx, Event(organization, OPERATOR, ERASE, f"user:{persons[0]}", details))
        return count

    return storage.mutate(organization, work)


def _only_address(tx: Transaction, organization: str, persons: Collection[str]) -> email_address.Address | None:
    """Return the address that the holders of an external id share; None where none is known.

    Raises `InvalidField` where they have several: an external id can be given to another person.
    """
    found = {}
    for shown in rows.addresses_of(tx, organization, persons).values():
        address = email_address.parse(shown, "person")
        found[address.key] = address
    if len(found) > 1:
        listed = ", ".join(sorted(found))
        raise InvalidField(
            f"Several people have had this external id: give the address of the one to erase ({listed}).",
            field="person",
        )
    return next(iter(found.values()), None)


def prune(storage: Storage, log: AuditLog, organization: str, before: int, *, at_once: int = PRUNE_AT_ONCE) -> Pruned:
    """Delete the oldest entries, up to the first one from `before` (microseconds) or later; sign the new start.

    `at_once`: maximum entries that one transaction deletes. Raises `InvalidField` where `before` is in the future,
    `AuditLogBroken` where the log isn't intact (pruning would sign a forgery), `OrganizationNotFound`.
    """
    if before > now():
        raise InvalidField("This time is in the future: it would prune all entries. Give a past one.", field="before")

    def verified(tx: Transaction) -> int:
        organization_rows.revision_of(tx, organization)
        verdict = verify(tx, log, organization)
        if not verdict.intact:
            raise AuditLogBroken(
                f"The audit log of {organization} is not intact, so nothing is pruned: {verdict.problem}",
                organization=organization,
            )
        return rows.last_before(tx, organization, before)

    def work(tx: Transaction) -> Pruned:
        head = log.locked_head(tx, organization)
        up_to = min(last, head.start_sequence + at_once)
        digest = rows.hash_at(tx, organization, up_to)
        if digest is None:
            up_to, digest = head.start_sequence, head.start_hash
        rows.prune(tx, organization, up_to)
        signature = log.signer.sign("start", organization, up_to, digest)
        rows.move_start(tx, replace(head, start_sequence=up_to, start_hash=digest, start_signature=signature))
        count = up_to - head.start_sequence
        details = {"before": rfc3339(before), "entries": count, "last_sequence": up_to}
        log.record(tx, Event(organization, OPERATOR, "PruneAuditLog", f"organization:{organization}", details))
        return Pruned(count, up_to)

    last = storage.read(verified)
    # In parts, as other writers wait meanwhile.
    pruned = storage.mutate(organization, work)
    total = pruned.entries
    while 0 < pruned.last_sequence < last and pruned.entries:
        pruned = storage.mutate(organization, work)
        total += pruned.entries
    return Pruned(total, pruned.last_sequence)
