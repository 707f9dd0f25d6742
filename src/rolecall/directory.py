"""Who somebody is: the caller behind a credential, and the role of a subject.

With a feed, both are remembered until something changes them, and memory answers; without one, as in the tools of an
operator, the database is asked each time.
"""

import hmac
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from rolecall.callers import DEAD_SECONDS, Callers
from rolecall.domain import Caller, Restriction, Subject, SubjectKind, now
from rolecall.errors import OrganizationNotFound
from rolecall.feed import Feed
from rolecall.gathered import Gathered
from rolecall.limits import Limit
from rolecall.remembered import MISSING, Found
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage.credentials import LiveToken

__all__ = ["Directory", "Lacking", "Standing", "Standings"]

# So many subjects are looked up by one query; PostgreSQL takes 65,535 values.
MAX_TOGETHER = 10_000
# Tokens that callers present in questions, and that aren't live: so many for one caller.
GUESSES_A_SECOND = 10.0
GUESSES_AT_ONCE = 1000

# Without end.
_EVER = 2**62


@dataclass(frozen=True, slots=True)
class Standing:
    """The role that a subject acts with, what its token cuts it down to, and until when."""

    role: str
    restriction: Restriction = None
    until: int = field(default=_EVER, compare=False)


class Standings(NamedTuple):
    """Where each of some subjects stands at one revision of an organization, in their order; None who is unknown there.

    A hypothetical role stands nowhere.
    """

    revision: int
    each: list[Standing | None]


class Lacking(NamedTuple):
    """The subjects of an organization that memory doesn't know."""

    organization: str
    subjects: Collection[Subject]


class Directory:
    """Reads of members and credentials. Threads may share it."""

    def __init__(
        self,
        storage: Storage,
        feed: Feed | None = None,
        *,
        look_ups: int = 8,
        on_retired: Callable[[str, str, str], None] = lambda _organization, _user_id, _credential_id: None,
    ) -> None:
        """At most `look_ups` of credentials run at once, and twice as many wait.

        `on_retired` is told the organization, user and token when somebody presents a secret from before its rotation.
        """
        self._storage = storage
        self._feed = feed
        self._on_retired = on_retired
        self._callers = Callers(storage, feed, look_ups=look_ups, on_retired=on_retired)
        # What is asked for most takes no step more.
        self.caller: Callable[..., Caller | None] = self._callers.find
        self.again: Callable[[Transaction, Caller], Caller] = self._callers.again
        self.uses = self._callers.uses
        self._guesses = Limit("presented tokens that are not valid", rate=GUESSES_A_SECOND, burst=GUESSES_AT_ONCE)
        self._misses: Gathered[Subject] = Gathered(self._remember)

    def standing(
        self, organization: str, subject: Subject, asker: str = "", at_least: int = 0
    ) -> tuple[int, Standing | None]:
        """The organization's revision, and where one subject stands there. As `standings`."""
        feed = self._feed
        if feed is not None and not subject.digest:
            feed.require_fresh()
            recalled = feed.remembered.recall_one(organization, subject.key)
            if recalled is not None and recalled[0] >= at_least:
                return recalled
        standings = self.standings(organization, (subject,), asker, at_least)
        return standings.revision, standings.each[0]

    def standings(
        self, organization: str, subjects: Collection[Subject], asker: str = "", at_least: int = 0
    ) -> Standings:
        """Where `subjects` stand, all from one snapshot. `asker` is whose guesses are limited.

        Memory answers where it has come to the revision `at_least`.

        Raises `RateLimited`, `OrganizationNotFound`, `StorageUnavailable`.
        """
        standings = self._recalled(organization, subjects, at_least)
        if standings is None:
            standings = self._looked_up(organization, subjects, asker, at_least)
        for subject, standing in zip(subjects, standings.each, strict=True):
            if subject.digest and standing:
                self.uses.note(subject.value)
        return standings

    def remember(self, lacking: Iterable[Lacking]) -> None:
        """Have memory know all of them: one query an organization, whoever asked. Raises `StorageUnavailable`.

        Who is of no organization that there is stays unknown: others must not fare worse for that.
        """
        wanted: dict[str, dict[str, Subject]] = {}
        for organization, subjects in lacking:
            wanted.setdefault(organization, {}).update((subject.key, subject) for subject in subjects)
        for organization, found in wanted.items():
            with suppress(OrganizationNotFound):
                self._misses.look_up(organization, found.values())

    def _looked_up(self, organization: str, subjects: Collection[Subject], asker: str, at_least: int) -> Standings:
        presented = {subject.key: subject for subject in subjects if subject.kind is SubjectKind.PRESENTED}
        # Guesses are counted one by one, and memory that is behind is of no use.
        helps = self._feed and not presented and not at_least
        self._storage.require_patience(Lacking(organization, subjects) if helps else None)
        if not all(self._callers.known.get(subject.digest) for subject in presented.values()):
            # Whoever relays the tokens of others must not be shut out from good ones by those that are not.
            self._guesses.require(asker)
        standings = None
        if self._feed:
            self._misses.look_up(organization, subjects)
            standings = self._recalled(organization, subjects, at_least)
        if standings is None:
            # Something changed meanwhile, they were remembered from different snapshots, or memory is behind.
            standings = self._read(organization, subjects)[0]
        live = {subject.key for subject, standing in zip(subjects, standings.each, strict=True) if standing}
        for subject in presented.values():
            if subject.key in live:
                self._callers.known.put(subject.digest, subject.value)
            else:
                self._guesses.count(asker)
        return standings

    def _recalled(self, organization: str, subjects: Collection[Subject], at_least: int) -> Standings | None:
        """What memory says of all of them, as of one snapshot; None where it can't."""
        feed = self._feed
        if feed is None:
            return None
        feed.require_fresh()
        recalled = feed.remembered.recall(organization, subjects)
        return Standings(*recalled) if recalled is not None and recalled[0] >= at_least else None

    def _remember(self, organization: str, subjects: set[Subject]) -> None:
        """Read those of the subjects that memory doesn't know, and remember them."""
        assert self._feed is not None  # noqa: S101 - for the type checker
        remembered = self._feed.remembered
        missing = [
            subject for subject in subjects if subject.key and remembered.get(organization, subject.key) is MISSING
        ]
        if not missing and remembered.revision(organization) is not None:
            return
        for first in range(0, max(1, len(missing)), MAX_TOGETHER):
            self._remember_some(organization, missing[first : first + MAX_TOGETHER])

    def _remember_some(self, organization: str, missing: list[Subject]) -> None:
        assert self._feed is not None  # noqa: S101 - for the type checker
        remembered = self._feed.remembered
        ticket = remembered.ticket()
        read, names = self._read(organization, missing)
        at = now()
        found = []
        for subject, standing in zip(missing, read.each, strict=True):
            seconds = (standing.until - at) / 1_000_000 if standing else DEAD_SECONDS
            found.append(Found(subject.key, standing, names.get(subject.key, ()), seconds))
        remembered.put(organization, read.revision, found, ticket)

    def _read(self, organization: str, subjects: Collection[Subject]) -> tuple[Standings, dict[str, tuple[str, ...]]]:
        """Where the subjects stand in the database, and the names of what that depends on."""
        retired: list[tuple[str, str]] = []
        names: dict[str, tuple[str, ...]] = {}

        def work(tx: Transaction) -> Standings:
            retired.clear()
            revision = organization_rows.revision_of(tx, organization)
            found = _standings(tx, organization, subjects, retired, names)
            return Standings(revision, [found.get(subject.key) for subject in subjects])

        standings = self._storage.read(work)
        for user_id, credential_id in retired:
            self._on_retired(organization, user_id, credential_id)
        return standings, names


