"""Benchmark of Checks beside reference servers, in turns: `make bench`. Needs h2load.

Authenticated, the shipped matrix, 10,000 members on SQLite. Each server has one core, h2load another.
"""

import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import assigned
from load import BATCH, Flow, Measured, Serving, in_turns, median, p50, p99, rate
from report import Figure, quiet, report, table
from sites import Site, check_requests, create_site

from rolecall.v1 import authorization_pb2 as pb

MEMBERS = 10_000
SECONDS = 2.0
TITLE = "Checks, authenticated, the shipped matrix, 10,000 members"
CONNECTIONS, STREAMS = 32, 4
# Members of one cold round; more than a server answers in its time.
COLD_MEMBERS, COLD_SECONDS = 1800, 0.6


def main() -> None:
    """Print the figures and save them in docs/benchmarks; exit with 1 if a bar is missed."""
    quiet()
    if not shutil.which("h2load"):
        sys.exit("h2load is missing: install Debian's package nghttp2-client.")
    with tempfile.TemporaryDirectory() as name:
        figures = measure(create_site(Path(name, "site"), MEMBERS))
        figures += assigned.of_a_member(Path(name, "assigned"))
    report("checks", TITLE, figures)
    print(table(figures))
    sys.exit(any(not each.reached for each in figures))


def measure(site: Site) -> list[Figure]:
    """Measure all figures."""
    check = check_requests(1)[0]
    with ExitStack() as stack:
        serving = {
            kind: stack.enter_context(Serving(kind, site.folder, site.token))
            for kind in ("polling", "standard", "empty-public", "empty-polling", "empty-aio")
        }
        capacity = in_turns(serving, lambda each: each.load(check, SECONDS, CONNECTIONS, STREAMS))
        pair = {kind: serving[kind] for kind in ("polling", "empty-public")}
        alone = in_turns(pair, lambda each: each.load(check, SECONDS, 1, 1))
        also = in_turns(pair, lambda each: each.ghz(SECONDS)) if shutil.which("ghz") else {}
        fast = {"polling": serving["polling"]}
        both_transports = {kind: serving[kind] for kind in ("polling", "standard")}
        batches = in_turns(both_transports, lambda each: each.load(_batch(), SECONDS, CONNECTIONS, 1, path=BATCH))
        # Each member is checked for the first time, in one call after the other.
        cold_members = iter([check_requests(COLD_MEMBERS, first) for first in range(1000, MEMBERS, COLD_MEMBERS)])
        cold = in_turns(
            fast, lambda each: each.pace(COLD_SECONDS, cold=Flow(next(cold_members), 0, connections=1))["cold"]
        )
        # Calls that arrive one by one cost more than those that arrive in fours: capacity is the rate with one call
        # in flight per connection.
        single_file = in_turns(fast, lambda each: each.load(check, SECONDS, CONNECTIONS, 1))
        often = 0.7 * median(single_file["polling"], rate)
        steady = Flow(check_requests(1000), often, CONNECTIONS)
        # The p99 of an empty handler at the same rate shows the machine's part of it.
        both = {kind: serving[kind] for kind in ("polling", "empty-polling")}
        paced = in_turns(both, lambda each: each.pace(SECONDS, checks=steady)["checks"])
    decisions = 100 * median(batches["polling"], rate)
    checks = median(capacity["polling"], rate)
    single = median(alone["polling"], p50)
    late, empty_late = median(paced["polling"], p99), median(paced["empty-polling"], p99)
    times = f"{late:,.0f} to {single:,.0f} µs, {often:,.0f} calls/s; an empty polling handler: {empty_late:,.0f} µs"
    empty = "an empty public handler"
    figures = [
        _ratio(f"Checks a second, to {empty}", capacity["polling"], capacity["empty-public"], rate, 3.0),
        _ratio("Checks a second, to the standard transport's", capacity["polling"], capacity["standard"], rate, 3.3),
        _ratio("Checks/s, to an empty polling handler", capacity["polling"], capacity["empty-polling"], rate, 0.7),
        _ratio(
            f"p50 of one call in flight, to {empty}", alone["polling"], alone["empty-public"], p50, 0.65, at_least=False
        ),
        _ratio(
            f"p99 of one call in flight, to {empty}", alone["polling"], alone["empty-public"], p99, 1.0, at_least=False
        ),
        Figure("p99 at 70 % of capacity, to that p50", late / single, 10, at_least=False, note=times),
        Figure("decisions in batches of 100, to Checks", decisions / checks, 18, at_least=True),
        Figure("decisions a second in batches of 100", decisions, 350_000, at_least=True, unit=""),
    ]
    first_check = median(cold["polling"], p50) / 1000
    on_aio = f"Checks a second, to {empty} on grpc.aio with uvloop"
    on_standard = "batches of 100 a second, to the standard transport's"
    figures += [
        Figure("p50 of Checks of uncached members, one by one", first_check, 1.0, at_least=False, unit="ms"),
        _ratio(on_standard, batches["polling"], batches["standard"], rate, 1.2),
        _ratio(on_aio, capacity["polling"], capacity["empty-aio"], rate, 2.0),
    ]
    if also:
        what = f"p50 of one call in flight by ghz, to {empty}"
        figures.append(_ratio(what, also["polling"], also["empty-public"], p50, 1.0, at_least=False))
    return figures


def _batch() -> bytes:
    """Make a batch of 100 checks of 100 members, over all permissions of the policy."""
    items = [pb.CheckRequest.FromString(each) for each in check_requests(100)]
    checks = [pb.BatchCheckItem(subject=each.subject, action=each.action, resource=each.resource) for each in items]
    return pb.BatchCheckRequest(checks=checks).SerializeToString()


def _ratio(
    what: str,
    ours: list[Measured],
    theirs: list[Measured],
    of: Callable[[Measured], float],
    bar: float,
    *,
    at_least: bool = True,
) -> Figure:
    """Return the median of the rounds' ratios as a figure."""
    ratio = statistics.median(of(one) / of(other) for one, other in zip(ours, theirs, strict=True))
    note = f"{median(ours, of):,.0f} to {median(theirs, of):,.0f}" + ("" if of is rate else " µs")
    return Figure(what, ratio, bar, at_least, note=note)


if __name__ == "__main__":
    main()
