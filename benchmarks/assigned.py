"""Benchmarks of Checks of members with role assignments: beside members without, and a million beside a thousand."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median as middle

from load import BATCH, ROUNDS, Flow, Measured, Serving, in_turns, median, p50, rate
from report import Figure
from sites import Site, assign, check_requests, create_site

from rolecall.v1 import authorization_pb2 as pb

__all__ = ["of_a_member", "of_many"]

# Members with assignments of their own, and in teams; the others of the site have none.
ASSIGNED, SCOPES, TEAMS = 1000, 10, 2
CONNECTIONS, STREAMS = 32, 4
SECONDS = 2.0
# Assignments of an organization, ten of each member.
MANY, FEW = 1_000_000, 1_000
RATE = 4_000.0
# Subjects of the paced Checks, which are cached.
HOT = 100


def of_a_member(folder: Path) -> list[Figure]:
    """Measure Checks of a member with 10 assignments and 2 teams, one by one and in batches, to one without."""
    site = create_site(folder, 2 * ASSIGNED)
    assign(site, ASSIGNED, SCOPES, TEAMS)
    with Serving("polling", site.folder, site.token) as serving:
        single = _pairs(lambda first: serving.load(_checks(first, 1)[0], SECONDS, CONNECTIONS, STREAMS))
        batches = _pairs(lambda first: serving.load(_batch(first), SECONDS, CONNECTIONS, 1, path=BATCH))
    what = f"of members with {SCOPES} assignments and {TEAMS} teams, to those without"
    return [
        _figure(f"Checks a second {what}", single),
        _figure(f"batches of 100 a second {what}", batches),
    ]


def of_many(folder: Path) -> list[Figure]:
    """Measure Checks in an organization with a million assignments, beside one with a thousand; and the memory."""
    sites = {name: _with_assignments(folder / name, number) for name, number in (("few", FEW), ("many", MANY))}
    flow = Flow(_checks(0, HOT), RATE)
    with ExitStack() as stack:
        serving = {
            name: stack.enter_context(Serving("polling", site.folder, site.token)) for name, site in sites.items()
        }
        for each in serving.values():
            each.pace(SECONDS, warm=flow)
        times = in_turns(serving, lambda each: each.pace(SECONDS, checks=flow)["checks"])
        filled = Flow(_checks(0, MANY // SCOPES), 0)
        serving["many"].pace(60.0, fill=filled)
        memory = serving["many"].counts()["memory"] / 1e6
    many, few = median(times["many"], p50), median(times["few"], p50)
    note = f"{many:,.0f} to {few:,.0f} µs"
    what = f"p50 beside {MANY:,} assignments of {MANY // SCOPES:,} members, to {FEW:,}"
    return [
        Figure(what, many / few, 1.2, at_least=False, note=note),
        Figure("memory of a worker with all of them cached", memory, 1000, at_least=False, unit="MB"),
    ]


def _with_assignments(folder: Path, number: int) -> Site:
    site = create_site(folder, max(HOT, number // SCOPES))
    assign(site, number // SCOPES, SCOPES)
    return site


def _pairs(load: Callable[[int], Measured]) -> list[tuple[Measured, Measured]]:
    """Measure members with assignments and members without in turns."""
    return [(load(0), load(ASSIGNED)) for _ in range(ROUNDS)]


def _figure(what: str, pairs: list[tuple[Measured, Measured]]) -> Figure:
    note = f"{middle(rate(one) for one, _ in pairs):,.0f} to {middle(rate(other) for _, other in pairs):,.0f}"
    return Figure(what, middle(rate(one) / rate(other) for one, other in pairs), 0.8, at_least=True, note=note)


def _checks(first: int, number: int) -> list[bytes]:
    """Make a Check at a project of each of `number` members from `first` on."""
    found = []
    for place, message in enumerate(check_requests(number, first)):
        question = pb.CheckRequest.FromString(message)
        question.scope = f"projects/{place % ASSIGNED}/part3"
        found.append(question.SerializeToString())
    return found


def _batch(first: int) -> bytes:
    items = [pb.CheckRequest.FromString(each) for each in _checks(first, 100)]
    checks = [pb.BatchCheckItem(subject=e.subject, action=e.action, resource=e.resource, scope=e.scope) for e in items]
    return pb.BatchCheckRequest(checks=checks).SerializeToString()
