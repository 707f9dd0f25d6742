"""What a Check costs beside the references, in turns: `make bench`. Needs h2load.

Authenticated, the shipped matrix, 10,000 members on SQLite. Each server has one core, h2load another.
"""

import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from load import BATCH, Flow, Measured, Serving, in_turns, median, p50, p99, rate
from report import Figure, quiet, report, table
from sites import Site, found, questions

from rolecall.v1 import authorization_pb2 as pb

MEMBERS = 10_000
SECONDS = 2.0
TITLE = "Checks, authenticated, the shipped matrix, 10,000 members"
CONNECTIONS, STREAMS = 32, 4


def main() -> None:
    """Print the figures and write them down; exit with 1 where a bar isn't reached."""
    quiet()
    if not shutil.which("h2load"):
        sys.exit("h2load is missing: install Debian's package nghttp2-client.")
    with tempfile.TemporaryDirectory() as name:
        figures = measure(found(Path(name), MEMBERS))
    report("checks", TITLE, figures)
    print(table(figures))
    sys.exit(any(not each.reached for each in figures))


def measure(site: Site) -> list[Figure]:
    """All figures."""
    check = questions(1)[0]
    with ExitStack() as stack:
        serving = {
            kind: stack.enter_context(Serving(kind, site.folder, site.token))
            for kind in ("fast", "standard", "empty-public", "empty-fast")
        }
        capacity = in_turns(serving, lambda each: each.load(check, SECONDS, CONNECTIONS, STREAMS))
        pair = {kind: serving[kind] for kind in ("fast", "empty-public")}
        alone = in_turns(pair, lambda each: each.load(check, SECONDS, 1, 1))
        also = in_turns(pair, lambda each: each.ghz(SECONDS)) if shutil.which("ghz") else {}
        fast = {"fast": serving["fast"]}
        batches = in_turns(fast, lambda each: each.load(_batch(), SECONDS, CONNECTIONS, 1, path=BATCH))
        # Calls that come one by one cost more than those that come in fours: capacity is that with one in flight each.
        single_file = in_turns(fast, lambda each: each.load(check, SECONDS, CONNECTIONS, 1))
        often = 0.7 * median(single_file["fast"], rate)
        steady = Flow(questions(1000), often, CONNECTIONS)
        # How late an empty handler is at the same rate tells what of that is the machine's.
        both = {kind: serving[kind] for kind in ("fast", "empty-fast")}
        paced = in_turns(both, lambda each: each.pace(SECONDS, checks=steady)["checks"])
    decisions = 100 * median(batches["fast"], rate)
    checks = median(capacity["fast"], rate)
    single = median(alone["fast"], p50)
    late, empty_late = median(paced["fast"], p99), median(paced["empty-fast"], p99)
    times = f"{late:,.0f} to {single:,.0f} µs, {often:,.0f} calls a second; an empty fast handler: {empty_late:,.0f} µs"
    empty = "an empty public handler"
    figures = [
        _ratio(f"Checks a second, to {empty}", capacity["fast"], capacity["empty-public"], rate, 3.0),
        _ratio("Checks a second, to the public lane's", capacity["fast"], capacity["standard"], rate, 3.3),
        _ratio("Checks a second, to an empty fast handler", capacity["fast"], capacity["empty-fast"], rate, 0.7),
        _ratio(
            f"p50 of one call in flight, to {empty}", alone["fast"], alone["empty-public"], p50, 0.65, at_least=False
        ),
        _ratio(
            f"p99 of one call in flight, to {empty}", alone["fast"], alone["empty-public"], p99, 1.0, at_least=False
        ),
        Figure("p99 at 70 % of capacity, to that p50", late / single, 10, at_least=False, note=times),
        Figure("decisions in batches of 100, to Checks", decisions / checks, 18, at_least=True),
        Figure("decisions a second in batches of 100", decisions, 350_000, at_least=True, unit=""),
    ]
    if also:
        what = f"p50 of one call in flight by ghz, to {empty}"
        figures.append(_ratio(what, also["fast"], also["empty-public"], p50, 1.0, at_least=False))
    return figures


def _batch() -> bytes:
    """A hundred questions about as many members, of all that the policy names."""
    items = [pb.CheckRequest.FromString(each) for each in questions(100)]
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
    """The median of the rounds' ratios."""
    ratio = statistics.median(of(one) / of(other) for one, other in zip(ours, theirs, strict=True))
    note = f"{median(ours, of):,.0f} to {median(theirs, of):,.0f}" + ("" if of is rate else " µs")
    return Figure(what, ratio, bar, at_least, note=note)


if __name__ == "__main__":
    main()
