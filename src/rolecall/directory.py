"""Who somebody is: the caller behind a credential, and the role of a subject.

Callers are remembered for a second, and forgotten before a change that this process made is answered. Subjects are
always as the database has them now.
"""

import hashlib
import hmac
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

from rolecall import credentials
from rolecall.credentials import Presented
from rolecall.domain import Caller, CredentialKind, Restriction, Subject, SubjectKind, now
from rolecall.errors import RateLimited, UnauthenticatedCredential
from rolecall.limits import Limit
from rolecall.remembered import Remembered
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage.credentials import Held

__all__ = ["Directory", "Standing", "Standings"]

# How long a caller is remembered: what another process changes is seen within this time.
FRESH_SECONDS = 1.0
MAX_CALLERS = 100_000
# Forged credentials are well-formed, as the checksum is public; each costs a look-up. So many may fail for one peer.
FAILURES_A_SECOND = 20.0
FAILURES_AT_ONCE = 200
# Tokens that callers present in questions, and that aren't live: so many for one caller.
GUESSES_A_SECOND = 10.0
GUESSES_AT_ONCE = 1000
# How often a credential's use is noted.
USE_MICROSECONDS = 60 * 1_000_000
# How long a look-up waits for a place in the queue, and there for its turn.
QUEUE_SECONDS = 0.1
TURN_SECONDS = 1.0
# How long a credential that was live is known to be no guess.
KNOWN_SECONDS = 600.0

_NOBODY = Held(Caller("", "", CredentialKind.PERSONAL, "", "", ""), until=0)
_TOO_MANY = "Too many credentials are being looked up: try again in a moment."


@dataclass(frozen=True, slots=True)
class Standing:
    """The role that a subject acts with, and what its token cuts it down to."""

    role: str
    restriction: Restriction = None


@dataclass(frozen=True, slots=True)
class Standings:
    """Where subjects stand at one revision of an organization. A subject that is not in `found` is unknown there."""

    revision: int
    found: dict[Subject, Standing]


class Directory:
    """Reads of members and credentials. Threads may share it."""

    def __init__(
        self,
        storage: Storage,
        *,
        look_ups: int = 8,
        on_retired: Callable[[str, str, str], None] = lambda _organization, _user_id, _credential_id: None,
    ) -> None:
        """At most `look_ups` of credentials run at once, and twice as many wait.

        `on_retired` is told the organization, user and token when somebody presents a secret from before its rotation.
        """
        self._storage = storage
        self._on_retired = on_retired
        self._callers: Remembered[bytes, Held] = Remembered(MAX_CALLERS, FRESH_SECONDS)
        storage.on_change(self._callers.forget)
        self._known: Remembered[bytes, str] = Remembered(MAX_CALLERS, KNOWN_SECONDS)
        self._peers = Limit("credentials that are not valid", rate=FAILURES_A_SECOND, burst=FAILURES_AT_ONCE)
        self._guesses = Limit("presented tokens that are not valid", rate=GUESSES_A_SECOND, burst=GUESSES_AT_ONCE)
        self._turns = threading.BoundedSemaphore(look_ups)
        self._queue = threading.BoundedSemaphore(3 * look_ups)
        self._uses: dict[str, int] = {}
        self._noted: Remembered[str, str] = Remembered(MAX_CALLERS, USE_MICROSECONDS / 1_000_000)

    def caller(self, text: str, peer: Callable[[], str] = str) -> Caller | None:
        """Who presents the credential `text`; None where it isn't live. A malformed one costs no look-up.

        `peer` tells where it comes from. Raises `RateLimited` where too much else is looked up, `StorageUnavailable`.
        """
        held = self._callers.get(hashlib.sha256(text.encode(errors="surrogatepass")).digest())
        if held is None:
            presented = credentials.parse(text)
            if presented is None:
                return None
            known = self._known.get(presented.digest)
            held = self._fill(presented) if known else self._look_up(presented, peer())
        return held.caller if held.until > now() else None

    def again(self, tx: Transaction, caller: Caller) -> Caller:
        """The caller as it stands in the transaction. Raises `UnauthenticatedCredential` where it no longer does."""
        held = credential_rows.live_holder(tx, caller.credential_id, caller.digest, now())
        if held is None or held.retired:
            raise UnauthenticatedCredential
        return held.caller

    def standings(self, organization: str, subjects: Collection[Subject], asker: str = "") -> Standings:
        """Where `subjects` stand, all from one snapshot. `asker` is whose guesses are limited.

        Raises `RateLimited`, `OrganizationNotFound`, `StorageUnavailable`.
        """
        presented = [subject for subject in subjects if subject.kind is SubjectKind.PRESENTED]
        if not all(self._known.get(subject.digest) for subject in presented):
            # Whoever relays the tokens of others must not be shut out from those that are good by those that are not.
            self._guesses.require(asker)

        retired: list[tuple[str, str]] = []

        def work(tx: Transaction) -> Standings:
            retired.clear()
            revision = organization_rows.revision_of(tx, organization)
            return Standings(revision, _standings(tx, organization, subjects, retired))

        standings = self._storage.read(work)
        for user_id, credential_id in retired:
            self._on_retired(organization, user_id, credential_id)
        for subject in presented:
            if subject in standings.found:
                self._note_live(subject.value, subject.digest)
            else:
                self._guesses.count(asker)
        return standings

    def flush_uses(self) -> None:
        """Write down which credentials were used, each once a minute. Raises `StorageUnavailable`, `WriteConflict`."""
        uses: dict[str, int] = {}
        while self._uses:
            credential_id, at = self._uses.popitem()
            uses[credential_id] = at
        if not uses:
            return

        def work(tx: Transaction) -> None:
            # In one order everywhere, lest two processes wait for each other.
            for credential_id, at in sorted(uses.items()):
                credential_rows.used(tx, credential_id, at, at - USE_MICROSECONDS)

        try:
            self._storage.write(work)
        except BaseException:
            self._uses |= uses
            raise

    def _look_up(self, presented: Presented, peer: str) -> Held:
        """Look up what may be a stranger's guess: in its turn, and unless too many of the peer's were wrong."""
        self._peers.require(peer)
        if not self._queue.acquire(timeout=QUEUE_SECONDS):
            raise RateLimited(_TOO_MANY)
        try:
            if not self._turns.acquire(timeout=TURN_SECONDS):
                raise RateLimited(_TOO_MANY)
            try:
                held = self._fill(presented)
            finally:
                self._turns.release()
        finally:
            self._queue.release()
        if held is _NOBODY:
            self._peers.count(peer)
        return held

    def _fill(self, presented: Presented) -> Held:
        ticket = self._callers.ticket()
        at = now()
        held = self._storage.read(lambda tx: credential_rows.live_holder(tx, presented.id, presented.digest, at))
        if held and held.retired:
            self._on_retired(held.caller.organization, held.caller.user_id, presented.id)
        if held is None or held.retired:
            held = _NOBODY
        else:
            self._note_live(presented.id, presented.digest)
        self._callers.put(presented.digest, held, (presented.id, held.caller.user_id), ticket)
        return held

    def _note_live(self, credential_id: str, digest: bytes) -> None:
        """Remember that it is no guess, and have its use written down."""
        if self._known.get(digest) is None:
            self._known.put(digest, credential_id, (), self._known.ticket())
        if self._noted.get(credential_id) is None:
            self._noted.put(credential_id, credential_id, (), self._noted.ticket())
            self._uses[credential_id] = now()


