"""Races between two participants that change the same thing at once, and the invariants in either order."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

from sqlalchemy import and_, func, select, text

from races.participants import DONE, Action, Participant, Result
from rolecall import policy
from rolecall.audit import AuditLog, verify
from rolecall.credentials import server_key, token_format
from rolecall.domain import Member, now
from rolecall.identity.authentication import Authenticator
from rolecall.services import organizations
from rolecall.services.sessions import open_session
from rolecall.storage import Storage, Transaction, tables
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows
from support.databases import new_database
from support.environment import CI, ROOT

__all__ = ["POLICIES", "Race", "RaceDatabase", "Run", "open_race_database", "run_race", "session"]

POLICIES = ROOT / "policies"
# Seconds by which the second participant starts after the first, in turn, so that each is sometimes the first.
LAGS = (0.0, 0.001, -0.001, 0.002, -0.002, 0.005, -0.005)

# Rows that violate an invariant, in either order of the actions.
VIOLATIONS = text("""
    SELECT 'is invited twice', email_key FROM invitations
    WHERE organization = :name AND state = 'pending' GROUP BY email_key HAVING count(*) > 1
    UNION ALL
    SELECT 'is a member twice', email_key FROM members
    WHERE organization = :name GROUP BY email_key HAVING count(*) > 1
    UNION ALL
    SELECT 'is a member, and invited', email_key FROM members JOIN invitations USING (organization, email_key)
    WHERE organization = :name AND state = 'pending'
    UNION ALL
    SELECT 'is a credential of nobody', id FROM credentials LEFT JOIN members USING (organization, user_id)
    WHERE organization = :name AND credentials.user_id IS NOT NULL AND email_key IS NULL
    UNION ALL
    SELECT 'has no owner', id FROM organizations
    WHERE id = :name AND NOT EXISTS (SELECT 1 FROM members WHERE organization = :name AND role = 'OWNER')
""")

T = TypeVar("T")
# Function that runs two actions at once; it gets the number of the round too.
Run = Callable[[int, tuple[Action, Action]], tuple[Result, Result]]


class RaceDatabase:
    """Database for many races, and a participant in this process."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.key_file = folder / "rolecall.key"
        self.log = AuditLog(server_key.create(self.key_file))
        self.policy = policy.load(POLICIES, 0.0)
        self.storage = Storage(url)
        self.storage.create()
        # For reads that no change in this process affects.
        self.observer = Storage(url)
        self.participant = Participant(self.storage, self.key_file, POLICIES)

    def close(self) -> None:
        """Release the database."""
        self.storage.close()
        self.observer.close()


@contextmanager
def open_race_database(kind: str, folder: Path) -> Iterator[RaceDatabase]:
    """Open a new database of this kind, for all tests of a module."""
    with new_database(kind, folder) as url, closing(RaceDatabase(url, folder)) as made:
        yield made


