"""How a race is held between two who change the same thing at once, and what must hold whoever comes first."""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
from actors import DONE, Actor, Deed, Outcome
from conftest import CI, POSTGRES_URL, ROOT
from postgres import PostgresServer
from sqlalchemy import and_, func, select, text

from rolecall import credentials, keys, organizations, policy
from rolecall.audit import AuditLog, verify
from rolecall.directory import Directory
from rolecall.domain import Member, now
from rolecall.sessions import open_session
from rolecall.storage import Storage, Transaction, tables
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows

__all__ = ["POLICIES", "Court", "Race", "Run", "court", "hold", "session"]

POLICIES = ROOT / "policies"
# By how many seconds the second begins behind the first, in turn: each of them is to be first now and then.
LAGS = (0.0, 0.001, -0.001, 0.002, -0.002)

# What must never be, whoever came first.
UNSOUND = text("""
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
# Does two deeds at once. It is told the number of the round, where there are several ways.
Run = Callable[[int, tuple[Deed, Deed]], tuple[Outcome, Outcome]]


class Court:
    """One database for many races, and an actor in this process."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.key_file = folder / "rolecall.key"
        self.log = AuditLog(keys.create(self.key_file))
        self.policy = policy.load(POLICIES, 0.0)
        self.storage = Storage(url)
        self.storage.create()
        # What is read here, no change in this process has to do with.
        self.onlooker = Storage(url)
        self.actor = Actor(self.storage, self.key_file, POLICIES)

    def close(self) -> None:
        """Let go of the database."""
        self.storage.close()
        self.onlooker.close()


@contextmanager
def court(kind: str, folder: Path) -> Iterator[Court]:
    """Over a new database of this kind, for all tests of a module."""
    with ExitStack() as stack:
        if kind == "sqlite":
            url = f"sqlite:///{folder}/rolecall.db"
        elif POSTGRES_URL in os.environ:
            url = stack.enter_context(PostgresServer.new_database(os.environ[POSTGRES_URL]))
        else:
            pytest.skip("PostgreSQL is not installed")
        made = Court(url, folder)
        stack.callback(made.close)
        yield made


class Race(ABC):
    """Two deeds at once in an organization of their own; how they may end; what holds then."""

    name: ClassVar[str]
    # What the two may be told: each of these comes up in many rounds, and nothing else.
    endings: ClassVar[set[tuple[str, str]]]
    rounds: ClassVar[int] = 200 if CI else 12

    def __init__(self, court: Court) -> None:
        self.court = court
        self.ann = organizations.found(court.storage, court.log, court.policy, self.name, "ann@acme.io").owner
        # How often something was changed, and how much of that is in the audit log.
        self.changed = self.recorded = 1
        self.owner = self.put(lambda tx: session(tx, self.ann))

    @abstractmethod
    def deeds(self, number: int) -> tuple[Deed, Deed]:
        """Make ready for a round."""

    @abstractmethod
    def judge(self, tx: Transaction, one: Outcome, other: Outcome) -> tuple[set[str], set[str]]:
        """Look at what the two left behind; answers the credentials that must live and those that must be dead."""

    def put(self, work: Callable[[Transaction], T]) -> T:
        """Change something past the services: one mutation, which nobody records."""
        self.changed += 1
        return self.court.storage.mutate(self.name, work)

    def count(self, outcome: Outcome) -> None:
        """Note what was done through the services."""
        self.changed += outcome.said == DONE
        self.recorded += outcome.said == DONE

    def act(self, what: str, secret: str, *about: str) -> Outcome:
        """Have something done that nobody disputes."""
        outcome = self.court.actor.ready(Deed(what, secret, about))()
        assert outcome.said == DONE, outcome
        self.count(outcome)
        return outcome

    def join(self, tx: Transaction, email: str, role: str) -> Member:
        """Let somebody in past the services."""
        at = now()
        member = Member(self.name, credentials.new_id(), email, email.partition("@")[0], role, at, at)
        member_rows.add(tx, member, email)
        return member

    def state(self, tx: Transaction, invitation: str) -> str:
        """An invitation's state."""
        rows = tables.invitations
        return str(tx.connection.scalars(select(rows.c.state).where(rows.c.id == invitation)).one())

    def joined(self, tx: Transaction, invitation: str) -> list[str]:
        """The members who have the address of an invitation."""
        rows, members = tables.invitations, tables.members
        same = and_(members.c.organization == rows.c.organization, members.c.email_key == rows.c.email_key)
        query = select(members.c.user_id).join_from(rows, members, same).where(rows.c.id == invitation)
        return list(tx.connection.scalars(query))

    def held(self, tx: Transaction, user_id: str) -> int:
        """How many credentials a person has."""
        rows = tables.credentials
        query = select(func.count()).select_from(rows)
        return tx.connection.scalars(query.where(rows.c.organization == self.name, rows.c.user_id == user_id)).one()


def session(tx: Transaction, member: Member) -> str:
    """The text of a new session."""
    return open_session(tx, member, now()).session.text


def hold(kind: type[Race], court: Court, run: Run) -> None:
    """Hold a race many times, and look after each time whether all is as it must be."""
    race = kind(court)
    endings: Counter[tuple[str, str]] = Counter()
    conflicts = at_once = 0
    for number in range(race.rounds):
        lag = LAGS[number % len(LAGS)]
        one, other = race.deeds(number)
        deeds = replace(one, pause=max(-lag, 0.0)), replace(other, pause=max(lag, 0.0))
        first, second = run(number, deeds)
        ending = first.said, second.said
        assert ending in race.endings, number
        endings[ending] += 1
        conflicts += bool(first.conflicts or second.conflicts)
        at_once += first.began < second.ended and second.began < first.ended
        race.count(first)
        race.count(second)
        _look(race, first, second)

    # They did meet, and neither always came first.
    assert set(endings) == race.endings, endings
    assert at_once > race.rounds / 4
    # That others keep somebody from writing to the end is rare: but one of few rounds may be the rare one.
    assert conflicts <= 2 + race.rounds / 50
    assert court.onlooker.read(lambda tx: organization_rows.revision_of(tx, race.name)) == race.changed
    verdict = court.onlooker.read(lambda tx: verify(tx, court.log, race.name))
    assert verdict.whole, verdict.problem
    assert verdict.entries == race.recorded


def _look(race: Race, one: Outcome, other: Outcome) -> None:
    """Look at the database, and at who is let in: by one who hears of it now, and by one who knew the old state."""
    live, dead = race.court.onlooker.read(lambda tx: _judged(tx, race, one, other))
    for directory in (Directory(race.court.onlooker), race.court.actor.directory):
        # Each as a stranger of its own, as one who is wrong so often would soon be turned away.
        assert {secret for secret in live | dead if directory.caller(secret, partial(str, secret))} == live


def _judged(tx: Transaction, race: Race, one: Outcome, other: Outcome) -> tuple[set[str], set[str]]:
    """The credentials that must live and those that must be dead, where all else is sound."""
    assert tx.connection.execute(UNSOUND, {"name": race.name}).all() == []
    return race.judge(tx, one, other)
