"""Two processes change the same thing at the same moment."""

from collections.abc import Iterator

import pytest

from races.kinds import RACES
from races.participants import Action, ParticipantProcess, Result
from races.racing import POLICIES, Race, RaceDatabase, open_race_database, run_race
from support.databases import ALL_KINDS


@pytest.fixture(scope="module", params=ALL_KINDS)
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaceDatabase]:
    """One database of each kind for all tests here."""
    with open_race_database(request.param, tmp_path_factory.mktemp("processes")) as made:
        yield made


@pytest.fixture(scope="module")
def children(database: RaceDatabase) -> Iterator[tuple[ParticipantProcess, ParticipantProcess]]:
    """Two processes, for all races."""
    pair = tuple(ParticipantProcess(database.url, database.key_file, POLICIES) for _ in range(2))
    yield pair[0], pair[1]
    for child in pair:
        child.stop()


@pytest.mark.parametrize("kind", RACES, ids=lambda kind: kind.name)
def test_processes_race(
    database: RaceDatabase, children: tuple[ParticipantProcess, ParticipantProcess], kind: type[Race]
) -> None:
    """One of two racing processes gets what it wants, and the result is as if they had come one after the other."""

    def run(_: int, actions: tuple[Action, Action]) -> tuple[Result, Result]:
        for child, action in zip(children, actions, strict=True):
            child.prepare(action)
        for child in children:
            child.go()
        return children[0].result(), children[1].result()

    run_race(kind, database, run)
