"""What a Check costs beside the references, in turns: `make bench`. Needs h2load.

Authenticated, the shipped matrix, 10,000 members on SQLite. Each server has one core, h2load another.
"""

import json
import logging
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import structlog
from load import BATCH, Measured, Serving
from report import Figure, report

from rolecall import credentials, keys, operator, organizations, policy
from rolecall.audit import AuditLog
from rolecall.config import Settings
from rolecall.domain import Member, now
from rolecall.storage import Storage, Transaction
from rolecall.storage import members as member_rows
from rolecall.v1 import authorization_pb2 as pb

POLICIES = Path(__file__).parents[1] / "policies"
MEMBERS = 10_000
ROUNDS = 5
SECONDS = 2.0
CONNECTIONS, STREAMS = 32, 4


def main() -> None:
    """Print the figures and write them down; exit with 1 where a bar isn't reached."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if not shutil.which("h2load"):
        sys.exit("h2load is missing: install Debian's package nghttp2-client.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = measure(folder, prepare(folder, MEMBERS))
    print(report("checks", "Checks, authenticated, the shipped matrix, 10,000 members", figures))
    sys.exit(any(not each.reached for each in figures))


def prepare(folder: Path, members: int) -> str:
    """Found an organization with so many members, and its owner's token."""
    url = f"sqlite:///{folder}/rolecall.db"
    settings = {
        "database": url,
        "policy": str(POLICIES),
        "key_file": str(folder / "key"),
        "listen": "127.0.0.1:0",
        "mail_folder": str(folder / "mail"),
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    loaded = policy.build(POLICIES, 0.0).policy
    assert loaded
    storage = Storage(Settings(**settings).database)  # type: ignore[arg-type]
    storage.create()
    keys.create(folder / "key")
    log = AuditLog(keys.read(folder / "key"))
    organizations.found(storage, log, loaded, "acme", "ann@acme.io")
    token = operator.issue(storage, log, "acme", "ann@acme.io").text
    roles = loaded.roles

    def add(tx: Transaction) -> None:
        at = now()
        for number in range(members):
            email, role = f"user{number}@acme.io", roles[number % len(roles)]
            member_rows.add(tx, Member("acme", credentials.new_id(), email, "", role, at, at), email)

    storage.mutate("acme", add)
    storage.close()
    return token


def measure(folder: Path, token: str) -> list[Figure]:
    """All figures."""
    check = pb.CheckRequest(subject="user0@acme.io", action="view", resource="members").SerializeToString()
    with ExitStack() as stack:
        serving = {
            kind: stack.enter_context(Serving(kind, folder, token))
            for kind in ("fast", "standard", "empty-public", "empty-fast")
        }
        capacity = _in_turns(serving, lambda each: each.load(check, SECONDS, CONNECTIONS, STREAMS))
        alone = _in_turns(
            {kind: serving[kind] for kind in ("fast", "empty-public")}, lambda each: each.load(check, SECONDS, 1, 1)
        )
        rate = 0.7 * _median(capacity["fast"], _rate)
        paced = _in_turns({"fast": serving["fast"]}, lambda each: each.load(check, SECONDS, CONNECTIONS, 1, rate=rate))
        batch = _batch()
        batches = _in_turns(
            {"fast": serving["fast"]}, lambda each: each.load(batch, SECONDS, CONNECTIONS, 1, path=BATCH)
        )
    fast, public = alone["fast"], alone["empty-public"]
    decisions = 100 * _median(batches["fast"], _rate)
    checks = _median(capacity["fast"], _rate)
    single = _median(fast, _p50)
    late = _median(paced["fast"], _p99)
    times = f"{late:,.0f} to {single:,.0f} µs"
    empty = "an empty public handler"
    return [
        _ratio(f"Checks a second, to {empty}", capacity["fast"], capacity["empty-public"], _rate, 3.0),
        _ratio("Checks a second, to the public lane's", capacity["fast"], capacity["standard"], _rate, 3.3),
        _ratio("Checks a second, to an empty fast handler", capacity["fast"], capacity["empty-fast"], _rate, 0.7),
        _ratio(f"p50 of one call in flight, to {empty}", fast, public, _p50, 0.65, at_least=False),
        _ratio(f"p99 of one call in flight, to {empty}", fast, public, _p99, 1.0, at_least=False),
        Figure("p99 at 70 % of capacity, to that p50", late / single, 10, at_least=False, note=times),
        Figure("decisions in batches of 100, to Checks", decisions / checks, 18, at_least=True),
        Figure("decisions a second in batches of 100", decisions, 350_000, at_least=True, unit=""),
    ]


def _rate(found: Measured) -> float:
    return found.rate


def _p50(found: Measured) -> float:
    return found.p50


def _p99(found: Measured) -> float:
    return found.p99


def _batch() -> bytes:
    """A hundred questions about as many members, of all that the policy names."""
    loaded = policy.build(POLICIES, 0.0).policy
    assert loaded
    rules = [rule for rule in loaded.rules if "*" not in (rule.action, rule.resource)]
    words = [(rule.action, rule.resource.rstrip("/*")) for rule in rules]
    items = []
    for number in range(100):
        action, resource = words[number * 7 % len(words)]
        items.append(pb.BatchCheckItem(subject=f"user{number * 97}@acme.io", action=action, resource=resource))
    return pb.BatchCheckRequest(checks=items).SerializeToString()


def _in_turns(serving: dict[str, Serving], once: Callable[[Serving], Measured]) -> dict[str, list[Measured]]:
    """So many rounds of all servers, one after the other."""
    found: dict[str, list[Measured]] = {kind: [] for kind in serving}
    for _ in range(ROUNDS):
        for kind, each in serving.items():
            found[kind].append(once(each))
    return found


def _median(found: list[Measured], of: Callable[[Measured], float]) -> float:
    return statistics.median(of(each) for each in found)


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
    note = f"{_median(ours, of):,.0f} to {_median(theirs, of):,.0f}" + ("" if of is _rate else " µs")
    return Figure(what, ratio, bar, at_least, note=note)


if __name__ == "__main__":
    main()
