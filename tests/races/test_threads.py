"""Two threads of a server, or of two, change the same thing at the same moment."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from actors import Actor, Deed, Outcome
from kinds import RACES
from racing import POLICIES, Court, Race, court, hold

from rolecall.storage import Storage


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    """One database of each kind for all tests here."""
    with court(request.param, tmp_path_factory.mktemp("threads")) as made:
        yield made


@pytest.fixture(scope="module")
def apart(place: Court) -> Iterator[tuple[Actor, Actor]]:
    """Two who share nothing but the database."""
    storages = [Storage(place.url), Storage(place.url)]
    one, other = (Actor(storage, place.key_file, POLICIES) for storage in storages)
    yield one, other
    for storage in storages:
        storage.close()


@pytest.fixture
def _restless() -> Iterator[None]:
    """Have threads interrupt each other twenty times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 20)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_restless")
@pytest.mark.parametrize("kind", RACES, ids=lambda kind: kind.name)
def test_threads_race(place: Court, apart: tuple[Actor, Actor], kind: type[Race]) -> None:
    """Whoever comes first: one of the two gets what they want, and all is as if they had come one by one."""
    start = Barrier(2)

    def do(actor: Actor, deed: Deed) -> Outcome:
        go = actor.ready(deed)
        start.wait(30)
        return go()

    def run(number: int, deeds: tuple[Deed, Deed]) -> tuple[Outcome, Outcome]:
        # As threads of one server, or of two, in turn.
        actors = (place.actor, place.actor) if number % 2 else apart
        one, other = pool.map(do, actors, deeds)
        return one, other

    with ThreadPoolExecutor(2) as pool:
        hold(kind, place, run)
