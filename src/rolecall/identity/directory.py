"""Directory of subjects: the roles of members, of tokens, and of the holders of presented tokens."""

import hmac
import math
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from rolecall.domain import (
    NOTHING_ASSIGNED,
    AssignedRoles,
    Principal,
    PrincipalKind,
    Refusal,
    Restriction,
    Subject,
    SubjectKind,
    Validity,
    now,
)
from rolecall.errors import StorageUnavailable
from rolecall.identity.authentication import UNKNOWN_SECONDS, Authenticator, OnMisuse
from rolecall.identity.batch_loader import BatchLoader, Miss
from rolecall.identity.cache import LoadedEntry, names_of
from rolecall.identity.change_feed import ChangeFeed
from rolecall.identity.rate_limit import RateLimiter
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.storage import Storage, Transaction
from rolecall.storage import assignments as assignment_rows
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage.credentials import KnownToken

__all__ = ["Directory", "ResolvedSubject", "ResolvedSubjects", "SubjectCache"]

# Subjects in one query: PostgreSQL takes 65,535 parameters.
MAX_PER_QUERY = 10_000

_ALWAYS = Validity(2**62)


@dataclass(frozen=True, slots=True)
class ResolvedSubject:
    """Roles that a subject acts with; for a token its restriction and validity.

    `user_id` and `email_key`, the normalised address, are the person's, if there is one.
    `is_plain`: it has one role and no restriction, so that nothing else is to be evaluated.
    """

    role: str
    restriction: Restriction | None = None
    validity: Validity = field(default=_ALWAYS, compare=False)
    user_id: str = field(default="", compare=False)
    email_key: str = field(default="", compare=False)
    assigned: AssignedRoles = NOTHING_ASSIGNED
    is_plain: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Derive `is_plain`."""
        object.__setattr__(self, "is_plain", self.restriction is None and not self.assigned)


class ResolvedSubjects(NamedTuple):
    """Subjects resolved at one revision of an organization, in order; None for one that is unknown there.

    A hypothetical role resolves to None.
    """

    revision: int
    subjects: list[ResolvedSubject | None]


class _LoadKey(NamedTuple):
    """Key of the batch loader: subjects of one organization that are resolved in one snapshot."""

    organization: str
    subjects: tuple[Subject, ...]


class SubjectCache:
    """Resolves subjects from the cache alone. Has no storage, so it never blocks; look-ups take no lock.

    Without a change feed nothing is cached, as nothing would invalidate it.
    """

    def __init__(self, feed: ChangeFeed | None, note_use: Callable[[str], None], on_misuse: OnMisuse) -> None:
        self._feed = feed
        self._note_use = note_use
        self._on_misuse = on_misuse

    def resolve_one(
        self, organization: str, subject: Subject, at_least: int = 0
    ) -> tuple[int, ResolvedSubject | None] | None:
        """Return the revision and the resolved subject; None on a miss, or below `at_least`. Raises `Stale`."""
        feed = self._feed
        if feed is None:
            return None
        feed.require_fresh()
        cached = feed.cache.get_one(organization, subject.key)
        if cached is None or cached[0] < at_least:
            return None
        token = cached[1]
        if not subject.is_token or token is None:
            return cached
        if token.validity.everywhere_until <= now():
            return cached[0], self._valid_token(organization, subject, token)
        if subject.digest:
            self._note_use(subject.value)
        return cached

    def resolve(self, organization: str, subjects: Collection[Subject], at_least: int = 0) -> ResolvedSubjects | None:
        """Resolve all at one revision; None where any is a miss, or the cache is below `at_least`. Raises `Stale`."""
        feed = self._feed
        if feed is None:
            return None
        feed.require_fresh()
        cached = feed.cache.get_many(organization, subjects)
        if cached is None or cached[0] < at_least:
            return None
        return self.only_valid(organization, subjects, ResolvedSubjects(*cached))

    def only_valid(self, organization: str, subjects: Iterable[Subject], found: ResolvedSubjects) -> ResolvedSubjects:
        """Return what was found, with None for each token that doesn't work now; note the uses of presented ones."""
        tokens = [(place, subject) for place, subject in enumerate(subjects) if subject.is_token]
        if not tokens:
            return found
        resolved = list(found.subjects)
        for place, subject in tokens:
            if each := resolved[place]:
                resolved[place] = self._valid_token(organization, subject, each)
        return ResolvedSubjects(found.revision, resolved)

    def _valid_token(self, organization: str, subject: Subject, token: ResolvedSubject) -> ResolvedSubject | None:
        """Return the token where it works now; None where it doesn't. One that is only named may be anywhere."""
        if not subject.digest:
            return None if token.validity.ended(now()) else token
        refusal = token.validity.refusal(now(), lambda: subject.address)
        if refusal is None:
            self._note_use(subject.value)
            return token
        # A service that doesn't say where the token was presented from is no misuse of the token.
        is_elsewhere = refusal is Refusal.OUTSIDE_NETWORKS and subject.address is not None
        if is_elsewhere or refusal in (Refusal.DELETED, Refusal.ROTATED):
            self._on_misuse(refusal, organization, token.user_id, subject.value)
        return None

    def epoch(self) -> int:
        """The cache's epoch, to be read before a query whose result is put."""
        return self._feed.cache.epoch if self._feed else 0

    def put(self, organization: str, revision: int, entries: Iterable[LoadedEntry], epoch: int) -> None:
        """Cache what was read in one snapshot of this revision."""
        if self._feed:
            self._feed.cache.put(organization, revision, entries, epoch)


