"""The caller behind a credential, and limits on presenting credentials that are not valid."""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from rolecall.credentials import token_format
from rolecall.credentials.token_format import PresentedCredential
from rolecall.domain import Caller, CredentialKind, now
from rolecall.errors import UnauthenticatedCredential
from rolecall.identity.batch_loader import BatchLoader, Miss
from rolecall.identity.cache import CacheEntry, TTLCache
from rolecall.identity.change_feed import ChangeFeed
from rolecall.identity.last_used import LastUsed
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.rate_limit import RateLimiter
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage.credentials import CredentialHolder

__all__ = ["INVALID_SECONDS", "Authenticator", "CredentialCache"]

# Seconds for which a credential that was valid counts as no guess.
RECENTLY_VALID_SECONDS = 600.0
# Seconds for which an invalid credential is cached as invalid; an expired or revoked one never becomes valid again.
INVALID_SECONDS = 60.0

# Result of the batch loader for a credential that is not valid.
_NO_HOLDER = CredentialHolder(Caller("", "", CredentialKind.PERSONAL, "", "", ""), until=0)


class _CachedHolder(NamedTuple):
    """A credential's holder, the entry that says at which revision it was read, and the cache's epoch then."""

    holder: CredentialHolder
    entry: CacheEntry
    epoch: int


class CredentialCache:
    """Callers by credential. Has no storage, so it never blocks. Threads may share it; look-ups take no lock.

    Without a change feed nothing is cached, as nothing would invalidate it.
    """

    def __init__(
        self, feed: ChangeFeed | None, note_use: Callable[[str], None], limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._feed = feed
        self._note_use = note_use
        capacity = limits.cached_entries
        self._holders: TTLCache[bytes, _CachedHolder] = TTLCache(capacity, limits.cached_seconds)
        self._invalid: TTLCache[bytes, str] = TTLCache(capacity, INVALID_SECONDS)
        self._recently_valid: TTLCache[bytes, str] = TTLCache(capacity, RECENTLY_VALID_SECONDS)

    def authenticate(self, text: str) -> Caller | PresentedCredential | None:
        """Return the caller who presents `text`; the parsed credential on a cache miss; None where it is not valid.

        Raises `Stale`.
        """
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
        cached = self._holders.get(digest)
        if cached is None:
            if self._feed is not None and self._invalid.get(digest):
                return None
            return token_format.parse(text)
        holder, entry, epoch = cached
        feed = self._feed
        if feed is None:
            return token_format.parse(text)
        feed.require_fresh()
        # An expired secret is read once more: the use of one from before a rotation is recorded in the audit log.
        if holder.until <= now() or not feed.cache.is_current(holder.caller.organization, entry, epoch):
            return token_format.parse(text)
        self._note_use(holder.caller.credential_id)
        return holder.caller

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
        """Cache a holder that was read in a snapshot of this revision."""
        self.note_valid(presented.digest, presented.id)
        if self._feed is None:
            return
        names = tuple(filter(None, (presented.id, holder.caller.user_id)))
        entry = self._feed.cache.external_entry(holder.caller.organization, revision, holder, names, epoch)
        if entry is not None:
            self._holders.put(presented.digest, _CachedHolder(holder, entry, epoch))

    def put_invalid(self, presented: PresentedCredential) -> None:
        """Cache that the credential is not valid."""
        self._invalid.put(presented.digest, presented.id)
        self._holders.drop(presented.digest)


class Authenticator:
    """Finds the caller behind a credential, in the database on a cache miss. Threads may share it."""

    def __init__(
        self,
        storage: Storage,
        feed: ChangeFeed | None = None,
        limits: Limits = DEFAULT_LIMITS,
        *,
        on_retired: Callable[[str, str, str], None] = lambda _organization, _user_id, _credential_id: None,
    ) -> None:
        """`on_retired` gets organization, user and token of a secret that is presented after its rotation's overlap."""
        self._storage = storage
        self._on_retired = on_retired
        self.last_used = LastUsed(storage)
        self.cache = CredentialCache(feed, self.last_used.note, limits)
        self.loader = BatchLoader("credentials", self._load, limits, queue=limits.queued_credentials)
        self._failures = RateLimiter("credentials that are not valid", limits.failed_credentials)

    def authenticate_cached(self, text: str, peer: Callable[[], str] = str) -> Caller | Miss[Caller | None] | None:
        """Return the caller who presents `text`, None where it is not valid (as where it is malformed), or a miss.

        `peer` names the network that the call comes from. Raises `Stale`.
        """
        found = self.cache.authenticate(text)
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
        (holder,) = credential_rows.live_holders(tx, [(caller.credential_id, caller.digest)], now())
        if holder is None or holder.retired:
            raise UnauthenticatedCredential
        return holder.caller

    def _miss(self, presented: PresentedCredential, peer: Callable[[], str]) -> Miss[Caller | None]:
        # Only a credential that may be a guess is counted, and refused where the queue is full.
        guessing_peer = "" if self.cache.was_valid(presented.digest) else peer()

        def start() -> Future[CredentialHolder]:
            if guessing_peer:
                self._failures.require(guessing_peer)
            return self.loader.load(presented, urgent=not guessing_peer)

        def finish(holder: CredentialHolder) -> Caller | None:
            if holder is _NO_HOLDER and guessing_peer:
                self._failures.count(guessing_peer)
            return holder.caller if holder.until > now() else None

        return Miss(start, finish)

    def _load(self, presented: list[PresentedCredential]) -> list[CredentialHolder | Exception]:
        """Read the holder of each credential, in one snapshot."""
        epoch = self.cache.epoch()
        at = now()

        def work(tx: Transaction) -> tuple[list[CredentialHolder | None], dict[str, int]]:
            holders = credential_rows.live_holders(tx, [(each.id, each.digest) for each in presented], at)
            organizations = {holder.caller.organization for holder in holders if holder}
            return holders, organization_rows.revisions_of(tx, organizations)

        holders, revisions = self._storage.read(work)
        loaded: list[CredentialHolder | Exception] = []
        for each, holder in zip(presented, holders, strict=True):
            if holder and holder.retired:
                self._on_retired(holder.caller.organization, holder.caller.user_id, each.id)
            if holder is None or holder.retired:
                self.cache.put_invalid(each)
                loaded.append(_NO_HOLDER)
                continue
            self.cache.put(each, holder, revisions[holder.caller.organization], epoch)
            self.last_used.note(each.id)
            loaded.append(holder)
        return loaded
