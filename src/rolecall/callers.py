"""The caller behind a credential, and how often somebody may present one that isn't live.

With a feed, callers are remembered until something changes them; without one, as in the tools of an operator, the
database is asked each time.
"""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future

from rolecall import credentials
from rolecall.credentials import Presented
from rolecall.domain import Caller, CredentialKind, now
from rolecall.errors import RateLimited, UnauthenticatedCredential
from rolecall.feed import Feed
from rolecall.limits import Limit
from rolecall.recent import Recent
from rolecall.remembered import Fact
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage.credentials import Held
from rolecall.uses import Uses

__all__ = ["DEAD_SECONDS", "Callers"]

MAX_CALLERS = 100_000
# Forged credentials are well-formed, as the checksum is public; each costs a look-up. So many may fail for one peer.
FAILURES_A_SECOND = 20.0
FAILURES_AT_ONCE = 200
# How long a look-up waits for a place in the queue, and there for its turn.
QUEUE_SECONDS = 0.1
TURN_SECONDS = 1.0
# How long a credential that was live is known to be no guess.
KNOWN_SECONDS = 600.0
# How long one that isn't live is known to be none: what is dead never lives again.
DEAD_SECONDS = 60.0
# How long a caller is remembered, if nothing changes.
CALLER_SECONDS = 300.0

_NOBODY = Held(Caller("", "", CredentialKind.PERSONAL, "", "", ""), until=0)
_TOO_MANY = "Too many credentials are being looked up: try again in a moment."


class Callers:
    """Who presents credentials. Threads may share it."""

    def __init__(
        self,
        storage: Storage,
        feed: Feed | None,
        *,
        look_ups: int,
        on_retired: Callable[[str, str, str], None],
    ) -> None:
        """As `Directory`."""
        self._storage = storage
        self._feed = feed
        self._on_retired = on_retired
        # With the ticket: after what was known was dropped, it no longer counts.
        self._remembered: Recent[bytes, tuple[Held, Fact, int]] = Recent(MAX_CALLERS, CALLER_SECONDS)
        self._dead: Recent[bytes, str] = Recent(MAX_CALLERS, DEAD_SECONDS)
        self.known: Recent[bytes, str] = Recent(MAX_CALLERS, KNOWN_SECONDS)
        self._peers = Limit("credentials that are not valid", rate=FAILURES_A_SECOND, burst=FAILURES_AT_ONCE)
        self._turns = threading.BoundedSemaphore(look_ups)
        self._queue = threading.BoundedSemaphore(3 * look_ups)
        # The credentials that are looked up at this moment.
        self._under_way: dict[bytes, Future[None]] = {}
        self._lock = threading.Lock()
        self.uses = Uses(storage)

    def find(self, text: str, peer: Callable[[], str] = str) -> Caller | None:
        """Who presents the credential `text`; None where it isn't live. A malformed one costs no look-up.

        `peer` tells where it comes from. Raises `RateLimited` where too much else is looked up, `StorageUnavailable`.
        """
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
        held = self._recalled(digest)
        if held is None:
            presented = credentials.parse(text)
            if presented is None:
                return None
            held = self._found(presented, peer)
        return held.caller if held.until > now() else None

    def again(self, tx: Transaction, caller: Caller) -> Caller:
        """The caller as it stands in the transaction. Raises `UnauthenticatedCredential` where it no longer does."""
        held = credential_rows.live_holder(tx, caller.credential_id, caller.digest, now())
        if held is None or held.retired:
            raise UnauthenticatedCredential
        return held.caller

    def _recalled(self, digest: bytes) -> Held | None:
        if self._feed is None:
            return None
        recalled = self._remembered.get(digest)
        if recalled is None:
            return _NOBODY if self._dead.get(digest) else None
        held, fact, ticket = recalled
        self._feed.require_fresh()
        # Past its end it is looked up once more: who presents a secret from before a rotation is to be noticed.
        if held.until <= now() or not self._feed.remembered.holds(held.caller.organization, fact, ticket):
            return None
        self.uses.note(held.caller.credential_id)
        return held

    def _found(self, presented: Presented, peer: Callable[[], str]) -> Held:
        """Look a credential up, once for all who present it meanwhile."""
        self._storage.require_patience()
        where = "" if self.known.get(presented.digest) else peer()
        if where:
            self._peers.require(where)
        while True:
            with self._lock:
                begun = self._under_way.get(presented.digest)
                if begun is None:
                    mine = self._under_way[presented.digest] = Future[None]()
            if begun is None:
                try:
                    held = self._look_up(presented) if where else self._fill(presented)
                except BaseException as error:
                    mine.set_exception(error)
                    raise
                else:
                    mine.set_result(None)
                finally:
                    with self._lock:
                        del self._under_way[presented.digest]
            else:
                begun.result()
                # What was read began before this call did: memory says whether it still holds.
                recalled = self._recalled(presented.digest)
                if recalled is None:
                    continue
                held = recalled
            if held is _NOBODY and where:
                self._peers.count(where)
            return held

    def _look_up(self, presented: Presented) -> Held:
        """Look up what may be a stranger's guess, in its turn."""
        if not self._queue.acquire(timeout=QUEUE_SECONDS):
            raise RateLimited(_TOO_MANY)
        try:
            if not self._turns.acquire(timeout=TURN_SECONDS):
                raise RateLimited(_TOO_MANY)
            try:
                return self._fill(presented)
            finally:
                self._turns.release()
        finally:
            self._queue.release()

    def _fill(self, presented: Presented) -> Held:
        ticket = self._feed.remembered.ticket() if self._feed else 0
        at = now()

        def work(tx: Transaction) -> tuple[Held | None, int]:
            held = credential_rows.live_holder(tx, presented.id, presented.digest, at)
            return held, organization_rows.revision_of(tx, held.caller.organization) if held else 0

        held, revision = self._storage.read(work)
        if held and held.retired:
            self._on_retired(held.caller.organization, held.caller.user_id, presented.id)
        if held is None or held.retired:
            self._dead.put(presented.digest, presented.id)
            self._remembered.drop(presented.digest)
            return _NOBODY
        self.known.put(presented.digest, presented.id)
        self.uses.note(presented.id)
        if self._feed:
            names = tuple(filter(None, (presented.id, held.caller.user_id)))
            fact = self._feed.remembered.meet(held.caller.organization, revision, held, names, ticket)
            if fact is not None:
                self._remembered.put(presented.digest, (held, fact, ticket))
        return held