class Directory:
    """Resolves subjects, in the database on a cache miss. Threads may share it."""

    def __init__(
        self,
        storage: Storage,
        authenticator: Authenticator,
        feed: ChangeFeed | None = None,
        limits: Limits = DEFAULT_LIMITS,
        *,
        on_misuse: OnMisuse = lambda _refusal, _organization, _user_id, _credential_id: None,
    ) -> None:
        self._storage = storage
        self._credentials = authenticator.cache
        self.cache = SubjectCache(feed, authenticator.last_used.note, on_misuse)
        self.loader = BatchLoader("subjects", self._load, limits, queue=limits.queued_subjects)
        self._guesses = RateLimiter("presented tokens that are not valid", limits.guessed_tokens)

    def miss(self, organization: str, subjects: Iterable[Subject], actor: str) -> Miss[ResolvedSubjects]:
        """Return the query for subjects that the cache misses; `actor` is the one whose invalid tokens are limited.

        Its result is of a snapshot that begins after the query was started. Raises `RateLimited` as it starts, and
        `OrganizationNotFound`, `StorageUnavailable` as its result.
        """
        wanted = _LoadKey(organization, tuple(subjects))
        presented = [subject for subject in wanted.subjects if subject.kind is SubjectKind.PRESENTED]
        if not presented:
            return Miss(
                lambda: self.loader.load(wanted),
                lambda found: self.cache.only_valid(organization, wanted.subjects, found),
            )

        def start() -> Future[ResolvedSubjects]:
            # A service that presents tokens of others must not lose its access to the valid ones.
            if not all(self._credentials.was_valid(subject.digest) for subject in presented):
                self._guesses.require(actor)
            return self.loader.load(wanted)

        def finish(found: ResolvedSubjects) -> ResolvedSubjects:
            resolved = self.cache.only_valid(organization, wanted.subjects, found)
            # The secret of a token that has ended is no guess.
            known = {subject.key for subject, each in zip(wanted.subjects, found.subjects, strict=True) if each}
            valid = {subject.key for subject, each in zip(wanted.subjects, resolved.subjects, strict=True) if each}
            for subject in dict.fromkeys(presented):
                if subject.key in valid:
                    self._credentials.note_valid(subject.digest, subject.value)
                elif subject.key not in known:
                    self._guesses.count(actor)
            return resolved

        return Miss(start, finish)

    def resolve(
        self, organization: str, subjects: Collection[Subject], actor: str = "", at_least: int = 0
    ) -> ResolvedSubjects:
        """Resolve the subjects in one snapshot, from the cache or the database.

        Raises `RateLimited`, `OrganizationNotFound`, `StorageUnavailable`, `Stale`.
        """
        cached = self.cache.resolve(organization, subjects, at_least)
        return cached if cached is not None else self.miss(organization, subjects, actor).wait()

    def _load(self, batch: list[_LoadKey]) -> list[ResolvedSubjects | Exception]:
        """Resolve the batch, with one snapshot for each organization. One that fails fails its own requests only."""
        by_organization: dict[str, dict[str, Subject]] = {}
        for organization, subjects in batch:
            distinct = by_organization.setdefault(organization, {})
            distinct.update((subject.key, subject) for subject in subjects if subject.key)
        snapshots: dict[str, tuple[int, dict[str, ResolvedSubject]] | Exception] = {}
        outage: StorageUnavailable | None = None
        for organization, distinct in by_organization.items():
            try:
                snapshots[organization] = outage or self._read(organization, list(distinct.values()))
            except StorageUnavailable as error:
                # Each further query would wait as long again.
                snapshots[organization] = outage = error
            except Exception as error:  # noqa: BLE001 - returned to the requests of this organization
                snapshots[organization] = error
        loaded: list[ResolvedSubjects | Exception] = []
        for organization, subjects in batch:
            snapshot = snapshots[organization]
            if isinstance(snapshot, Exception):
                loaded.append(snapshot)
            else:
                revision, found = snapshot
                loaded.append(ResolvedSubjects(revision, [found.get(subject.key) for subject in subjects]))
        return loaded

    def _read(self, organization: str, subjects: list[Subject]) -> tuple[int, dict[str, ResolvedSubject]]:
        """Read subjects in one snapshot, cache them, and return its revision and those that were found, by key."""
        names: dict[str, tuple[str, ...]] = {}
        epoch = self.cache.epoch()

        def work(tx: Transaction) -> tuple[int, dict[str, ResolvedSubject]]:
            revision = organization_rows.revision_of(tx, organization)
            found: dict[str, ResolvedSubject] = {}
            for first in range(0, len(subjects), MAX_PER_QUERY):
                found |= _resolved(tx, organization, subjects[first : first + MAX_PER_QUERY], names)
            return revision, found

        revision, found = self._storage.read(work)
        entries = []
        for subject in subjects:
            resolved = found.get(subject.key)
            seconds = math.inf if resolved else UNKNOWN_SECONDS
            entries.append(LoadedEntry(subject.key, resolved, names.get(subject.key, ()), seconds))
        self.cache.put(organization, revision, entries, epoch)
        return revision, found


