"""Two threads of a server, or of two, change the same thing at the same moment."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from races.kinds import RACES
from races.participants import Action, Participant, Result
from races.racing import POLICIES, Race, RaceDatabase, open_race_database, run_race
from rolecall.storage import Storage
from support.databases import ALL_KINDS


@pytest.fixture(scope="module", params=ALL_KINDS)
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaceDatabase]:
    """One database of each kind for all tests here."""
    with open_race_database(request.param, tmp_path_factory.mktemp("threads")) as made:
        yield made


@pytest.fixture(scope="module")
def other_participants(database: RaceDatabase) -> Iterator[tuple[Participant, Participant]]:
    """Two participants that share only the database."""
    storages = [Storage(database.url), Storage(database.url)]
    one, other = (Participant(storage, database.key_file, POLICIES) for storage in storages)
    yield one, other
    for storage in storages:
        storage.close()


@pytest.fixture
def _frequent_switches() -> Iterator[None]:
    """Make the interpreter switch threads twenty times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 20)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_frequent_switches")
@pytest.mark.parametrize("kind", RACES, ids=lambda kind: kind.name)
def test_threads_race(
    database: RaceDatabase, other_participants: tuple[Participant, Participant], kind: type[Race]
) -> None:
    """One of two racing threads gets what it wants, and the result is as if they had come one after the other."""
    start = Barrier(2)

    def do(participant: Participant, action: Action) -> Result:
        go = participant.ready(action)
        start.wait(30)
        return go()

    def run(number: int, actions: tuple[Action, Action]) -> tuple[Result, Result]:
        # As threads of one server, or of two, in turn.
        actors = (database.participant, database.participant) if number % 2 else other_participants
        one, other = pool.map(do, actors, actions)
        return one, other

    with ThreadPoolExecutor(2) as pool:
        run_race(kind, database, run)
