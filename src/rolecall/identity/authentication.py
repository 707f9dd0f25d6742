"""The caller behind a credential, and limits on presenting credentials that are not valid."""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from rolecall.credentials import token_format
from rolecall.credentials.token_format import PresentedCredential
from rolecall.domain import Caller, Refusal, now
from rolecall.errors import RateLimited, UnauthenticatedCredential
from rolecall.formats.networks import peer_address, peer_network
from rolecall.identity.batch_loader import BatchLoader, Miss
from rolecall.identity.cache import CacheEntry, TTLCache, names_of
from rolecall.identity.change_feed import ChangeFeed
from rolecall.identity.failed_authentications import FailedAuthentications
from rolecall.identity.last_used import LastUsed
from rolecall.identity.rate_limit import RateLimiter
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage.credentials import CredentialHolder

__all__ = ["UNKNOWN_SECONDS", "Authenticator", "CredentialCache", "OnMisuse"]

# Seconds for which a credential that was valid counts as no guess.
RECENTLY_VALID_SECONDS = 600.0
# Seconds for which an unknown credential is cached as such. Whether a known one has expired is evaluated each time, as
# the clock may be set right.
UNKNOWN_SECONDS = 60.0

# Gets the cause, organization, user and token of a token's use that is recorded in the organization's audit log.
OnMisuse = Callable[[Refusal, str, str, str], None]


class _CachedHolder(NamedTuple):
    """A credential's holder, the entry that says at which revision it was read, and the cache's epoch then.

    `until` is the `everywhere_until` of its validity, here because it is read with each call.
    """

    holder: CredentialHolder
    entry: CacheEntry
    epoch: int
    until: int