def _resolved(
    tx: Transaction,
    organization: str,
    subjects: Collection[Subject],
    names: dict[str, tuple[str, ...]],
) -> dict[str, ResolvedSubject]:
    """Resolve subjects with one query for each kind of subject, and one for what is assigned to them.

    Tokens are resolved whether they are live or not.

    Adds to `names` the ids that each entry depends on.
    """
    values: dict[SubjectKind, set[str]] = {}
    for subject in subjects:
        values.setdefault(subject.kind, set()).add(subject.value)
    by_id = member_rows.roles_by_id(tx, organization, ids) if (ids := values.get(SubjectKind.USER_ID)) else {}
    by_email = member_rows.roles_by_email(tx, organization, keys) if (keys := values.get(SubjectKind.EMAIL)) else {}
    external = values.get(SubjectKind.EXTERNAL_ID)
    by_external_id = member_rows.roles_by_external_id(tx, organization, external) if external else {}
    tokens = values.get(SubjectKind.TOKEN_ID, set()) | values.get(SubjectKind.PRESENTED, set())
    by_token = credential_rows.tokens(tx, organization, tokens) if tokens else {}
    # The role, the user id and the address of each member.
    members: dict[str, tuple[str, str, str]] = {}
    for subject in subjects:
        match subject.kind:
            case SubjectKind.USER_ID if subject.value in by_id:
                role, email_key = by_id[subject.value]
                members[subject.key] = role, subject.value, email_key
            case SubjectKind.EMAIL if subject.value in by_email:
                members[subject.key] = *by_email[subject.value], subject.value
            case SubjectKind.EXTERNAL_ID if subject.value in by_external_id:
                members[subject.key] = by_external_id[subject.value]
    principals = {Principal(PrincipalKind.USER, user_id) for _, user_id, _ in members.values()}
    assigned = assignment_rows.assigned(tx, organization, principals) if principals else {}
    found: dict[str, ResolvedSubject] = {}
    for subject in subjects:
        key = subject.key
        if key in members:
            role, user_id, email_key = members[key]
            held = assigned[Principal(PrincipalKind.USER, user_id)]
            found[key] = ResolvedSubject(role, user_id=user_id, email_key=email_key, assigned=held)
            names[key] = names_of(held, user_id)
        elif subject.is_token and subject.value in by_token:
            token = by_token[subject.value]
            validity = token.validity if subject.kind is SubjectKind.TOKEN_ID else _validity(subject.digest, token)
            if validity:
                holder = (token.user_id, token.email_key)
                found[key] = ResolvedSubject(token.role, token.restriction, validity, *holder, token.assigned)
                names[key] = names_of(token.assigned, subject.value, token.user_id)
    return found


def _validity(digest: bytes, token: KnownToken) -> Validity | None:
    """Return the validity of the token's secret with this digest; None for a wrong one. Takes constant time."""
    found = [validity for known, validity in token.secrets.items() if hmac.compare_digest(digest, known)]
    return found[0] if found else None
