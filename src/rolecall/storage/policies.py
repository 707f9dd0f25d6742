"""Queries on policies: which one is in force, and the files of each that ever was."""

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, insert, select, update

from rolecall.storage.changes import notify_followers
from rolecall.storage.tables import policies, policy_activations, processes_behind
from rolecall.storage.transaction import Transaction

__all__ = [
    "Activation",
    "ProcessBehind",
    "StoredPolicy",
    "activate",
    "activations_from",
    "behind",
    "comparison_key",
    "get",
    "in_force",
    "note_comparison",
    "report",
    "sequence_in_force",
    "version_in_force",
    "withdraw",
]

# A report that wasn't renewed for so many microseconds is from a process that has ended. They are renewed every 2 s.
REPORT_MICROSECONDS = 10_000_000

# Built once, as every change runs it.
_SEQUENCE = select(func.max(policy_activations.c.sequence))
_IN_FORCE = select(policy_activations).order_by(policy_activations.c.sequence.desc()).limit(1)
_FROM = (
    select(policy_activations)
    .where(policy_activations.c.sequence >= bindparam("first"))
    .order_by(policy_activations.c.sequence)
)
_VERSION = select(policy_activations.c.version).order_by(policy_activations.c.sequence.desc()).limit(1)


@dataclass(frozen=True, slots=True)
class Activation:
    """Activation of a policy. The one with the highest sequence number is in force; `activator` says who made it."""

    sequence: int
    version: str
    time: int
    activator: str


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """Files of a policy as they were activated, and the number of decisions that were compared with Casbin's.

    `comparison_key`: hash of all that the outcome of the comparison depends on.
    """

    version: str
    model: str
    policy: str
    tests: str
    comparisons: int
    comparison_key: str
    conditions: str = ""


@dataclass(frozen=True, slots=True)
class ProcessBehind:
    """Report of a process that can't serve the policy in force: its name as HOST/PID, what it serves, why, and when."""

    process: str
    version: str
    problem: str
    time: int


def sequence_in_force(tx: Transaction) -> int:
    """Return the sequence number of the activation in force; 0 where no policy was activated yet."""
    return tx.connection.scalar(_SEQUENCE) or 0


def version_in_force(tx: Transaction) -> str:
    """Return the version of the policy in force; empty where no policy was activated yet."""
    return tx.connection.scalar(_VERSION) or ""


def in_force(tx: Transaction) -> Activation | None:
    """Return the activation in force; None where no policy was activated yet."""
    row = tx.connection.execute(_IN_FORCE).one_or_none()
    return _activation(row) if row else None


def activations_from(tx: Transaction, first: int) -> list[Activation]:
    """Return the activation with the sequence number `first`, if there is one, and all later ones, in order."""
    return [_activation(row) for row in tx.connection.execute(_FROM, {"first": first})]


def get(tx: Transaction, version: str) -> StoredPolicy | None:
    """Return the policy of this version; None where it was never activated."""
    row = tx.connection.execute(select(policies).where(policies.c.version == version)).one_or_none()
    return StoredPolicy(*row) if row else None


def comparison_key(tx: Transaction, version: str) -> str:
    """Return the key under which the policy was compared with Casbin; empty where it was never activated."""
    return tx.connection.scalar(select(policies.c.comparison_key).where(policies.c.version == version)) or ""


def note_comparison(tx: Transaction, version: str, comparisons: int, key: str) -> None:
    """Store that the policy was compared with Casbin under another key than before, if it was ever activated."""
    tx.connection.execute(
        update(policies)
        .where(policies.c.version == version, policies.c.comparison_key != key)
        .values(comparisons=comparisons, comparison_key=key)
    )


def activate(tx: Transaction, policy: StoredPolicy, activator: str, at: int) -> Activation:
    """Store the policy and put it in force, in an exclusive transaction unless none is in force yet."""
    if get(tx, policy.version) is None:
        tx.connection.execute(insert(policies).values(asdict(policy)))
    else:
        # The tests are not part of the version, and may be others now.
        tx.connection.execute(update(policies).where(policies.c.version == policy.version).values(tests=policy.tests))
        note_comparison(tx, policy.version, policy.comparisons, policy.comparison_key)
    made = Activation(sequence_in_force(tx) + 1, policy.version, at, activator)
    tx.connection.execute(
        insert(policy_activations).values(
            sequence=made.sequence, version=made.version, time=made.time, activator=made.activator
        )
    )
    notify_followers(tx)
    return made


def report(tx: Transaction, behind: ProcessBehind) -> None:
    """Store the report of a process that is behind, in place of its last one and of those of ended processes."""
    outdated = processes_behind.c.time < behind.time - REPORT_MICROSECONDS
    tx.connection.execute(delete(processes_behind).where(outdated | (processes_behind.c.process == behind.process)))
    tx.connection.execute(insert(processes_behind).values(asdict(behind)))


def withdraw(tx: Transaction, process: str) -> None:
    """Delete the report of a process that has caught up."""
    tx.connection.execute(delete(processes_behind).where(processes_behind.c.process == process))


def behind(tx: Transaction, at: int) -> list[ProcessBehind]:
    """Return the reports of the processes that are behind at the time `at`, by name."""
    query = select(processes_behind).where(processes_behind.c.time >= at - REPORT_MICROSECONDS)
    return [ProcessBehind(*row) for row in tx.connection.execute(query.order_by(processes_behind.c.process))]


def _activation(row: Row[Any]) -> Activation:
    return Activation(row.sequence, row.version, row.time, row.activator)