class CredentialCache:
    """Callers by credential. Has no storage, so it never blocks. Threads may share it; look-ups take no lock.

    Without a change feed nothing is cached, as nothing would invalidate it.
    """

    def __init__(
        self,
        feed: ChangeFeed | None,
        note_use: Callable[[str], None],
        on_misuse: OnMisuse,
        failed: FailedAuthentications,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._feed = feed
        self._note_use = note_use
        self._on_misuse = on_misuse
        self._failed = failed
        capacity = limits.cached_entries
        self._holders: TTLCache[bytes, _CachedHolder] = TTLCache(capacity, limits.cached_seconds)
        self._unknown: TTLCache[bytes, str] = TTLCache(capacity, UNKNOWN_SECONDS)
        self._recently_valid: TTLCache[bytes, str] = TTLCache(capacity, RECENTLY_VALID_SECONDS)

    def authenticate(self, text: str, peer: Callable[[], str]) -> Caller | PresentedCredential | None:
        """Return the caller who presents `text`; the parsed credential on a cache miss; None where it is not valid.

        `peer` names the other end of the connection, as grpc does. Raises `Stale`.
        """
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
        cached = self._holders.get(digest)
        if cached is None:
            if self._feed is not None and (credential_id := self._unknown.get(digest)):
                self._failed.note(peer_network(peer()), Refusal.UNKNOWN, credential_id)
                return None
            presented = token_format.parse(text)
            if presented is None:
                self._failed.note(peer_network(peer()), Refusal.MALFORMED)
            return presented
        holder, entry, epoch, until = cached
        feed = self._feed
        if feed is None:
            return token_format.parse(text)
        feed.require_fresh()
        if not feed.cache.is_current(holder.caller.organization, entry, epoch):
            return token_format.parse(text)
        if until <= now():
            return self.admit(holder, peer)
        self._note_use(holder.caller.credential_id)
        return holder.caller

    def admit(self, holder: CredentialHolder, peer: Callable[[], str]) -> Caller | None:
        """Return the caller; None where the credential doesn't work now from this peer."""
        caller = holder.caller
        refusal = holder.validity.refusal(now(), lambda: peer_address(peer()))
        if refusal is None:
            self._note_use(caller.credential_id)
            return caller
        self._failed.note(peer_network(peer()), refusal, caller.credential_id)
        if refusal is not Refusal.EXPIRED:
            self._on_misuse(refusal, caller.organization, caller.user_id, caller.credential_id)
        return None

    def was_valid(self, digest: bytes) -> bool:
        """Whether the credential was valid within the last 10 minutes, so that presenting it is no guess."""
        return self._recently_valid.get(digest) is not None

    def note_valid(self, digest: bytes, credential_id: str) -> None:
        """Note that the credential is valid."""
        self._recently_valid.put(digest, credential_id)

    def epoch(self) -> int:
        """Return the cache's epoch, to be read before a query whose result is put."""
        return self._feed.cache.epoch if self._feed else 0

    def put(self, presented: PresentedCredential, holder: CredentialHolder, revision: int, epoch: int) -> None:
        """Cache a holder that was read in a snapshot of this revision, whether its credential is live or not."""
        validity = holder.validity
        if validity.ended(now()) is None:
            self.note_valid(presented.digest, presented.id)
        if self._feed is None:
            return
        names = names_of(holder.caller.assigned, presented.id, holder.caller.user_id)
        entry = self._feed.cache.external_entry(holder.caller.organization, revision, holder, names, epoch)
        if entry is not None:
            self._holders.put(presented.digest, _CachedHolder(holder, entry, epoch, validity.everywhere_until))

    def put_unknown(self, presented: PresentedCredential) -> None:
        """Cache that no credential has this secret."""
        self._unknown.put(presented.digest, presented.id)
        self._holders.drop(presented.digest)


class Authenticator:
    """Finds the caller behind a credential, in the database on a cache miss. Threads may share it."""

    def __init__(
        self,
        storage: Storage,
        feed: ChangeFeed | None = None,
        limits: Limits = DEFAULT_LIMITS,
        *,
        on_misuse: OnMisuse = lambda _refusal, _organization, _user_id, _credential_id: None,
    ) -> None:
        self._storage = storage
        self.last_used = LastUsed(storage)
        self.failed = FailedAuthentications(limits)
        self.cache = CredentialCache(feed, self.last_used.note, on_misuse, self.failed, limits)
        self.loader = BatchLoader("credentials", self._load, limits, queue=limits.queued_credentials)
        self._guesses = RateLimiter("credentials that are not valid", limits.failed_credentials)

    def authenticate_cached(self, text: str, peer: Callable[[], str] = str) -> Caller | Miss[Caller | None] | None:
        """Return the caller who presents `text`, None where it is not valid (as where it is malformed), or a miss.

        `peer` names the other end of the connection, as grpc does. Raises `Stale`.
        """
        found = self.cache.authenticate(text, peer)
        if not isinstance(found, PresentedCredential):
            return found
        return self._miss(found, peer)

    def authenticate(self, text: str, peer: Callable[[], str] = str) -> Caller | None:
        """Return what `authenticate_cached` does, but wait for the database on a miss.

        Raises `RateLimited`, `StorageUnavailable`, `Stale`.
        """
        found = self.authenticate_cached(text, peer)
        return found.wait() if isinstance(found, Miss) else found

    def reload(self, tx: Transaction, caller: Caller) -> Caller:
        """Read the caller again in the transaction. Raises `UnauthenticatedCredential` where its credential is dead."""
        (holder,) = credential_rows.holders(tx, [(caller.credential_id, caller.digest)])
        if holder is None or holder.validity.ended(now()):
            raise UnauthenticatedCredential
        return holder.caller

    def _miss(self, presented: PresentedCredential, peer: Callable[[], str]) -> Miss[Caller | None]:
        # Only a credential that may be a guess is counted, and refused where the queue is full.
        guessing_peer = "" if self.cache.was_valid(presented.digest) else peer_network(peer())

        def start() -> Future[CredentialHolder | None]:
            if guessing_peer:
                try:
                    self._guesses.require(guessing_peer)
                except RateLimited:
                    self.failed.note(guessing_peer, Refusal.RATE_LIMITED)
                    raise
            return self.loader.load(presented, urgent=not guessing_peer)

        def finish(holder: CredentialHolder | None) -> Caller | None:
            if holder is not None:
                return self.cache.admit(holder, peer)
            self.failed.note(peer_network(peer()), Refusal.UNKNOWN, presented.id)
            if guessing_peer:
                self._guesses.count(guessing_peer)
            return None

        return Miss(start, finish)

    def _load(self, presented: list[PresentedCredential]) -> list[CredentialHolder | None]:
        """Read the holder of each credential, in one snapshot; None for an unknown one."""
        epoch = self.cache.epoch()

        def work(tx: Transaction) -> tuple[list[CredentialHolder | None], dict[str, int]]:
            holders = credential_rows.holders(tx, [(each.id, each.digest) for each in presented])
            organizations = {holder.caller.organization for holder in holders if holder}
            return holders, organization_rows.revisions_of(tx, organizations)

        holders, revisions = self._storage.read(work)
        for each, holder in zip(presented, holders, strict=True):
            if holder is None:
                self.cache.put_unknown(each)
            else:
                self.cache.put(each, holder, revisions[holder.caller.organization], epoch)
        return holders