class Race(ABC):
    """Two actions at once in an organization of their own, with the allowed results and the invariants after them."""

    name: ClassVar[str]
    # The allowed pairs of statuses; each of them occurs in some of the rounds, and no other.
    allowed_results: ClassVar[set[tuple[str, str]]]
    rounds: ClassVar[int] = 150 if CI else 12

    def __init__(self, database: RaceDatabase) -> None:
        self.database = database
        self.ann = organizations.create(database.storage, database.log, database.policy, self.name, "ann@acme.io").owner
        # Number of changes, and number of those that are in the audit log.
        self.changed = self.recorded = 1
        self.owner = self.write(lambda tx: session(tx, self.ann))

    @abstractmethod
    def actions(self, number: int) -> tuple[Action, Action]:
        """Prepare a round, and return its two actions."""

    @abstractmethod
    def check(self, tx: Transaction, one: Result, other: Result) -> tuple[set[str], set[str]]:
        """Check the state after both actions; return the secrets that must work, and those that must not."""

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Change rows without the services: one mutation without an audit entry."""
        self.changed += 1
        return self.database.storage.mutate(self.name, work)

    def count(self, result: Result) -> None:
        """Count an action that was done through the services."""
        self.changed += result.status == DONE
        self.recorded += result.status == DONE

    def run(self, what: str, secret: str, *arguments: str) -> Result:
        """Run an action that must succeed."""
        result = self.database.participant.ready(Action(what, secret, arguments))()
        assert result.status == DONE, result
        self.count(result)
        return result

    def join(self, tx: Transaction, email: str, role: str) -> Member:
        """Add a member without the services."""
        at = now()
        member = Member(self.name, token_format.new_id(), email, email.partition("@")[0], role, at, at)
        member_rows.add(tx, member, email)
        return member

    def state(self, tx: Transaction, invitation: str) -> str:
        """Return the state of an invitation."""
        rows = tables.invitations
        return str(tx.connection.scalars(select(rows.c.state).where(rows.c.id == invitation)).one())

    def members_invited_by(self, tx: Transaction, invitation: str) -> list[str]:
        """Return the members who have the address of an invitation."""
        rows, members = tables.invitations, tables.members
        same = and_(members.c.organization == rows.c.organization, members.c.email_key == rows.c.email_key)
        query = select(members.c.user_id).join_from(rows, members, same).where(rows.c.id == invitation)
        return list(tx.connection.scalars(query))

    def held(self, tx: Transaction, user_id: str) -> int:
        """Count the credentials of a person."""
        rows = tables.credentials
        query = select(func.count()).select_from(rows)
        return tx.connection.scalars(query.where(rows.c.organization == self.name, rows.c.user_id == user_id)).one()


def session(tx: Transaction, member: Member) -> str:
    """Open a session; return its text."""
    return open_session(tx, member, now()).session.text


def run_race(kind: type[Race], database: RaceDatabase, run: Run) -> None:
    """Run a race many times, and check the invariants after each round."""
    race = kind(database)
    seen: Counter[tuple[str, str]] = Counter()
    conflicts = at_once = 0
    for number in range(race.rounds):
        lag = LAGS[number % len(LAGS)]
        one, other = race.actions(number)
        actions = replace(one, pause=max(-lag, 0.0)), replace(other, pause=max(lag, 0.0))
        first, second = run(number, actions)
        statuses = first.status, second.status
        assert statuses in race.allowed_results, number
        seen[statuses] += 1
        conflicts += bool(first.conflicts or second.conflicts)
        at_once += first.began < second.ended and second.began < first.ended
        race.count(first)
        race.count(second)
        _check_round(race, first, second)

    # Each allowed result occurred, and many actions ran at the same time.
    assert set(seen) == race.allowed_results, seen
    assert at_once > race.rounds / 4
    # Actions that end in a write conflict are rare, but among few rounds there may be one.
    assert conflicts <= 2 + race.rounds / 50
    assert database.observer.read(lambda tx: organization_rows.revision_of(tx, race.name)) == race.changed
    verdict = database.observer.read(lambda tx: verify(tx, database.log, race.name))
    assert verdict.intact, verdict.problem
    assert verdict.entries == race.recorded


def _check_round(race: Race, one: Result, other: Result) -> None:
    """Check the database, and which secrets a new authenticator and one with a cache accept."""
    live, dead = race.database.observer.read(lambda tx: _check_database(tx, race, one, other))
    new = Authenticator(race.database.observer)
    for authenticator in (new, race.database.participant.authenticator):
        # Each secret has a peer of its own: one peer with all these failures would be rate-limited.
        assert {secret for secret in live | dead if authenticator.authenticate(secret, partial(str, secret))} == live
    # Each round would leave a thread.
    new.loader.close()


def _check_database(tx: Transaction, race: Race, one: Result, other: Result) -> tuple[set[str], set[str]]:
    """Check the invariants; return the secrets that must work, and those that must not."""
    assert tx.connection.execute(VIOLATIONS, {"name": race.name}).all() == []
    return race.check(tx, one, other)
