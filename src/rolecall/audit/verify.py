"""Verification of a log: the entries' hashes and sequence, the stored personal values, and the signed positions."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from rolecall.audit.chain import Signer, commitment, hash_of
from rolecall.audit.entries import commitments
from rolecall.audit.log import CHECKPOINT_EVERY, ERASE, OPERATOR, AuditLog
from rolecall.domain import AuditFilter
from rolecall.errors import InvalidField
from rolecall.storage import Transaction
from rolecall.storage import audit as rows
from rolecall.storage.audit import Checkpoint, Head, PersonalValue, StoredEntry

__all__ = ["EntryHash", "Verdict", "verify"]


@dataclass(frozen=True, slots=True)
class EntryHash:
    """Sequence number and hash of one entry."""

    sequence: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of a verification. `first_bad` is 0 where the log is intact; `head` is its last entry, None if unknown."""

    first_bad: int
    problem: str
    entries: int
    head: EntryHash | None

    @property
    def intact(self) -> bool:
        """Whether no problem was found."""
        return not self.problem


class _Problem(Exception):
    """First entry that fails the verification."""

    def __init__(self, sequence: int, problem: str) -> None:
        super().__init__(problem)
        self.sequence = sequence


def verify(
    tx: Transaction,
    log: AuditLog,
    organization: str,
    first: int = 0,
    last: int = 0,
    known: EntryHash | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> Verdict:
    """Verify the entries `first` to `last` (0: beginning, end), from the signed position before to the one after.

    `known` is an entry whose hash was kept elsewhere; it is verified too. `confirm` is called every 100 entries, and
    may raise. Raises `InvalidField` where `known` or the whole range was pruned, or the log ends before them.
    """
    head = rows.head(tx, organization)
    if head is None:
        return Verdict(1, "The log's head is missing.", 0, None)
    if known and known.sequence < head.start_sequence:
        raise InvalidField(f"Entry {known.sequence} was pruned: name one after {head.start_sequence}.", field="known")
    if 0 < last <= head.start_sequence:
        raise InvalidField(
            f"The entries up to {head.start_sequence} were pruned and can't be verified: end later, or at 0.",
            field="last_sequence",
        )
    for field, number in (("first_sequence", first), ("last_sequence", last)):
        if number > head.sequence:
            raise InvalidField(
                f"{field} is {number}, and the log ends at {head.sequence}: name an entry up to there.", field=field
            )
    verifier = _Verifier(tx, log.signer, head, confirm)
    try:
        verifier.check(first, last, known)
    except _Problem as problem:
        return Verdict(problem.sequence, str(problem), verifier.entries, None)
    return Verdict(0, "", verifier.entries, EntryHash(head.sequence, head.hash))


class _Verifier:
    """One verification of a log, from one signed position to another."""

    def __init__(self, tx: Transaction, signer: Signer, head: Head, confirm: Callable[[], None]) -> None:
        self._tx = tx
        self._signer = signer
        self._head = head
        self._confirm = confirm
        self._organization = head.organization
        self._checkpoints = rows.checkpoints(tx, head.organization)
        self.entries = 0

    def check(self, first: int, last: int, known: EntryHash | None) -> None:
        """Raise `_Problem` at the first entry that isn't as it was written."""
        head = self._head
        if not self._signer.is_start_signed(head):
            raise _Problem(
                head.start_sequence + 1, f"The log's beginning was not signed by this server{self._key(head)}."
            )
        signed = self._signed_hashes()
        wanted = (first or 1, last or head.sequence, *([known.sequence] if known else []))
        begin = max((sequence for sequence in signed if sequence < min(wanted)), default=head.start_sequence)
        end = min((sequence for sequence in signed if sequence >= max(wanted)), default=head.sequence)
        digest = self._follow(begin, signed[begin], end, known)
        if digest != signed.get(end, digest):
            raise _Problem(end, f"The entries before {end} were rewritten: their hash is not the signed one there.")
        if end == head.sequence:
            self._check_end(known)

    def _signed_hashes(self) -> dict[int, bytes]:
        """Return the hashes at the beginning, the checkpoints and the end, by sequence number, where validly signed."""
        head = self._head
        signed = {
            sequence: checkpoint.hash
            for sequence, checkpoint in self._checkpoints.items()
            if head.start_sequence < sequence <= head.sequence
            and sequence % CHECKPOINT_EVERY == 0
            and self._signer.is_checkpoint_signed(checkpoint)
        }
        signed[head.start_sequence] = head.start_hash
        if self._signer.is_head_signed(head):
            signed[head.sequence] = head.hash
        return signed

    def _follow(self, sequence: int, digest: bytes, end: int, known: EntryHash | None) -> bytes:
        """Verify the entries after `sequence` up to `end`. Returns the hash of the last."""
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
                    raise _Problem(sequence, f"Entry {sequence} is missing.")
                if entry.previous_hash != digest:
                    raise _Problem(sequence, f"Entry {sequence} does not follow the one before it.")
                digest = entry.hash
                if digest != _hash_of(self._organization, entry):
                    raise _Problem(sequence, f"Entry {sequence} was changed.")
                personal.check(entry)
                self._check_known(sequence, digest, known)
                if sequence % CHECKPOINT_EVERY == 0:
                    self._check_checkpoint(sequence, digest)
                    self._confirm()
                self.entries += 1
        if sequence < end:
            raise _Problem(sequence + 1, f"Entry {sequence + 1} is missing.")
        return digest

    def _erased(self) -> dict[str, int]:
        """Return the entry in which each person was erased last."""
        erasing = AuditFilter(actors=(OPERATOR,), action=ERASE)
        entries = rows.oldest_since(self._tx, self._organization, erasing, self._head.start_sequence, None)
        return {user: entry.sequence for entry in entries for user in _users(entry)}

    def _check_known(self, sequence: int, digest: bytes, known: EntryHash | None) -> None:
        if known and known.sequence == sequence and known.hash != digest:
            raise _Problem(sequence, f"Entry {sequence} has another hash than the one you know: the log was rewritten.")

    def _check_checkpoint(self, sequence: int, digest: bytes) -> None:
        checkpoint = self._checkpoints.get(sequence)
        if checkpoint is None:
            raise _Problem(sequence, f"The checkpoint at {sequence} is missing.")
        if not self._signer.is_checkpoint_signed(checkpoint):
            raise _Problem(
                sequence, f"The checkpoint at {sequence} was not signed by this server{self._key(checkpoint)}."
            )
        if checkpoint.hash != digest:
            raise _Problem(
                sequence, f"The entries before {sequence} were rewritten: the checkpoint holds another hash."
            )

    def _check_end(self, known: EntryHash | None) -> None:
        head = self._head
        if not self._signer.is_head_signed(head):
            raise _Problem(head.sequence, f"The log's end was not signed by this server{self._key(head)}.")
        stray = rows.sequence_outside(self._tx, self._organization, head.start_sequence, head.sequence)
        if stray is not None:
            raise _Problem(
                stray, f"Entry {stray} is outside the log, which has {head.start_sequence + 1} to {head.sequence}."
            )
        if known and known.sequence > head.sequence:
            raise _Problem(
                head.sequence + 1, f"The log ends at {head.sequence}: the database was restored to an earlier state."
            )

    def _key(self, position: Head | Checkpoint) -> str:
        """Name the key in a problem's text, where the signature was made with another one."""
        if position.key_id == self._signer.key_id:
            return ""
        return f" (signed with the key {position.key_id}; this server's is {self._signer.key_id})"


class _Values:
    """Personal values in the order of entries; each must match its entry's commitment, or be erased by an operator."""

    def __init__(self, values: Iterator[PersonalValue], erased: dict[str, int]) -> None:
        """Read `values` along with the entries. `erased` holds the entry in which each person was erased last."""
        self._values = values
        self._next = next(values, None)
        self._erased = erased

    def check(self, entry: StoredEntry) -> None:
        """Raise `_Problem` where a value of the entry isn't the one that was written."""
        committed = commitments(entry.details)
        while self._next and self._next.sequence <= entry.sequence:
            value, self._next = self._next, next(self._values, None)
            if committed.pop(value.number, None) != (value.person, _commitment(value)):
                raise _Problem(value.sequence, f"A name or address of entry {value.sequence} was changed.")
        if any(self._erased.get(person, 0) <= entry.sequence for person, _ in committed.values()):
            raise _Problem(
                entry.sequence, f"A name or address of entry {entry.sequence} is missing, and no entry erased it."
            )


def _users(entry: StoredEntry) -> list[str]:
    """Return the persons that an erasing entry names; none where its details were tampered with (found later)."""
    try:
        return [str(user) for user in json.loads(entry.details)["users"]]
    except (TypeError, ValueError, KeyError):
        return []


def _hash_of(organization: str, entry: StoredEntry) -> bytes:
    """Compute the entry's hash; empty where a column holds another type, which SQLite allows."""
    try:
        return hash_of(organization, entry)
    except (TypeError, ValueError):
        return b""


def _commitment(value: PersonalValue) -> str:
    try:
        return commitment(value.salt, value.person, value.kind, value.value)
    except (TypeError, ValueError):
        return ""
