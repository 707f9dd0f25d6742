"""What the operator may do to a log: erase a person's values, and drop what is old. Both leave entries of their own."""

from dataclasses import dataclass, replace

from rolecall import addresses
from rolecall.audit.log import OPERATOR, AuditLog, Event
from rolecall.domain import rfc3339
from rolecall.errors import ConfigError, MemberNotFound
from rolecall.storage import Storage, Transaction
from rolecall.storage import audit as rows

__all__ = ["Pruned", "begin_missing", "check_key", "erase", "prune"]


def check_key(storage: Storage, log: AuditLog) -> None:
    """Raise `ConfigError` where the logs can't be gone on with: no beginning, or signed with another key."""

    def work(tx: Transaction) -> tuple[list[str], str | None]:
        return rows.without_head(tx), rows.other_key(tx, log.seal.key_id)

    missing, other = storage.read(work)
    if missing:
        raise ConfigError(f"Organizations without an audit log: {len(missing)}. Run `rolecall db upgrade`.")
    if other:
        raise ConfigError(
            f"The audit logs in the database are signed with the key {other}, and this server's is {log.seal.key_id}:"
            " restore the key file, or set ROLECALL_KEY_FILE to the right one."
        )


def begin_missing(storage: Storage, log: AuditLog) -> list[str]:
    """Start the logs of organizations from before there were any; answers their names."""

    def work(tx: Transaction) -> list[str]:
        missing = rows.without_head(tx)
        for organization in missing:
            log.begin(tx, organization)
        return missing

    return storage.write(work)


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many entries went, and the last that ever did; 0 for none."""

    entries: int
    last_sequence: int


def erase(storage: Storage, log: AuditLog, organization: str, person: str) -> int:
    """Delete the addresses and names in the log that are a person's. `person` is a user id or an address.

    Answers how many there were. The log still verifies. Raises `MemberNotFound` where nothing is known of the person,
    `InvalidField`, `OrganizationNotFound`.
    """
    email = addresses.parse(person, "person").key if "@" in person else ""

    def work(tx: Transaction) -> int:
        persons = sorted(rows.persons_with(tx, organization, email)) if email else [person]
        count = sum(rows.erase(tx, organization, user_id) for user_id in persons)
        if not count:
            raise MemberNotFound(
                f"The audit log of `{organization}` holds no name or address of such a person: give the user id, or the"
                " address as it was.",
                field="person",
            )
        details = {"users": persons, "values": count}
        log.record(tx, Event(organization, OPERATOR, "EraseAuditValues", f"user:{persons[0]}", details))
        return count

    return storage.mutate(organization, work)


def prune(storage: Storage, log: AuditLog, organization: str, before: int) -> Pruned:
    """Delete the oldest entries, as long as they are from before the moment `before`; sign where the log begins now.

    Raises `OrganizationNotFound`.
    """

    def work(tx: Transaction) -> Pruned:
        head = log.locked_head(tx, organization)
        sequence, digest, count = rows.prune(tx, organization, before) or (head.start_sequence, head.start_hash, 0)
        signature = log.seal.sign("start", organization, sequence, digest)
        rows.move_start(tx, replace(head, start_sequence=sequence, start_hash=digest, start_signature=signature))
        details = {"before": rfc3339(before), "entries": count, "last_sequence": sequence}
        log.record(tx, Event(organization, OPERATOR, "PruneAuditLog", f"organization:{organization}", details))
        return Pruned(count, sequence)

    return storage.mutate(organization, work)