def _standings(
    tx: Transaction,
    organization: str,
    subjects: Collection[Subject],
    retired: list[tuple[str, str]],
    names: dict[str, tuple[str, ...]],
) -> dict[str, Standing]:
    """One query for each way in which subjects are named.

    Adds to `retired` whose tokens were presented with a secret from before their rotation: the user's id and the
    token's; and to `names` what each standing depends on.
    """
    values: dict[SubjectKind, set[str]] = {}
    for subject in subjects:
        values.setdefault(subject.kind, set()).add(subject.value)
    by_id = member_rows.roles_by_id(tx, organization, ids) if (ids := values.get(SubjectKind.USER_ID)) else {}
    by_email = member_rows.roles_by_email(tx, organization, keys) if (keys := values.get(SubjectKind.EMAIL)) else {}
    tokens = values.get(SubjectKind.TOKEN_ID, set()) | values.get(SubjectKind.PRESENTED, set())
    by_token = credential_rows.live_holders(tx, organization, tokens, now()) if tokens else {}
    found: dict[str, Standing] = {}
    for subject in subjects:
        key = subject.key
        match subject.kind:
            case SubjectKind.USER_ID if subject.value in by_id:
                found[key], names[key] = Standing(by_id[subject.value]), (subject.value,)
            case SubjectKind.EMAIL if subject.value in by_email:
                role, user_id = by_email[subject.value]
                found[key], names[key] = Standing(role), (user_id,)
            case SubjectKind.TOKEN_ID | SubjectKind.PRESENTED if subject.value in by_token:
                token = by_token[subject.value]
                until = token.until if subject.kind is SubjectKind.TOKEN_ID else _until(subject.digest, token)
                if until:
                    found[key] = Standing(token.role, token.restriction, until)
                    names[key] = tuple(filter(None, (subject.value, token.user_id)))
                elif subject.digest in token.retired:
                    retired.append((token.user_id, subject.value))
    return found


def _until(digest: bytes, token: LiveToken) -> int:
    """Until when the token works by the secret with this digest; 0 for a wrong one, in a time that tells nothing."""
    return sum(until for known, until in token.digests.items() if hmac.compare_digest(digest, known))
