"""Benchmarks of scale: Checks with a million members, and with a hundred thousand rules."""

import random
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

from load import BATCH, Flow, Serving, in_turns, median, p50
from report import Figure
from sites import Site, check_requests, create_site

from policy import make_rules, write_policy
from rolecall.policy.parsed import Rule
from rolecall.v1 import authorization_pb2 as pb

__all__ = ["of_members", "of_rules"]

# Number of an organization, and number of a member in it.
Place: TypeAlias = tuple[int, int]

MEMBERS, ORGANIZATIONS, SMALL = 1_000_000, 10_000, 10
# HOT members are the subjects of the share HOT_SHARE of the Checks. First each is checked once, at a lower rate,
# to fill the cache.
HOT, HOT_SHARE = 10_000, 0.99
WARMING_RATE = 1_000.0
ASKED = 100_000
SIZES = (40, 100_000)
RATE, SECONDS = 4_000.0, 3.0
# Capacity of the cache, for members and for unknown subjects.
CAPACITY = 100_000
# Checks of a batch that fits into one HTTP/2 frame.
ONE_FRAME = 400


def of_members(folder: Path) -> list[Figure]:
    """Measure a million members in one organization, and 100 in each of 10,000 organizations, beside ten members."""
    sizes = {"few": (1, SMALL), "one": (1, MEMBERS), "many": (ORGANIZATIONS, MEMBERS // ORGANIZATIONS)}
    sites = {name: create_site(folder / name, members, count) for name, (count, members) in sizes.items()}
    with ExitStack() as stack:
        serving = {
            name: stack.enter_context(Serving("polling", site.folder, site.token)) for name, site in sites.items()
        }
        flows = {}
        for name, site in sites.items():
            hot, mixed = _places(*sizes[name])
            serving[name].pace(len(hot) / WARMING_RATE, warm=_flow(site, hot, WARMING_RATE))
            flows[name] = _flow(site, mixed, RATE)
        before = {name: each.counts() for name, each in serving.items()}
        names = {each: name for name, each in serving.items()}
        times = in_turns(serving, lambda each: each.pace(SECONDS, checks=flows[names[each]])["checks"])
        after = {name: each.counts() for name, each in serving.items()}
        _fill(serving["one"])
        memory = serving["one"].counts()["memory"] / 1e6
        ready = serving["one"].start_seconds
    figures = []
    for name, what in (("one", "1,000,000 members"), ("many", "10,000 organizations of 100 members")):
        answered = after[name]["answered"] - before[name]["answered"]
        hits = 1 - (after[name]["reads"] - before[name]["reads"]) / answered
        ratio = median(times[name], p50) / median(times["few"], p50)
        note = f"{median(times[name], p50):,.0f} to {median(times['few'], p50):,.0f} µs, {hits:.1%} cache hits"
        figures.append(Figure(f"p50 with {what}, to {SMALL}", ratio, 1.2, at_least=False, note=note))
    return [
        *figures,
        Figure(
            "memory with 100,000 members and as many unknown subjects cached", memory, 300, at_least=False, unit="MB"
        ),
        Figure("ready with 1,000,000 members after", ready, 3, at_least=False, unit="s"),
    ]


def of_rules(folder: Path) -> list[Figure]:
    """Measure a hundred thousand rules beside forty, by Checks of the owner about herself."""
    chance = random.Random(3)
    flows, times = {}, {}
    with ExitStack() as stack:
        serving = {}
        for size in SIZES:
            name = f"{size:,} rules"
            (folder / str(size)).mkdir(parents=True)
            policies = write_policy(folder / str(size), size)
            site = create_site(folder / f"site-{size}", SMALL, policies=policies)
            rules = make_rules(size)
            flows[name] = Flow([_asked(chance.choice(rules)) for _ in range(1000)], RATE)
            serving[name] = stack.enter_context(Serving("polling", site.folder, site.token))
        names = {each: name for name, each in serving.items()}
        times = in_turns(serving, lambda each: each.pace(SECONDS, checks=flows[names[each]])["checks"])
    few, many = (median(measured, p50) for measured in times.values())
    note = f"{many:,.0f} to {few:,.0f} µs"
    return [Figure("p50 with 100,000 rules, to 40", many / few, 1.2, at_least=False, note=note)]


def _asked(rule: Rule) -> bytes:
    resource = rule.resource.rstrip("*").rstrip("/-") or "runs0"
    action = "view" if rule.action == "*" else rule.action
    return pb.CheckRequest(subject="ann@acme.io", action=action, resource=resource).SerializeToString()


def _places(organizations: int, members: int) -> tuple[list[Place], list[Place]]:
    """Choose the members that are checked often, and a mix of these with random ones."""
    chance = random.Random(5)
    number = organizations * members
    hot = [divmod(place, members) for place in chance.sample(range(number), min(HOT, number))]
    mixed = [
        chance.choice(hot) if chance.random() < HOT_SHARE else divmod(chance.randrange(number), members)
        for _ in range(ASKED)
    ]
    return hot, mixed


def _flow(site: Site, places: list[Place], rate: float) -> Flow:
    """Make a flow of one Check per place, with the token of its organization if there are several."""
    messages = [message for _, member in places for message in check_requests(1, member)]
    tokens = tuple(site.tokens[organization] for organization, _ in places) if len(site.tokens) > 1 else ()
    return Flow(messages, rate, tokens=tokens)


def _fill(serving: Serving) -> None:
    """Fill the cache with members and unknown subjects up to its capacity."""
    for kind in ("user", "nobody"):
        batches = []
        for first in range(0, CAPACITY, ONE_FRAME):
            items = [
                pb.BatchCheckItem(subject=f"{kind}{place}@acme.io", action="view", resource="members")
                for place in range(first, first + ONE_FRAME)
            ]
            batches.append(pb.BatchCheckRequest(checks=items).SerializeToString())
        serving.pace(len(batches) / 50, fill=Flow(batches, 50.0, connections=1, path=BATCH))
