"""Two processes change the same thing at the same moment."""

from collections.abc import Iterator

import pytest
from actors import Child, Deed, Outcome
from kinds import RACES
from racing import POLICIES, Court, Race, court, hold


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    """One database of each kind for all tests here."""
    with court(request.param, tmp_path_factory.mktemp("processes")) as made:
        yield made


@pytest.fixture(scope="module")
def children(place: Court) -> Iterator[tuple[Child, Child]]:
    """Two processes that live through all races."""
    pair = tuple(Child(place.url, place.key_file, POLICIES) for _ in range(2))
    yield pair[0], pair[1]
    for child in pair:
        child.stop()


@pytest.mark.parametrize("kind", RACES, ids=lambda kind: kind.name)
def test_processes_race(place: Court, children: tuple[Child, Child], kind: type[Race]) -> None:
    """Whoever comes first: one of the two gets what they want, and all is as if they had come one by one."""

    def run(_: int, deeds: tuple[Deed, Deed]) -> tuple[Outcome, Outcome]:
        for child, deed in zip(children, deeds, strict=True):
            child.prepare(deed)
        for child in children:
            child.go()
        return children[0].outcome(), children[1].outcome()

    hold(kind, place, run)
