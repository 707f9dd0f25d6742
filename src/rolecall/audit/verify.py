"""Is the log whole? Every entry's hash, their sequence, the personal values still there, and the signed marks."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from rolecall.audit.chain import Seal, commitment, hash_of
from rolecall.audit.log import CHECKPOINT_EVERY, ERASE, OPERATOR, AuditLog
from rolecall.audit.reading import commitments
from rolecall.domain import AuditFilter
from rolecall.errors import InvalidField
from rolecall.storage import Transaction
from rolecall.storage import audit as rows
from rolecall.storage.audit import Checkpoint, Head, Stored, Value

__all__ = ["Mark", "Verdict", "verify"]


@dataclass(frozen=True, slots=True)
class Mark:
    """The hash of one entry."""

    sequence: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the log is whole. `first_bad` is 0 where it is; `head` where the log ends, if that is known."""

    first_bad: int
    problem: str
    entries: int
    head: Mark | None

    @property
    def whole(self) -> bool:
        """Whether nothing was found."""
        return not self.problem


class _Bad(Exception):
    def __init__(self, sequence: int, problem: str) -> None:
        super().__init__(problem)
        self.sequence = sequence


def verify(
    tx: Transaction,
    log: AuditLog,
    organization: str,
    first: int = 0,
    last: int = 0,
    known: Mark | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> Verdict:
    """Check the entries `first` to `last` (0: from the beginning, to the end), from the mark before to the mark behind.

    `known` is an entry whose hash somebody kept elsewhere; it is checked too. `confirm` is called now and then, and may
    raise. Raises `InvalidField` where that one or all of the range was pruned, or the log doesn't reach so far.
    """
    head = rows.head(tx, organization)
    if head is None:
        return Verdict(1, "The log's head is gone.", 0, None)
    if known and known.sequence < head.start_sequence:
        raise InvalidField(
            f"Entry {known.sequence} was pruned: name one of those behind {head.start_sequence}.", field="known"
        )
    if 0 < last <= head.start_sequence:
        raise InvalidField(
            f"The entries up to {head.start_sequence} were pruned: there is nothing to check before.",
            field="last_sequence",
        )
    for field, number in (("first_sequence", first), ("last_sequence", last)):
        if number > head.sequence:
            raise InvalidField(f"{field} is {number}, and the log ends at {head.sequence}.", field=field)
    walk = _Walk(tx, log.seal, head, confirm)
    try:
        walk.along(first, last, known)
    except _Bad as bad:
        return Verdict(bad.sequence, str(bad), walk.entries, None)
    return Verdict(0, "", walk.entries, Mark(head.sequence, head.hash))


class _Walk:
    """One walk along the log, from one signed mark to another."""

    def __init__(self, tx: Transaction, seal: Seal, head: Head, confirm: Callable[[], None]) -> None:
        self._tx = tx
        self._seal = seal
        self._head = head
        self._confirm = confirm
        self._organization = head.organization
        self._checkpoints = rows.checkpoints(tx, head.organization)
        self.entries = 0

    def along(self, first: int, last: int, known: Mark | None) -> None:
        """Raise `_Bad` at the first entry that isn't as it was written."""
        head = self._head
        if not self._seal.holds_start(head):
            raise _Bad(
                head.start_sequence + 1, f"The log's beginning is not as this server signed it{self._key(head)}."
            )
        marks = self._marks()
        wanted = (first or 1, last or head.sequence, *([known.sequence] if known else []))
        begin = max((mark for mark in marks if mark < min(wanted)), default=head.start_sequence)
        end = min((mark for mark in marks if mark >= max(wanted)), default=head.sequence)
        digest = self._follow(begin, marks[begin], end, known)
        if digest != marks.get(end, digest):
            raise _Bad(end, f"The entries before {end} were written anew: the signed mark there says otherwise.")
        if end == head.sequence:
            self._check_end(known)

    def _marks(self) -> dict[int, bytes]:
        """The hashes at the beginning, at the checkpoints and at the end, as far as they are soundly signed."""
        head = self._head
        marks = {
            sequence: checkpoint.hash
            for sequence, checkpoint in self._checkpoints.items()
            if head.start_sequence < sequence <= head.sequence
            and sequence % CHECKPOINT_EVERY == 0
            and self._seal.holds_checkpoint(checkpoint)
        }
        marks[head.start_sequence] = head.start_hash
        if self._seal.holds_head(head):
            marks[head.sequence] = head.hash
        return marks

    def _follow(self, sequence: int, digest: bytes, end: int, known: Mark | None) -> bytes:
        """Look at the entries behind `sequence` up to `end`; answers the hash of the last."""
        erased = self._erased()
        with (
            closing(rows.stream(self._tx, self._organization, sequence + 1, end)) as entries,
            closing(rows.values(self._tx, self._organization, sequence + 1, end)) as values,
        ):
            personal = _Values(values, erased)
            self._check_known(sequence, digest, known)
            for entry in entries:
                sequence += 1
                if entry.sequence != sequence:
                    raise _Bad(sequence, f"Entry {sequence} is missing.")
                if entry.previous_hash != digest:
                    raise _Bad(sequence, f"Entry {sequence} does not follow on the one before it.")
                digest = entry.hash
                if digest != _hash_of(self._organization, entry):
                    raise _Bad(sequence, f"Entry {sequence} was changed.")
                personal.check(entry)
                self._check_known(sequence, digest, known)
                if sequence % CHECKPOINT_EVERY == 0:
                    self._check_checkpoint(sequence, digest)
                    self._confirm()
                self.entries += 1
        if sequence < end:
            raise _Bad(sequence + 1, f"Entry {sequence + 1} is missing.")
        return digest

    def _erased(self) -> dict[str, int]:
        """In which entry each person was erased last."""
        erasing = AuditFilter(actor=OPERATOR, action=ERASE)
        entries = rows.oldest_since(self._tx, self._organization, erasing, self._head.start_sequence, None)
        return {user: entry.sequence for entry in entries for user in _users(entry)}

    def _check_known(self, sequence: int, digest: bytes, known: Mark | None) -> None:
        if known and known.sequence == sequence and known.hash != digest:
            raise _Bad(sequence, f"Entry {sequence} has another hash than the one you know: the log was written anew.")

    def _check_checkpoint(self, sequence: int, digest: bytes) -> None:
        checkpoint = self._checkpoints.get(sequence)
        if checkpoint is None:
            raise _Bad(sequence, f"The checkpoint at {sequence} is gone.")
        if not self._seal.holds_checkpoint(checkpoint):
            raise _Bad(
                sequence, f"The checkpoint at {sequence} is not as this server signed it{self._key(checkpoint)}."
            )
        if checkpoint.hash != digest:
            raise _Bad(
                sequence, f"The entries before {sequence} were written anew: the checkpoint there says otherwise."
            )

    def _check_end(self, known: Mark | None) -> None:
        head = self._head
        if not self._seal.holds_head(head):
            raise _Bad(head.sequence, f"The log's end is not as this server signed it{self._key(head)}.")
        stray = rows.outside(self._tx, self._organization, head.start_sequence, head.sequence)
        if stray is not None:
            raise _Bad(
                stray, f"There is an entry {stray}, and the log goes from {head.start_sequence + 1} to {head.sequence}."
            )
        if known and known.sequence > head.sequence:
            raise _Bad(head.sequence + 1, f"The log ends at {head.sequence}: the database was set back.")

    def _key(self, mark: Head | Checkpoint) -> str:
        """A word on the key, where the mark says that it was another one."""
        if mark.key_id == self._seal.key_id:
            return ""
        return f" (it names the key {mark.key_id}, this server's is {self._seal.key_id})"


class _Values:
    """The personal values along the walk; each must be what its entry committed to, or erased by an operator."""

    def __init__(self, values: Iterator[Value], erased: dict[str, int]) -> None:
        """`erased`: in which entry each person was erased last."""
        self._values = values
        self._next = next(values, None)
        self._erased = erased

    def check(self, entry: Stored) -> None:
        """Raise `_Bad` where a value of the entry isn't the one that was written."""
        committed = commitments(entry.details)
        while self._next and self._next.sequence <= entry.sequence:
            value, self._next = self._next, next(self._values, None)
            if committed.pop(value.number, None) != (value.person, _commitment(value)):
                raise _Bad(value.sequence, f"A name or address of entry {value.sequence} was changed.")
        if any(self._erased.get(person, 0) <= entry.sequence for person, _ in committed.values()):
            raise _Bad(entry.sequence, f"A name or address of entry {entry.sequence} is gone, and no entry erased it.")


def _users(entry: Stored) -> list[str]:
    """Whom an erasing entry names; nobody where that was spoilt, which the walk finds."""
    try:
        return [str(user) for user in json.loads(entry.details)["users"]]
    except (TypeError, ValueError, KeyError):
        return []


def _hash_of(organization: str, entry: Stored) -> bytes:
    """The entry's hash; none where a column holds what was never written there, as SQLite lets it."""
    try:
        return hash_of(organization, entry)
    except (TypeError, ValueError):
        return b""


def _commitment(value: Value) -> str:
    try:
        return commitment(value.salt, value.person, value.kind, value.value)
    except (TypeError, ValueError):
        return ""