def _standings(
    tx: Transaction, organization: str, subjects: Collection[Subject], retired: list[tuple[str, str]]
) -> dict[Subject, Standing]:
    """One query for each way in which subjects are named.

    Adds to `retired` whose tokens were presented with a secret from before their rotation: the user's id and the
    token's.
    """
    values: dict[SubjectKind, set[str]] = {}
    for subject in subjects:
        values.setdefault(subject.kind, set()).add(subject.value)
    by_id = member_rows.roles_by_id(tx, organization, ids) if (ids := values.get(SubjectKind.USER_ID)) else {}
    by_email = member_rows.roles_by_email(tx, organization, keys) if (keys := values.get(SubjectKind.EMAIL)) else {}
    tokens = values.get(SubjectKind.TOKEN_ID, set()) | values.get(SubjectKind.PRESENTED, set())
    by_token = credential_rows.live_holders(tx, organization, tokens, now()) if tokens else {}
    found: dict[Subject, Standing] = {}
    for subject in subjects:
        role: str | None = None
        restriction: Restriction = None
        match subject.kind:
            case SubjectKind.ROLE:
                role = subject.value
            case SubjectKind.USER_ID:
                role = by_id.get(subject.value)
            case SubjectKind.EMAIL:
                role = by_email.get(subject.value)
            case SubjectKind.TOKEN_ID | SubjectKind.PRESENTED:
                held = by_token.get(subject.value)
                if held and (subject.kind is SubjectKind.TOKEN_ID or _is_one_of(subject.digest, held.digests)):
                    role, restriction = held.role, held.restriction
                elif held and _is_one_of(subject.digest, held.retired):
                    retired.append((held.user_id, subject.value))
        if role is not None:
            found[subject] = Standing(role, restriction)
    return found


def _is_one_of(digest: bytes, stored: Collection[bytes]) -> bool:
    """Whether it is one of them, in a time that tells nothing about how far it is right."""
    return sum(hmac.compare_digest(digest, other) for other in stored) > 0
