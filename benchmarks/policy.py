"""Benchmarks of decisions and of the load of policies, with their bars: `.venv/bin/python benchmarks/policy.py`."""

import gc
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import casbin

from rolecall.domain import Effect, Reason
from rolecall.policy import Policy, load
from rolecall.policy.parsed import Rule

POLICIES = Path(__file__).parents[1] / "policies"
SIZES = (40, 1_000, 100_000)
REQUESTS = 10_000
ROUNDS = 7

# Bars.
MAX_P50_NS = 2_000
MAX_RATIO = 1.5
MIN_TIMES_FASTER = 200
MAX_LOAD_SECONDS = 10
MAX_LOAD_MB = 300

# Shares of the requests by their outcome.
SHARES = {"allowed by path": 0.30, "allowed by prefix": 0.20, "denied by a rule": 0.10, "denied by default": 0.40}

ACTIONS = ("view", "create", "update", "delete", "run", "share")
WORDS = ("apps", "dbs", "files", "jobs", "keys", "logs", "maps", "nets", "runs", "sets")
TYPES = tuple(f"{word}{i}" for i in range(5) for word in WORDS)
ROLES = tuple(
    f"{team}-{rank}" for team in ("core", "data", "ops", "web") for rank in ("lead", "dev", "op", "ro", "bot")
)
# Within each team every role inherits from the next; the last of three teams from the last of the fourth.
LINKS = [(a, b) for a, b in pairwise(ROLES) if a.split("-")[0] == b.split("-")[0]]
LINKS += [(f"{team}-bot", "core-bot") for team in ("data", "ops", "web")]
OWNS = Rule("core-lead", "owners", "update", Effect.ALLOW, 1)

Request = tuple[str, str, str]


def make_rules(size: int) -> list[Rule]:
    """Make `size` random rules, evenly over paths of depth 1 to 5: a fifth prefixes, an eighth denying."""
    chance = random.Random(size)
    names = [f"n{i}" for i in range(max(10, size // 500))]
    rules = {OWNS[:3]: OWNS}
    while len(rules) < size:
        # As in a real system: tens of resource types, a few rules on each, and all other rules beneath them.
        group, depth = divmod(len(rules), 5)
        if len(rules) >= 2 * len(TYPES):
            depth = depth or chance.randint(1, 4)
        path = "/".join([chance.choice(TYPES), *(chance.choice(names) for _ in range(depth))])
        if group % 5 == 0:
            path += chance.choice(["*", "-*", "/*"]) if depth else "-*"
        # Each role stands somewhere, so that all of them are defined in a small policy too.
        role = ROLES[len(rules)] if len(rules) < len(ROLES) else chance.choice(ROLES)
        action = "*" if chance.random() < 0.05 else chance.choice(ACTIONS)
        effect = Effect.DENY if group % 8 == 3 else Effect.ALLOW
        rules.setdefault((role, path, action), Rule(role, path, action, effect, len(rules) + 1))
    return list(rules.values())


def write_policy(folder: Path, size: int) -> Path:
    """Write a folder of `size` random rules over the twenty roles."""
    (folder / "model.conf").write_bytes((POLICIES / "model.conf").read_bytes())
    (folder / "policy_test.csv").write_text("role,resource,action,expected,note\ncore-lead,owners,update,allow,\n")
    with (folder / "policy.csv").open("w") as file:
        file.writelines(f"g, {a}, {b}\n" for a, b in LINKS)
        file.writelines(f"{rule}\n" for rule in make_rules(size))
    return folder


def make_policy(size: int) -> Policy:
    """Make a policy of `size` random rules, loaded from a folder as a server does."""
    with tempfile.TemporaryDirectory() as name:
        return load(write_policy(Path(name), size), 0.0)


def kind_of(policy: Policy, request: Request) -> str:
    """Return which of the SHARES a request belongs to."""
    decision = policy.decide(*request)
    if decision.reason is Reason.FORBIDDEN:
        return "denied by a rule"
    if decision.reason is not Reason.GRANTED:
        return "denied by default"
    held = {r for r in policy.matching_rules(request[1], request[2]) if policy.chain(request[0], r.role)}
    return "allowed by prefix" if all(rule.resource.endswith("*") for rule in held) else "allowed by path"


def make_requests(policy: Policy) -> list[Request]:
    """Make 10,000 requests in random order: each of the SHARES in full, each spread evenly over the depths 1 to 5."""
    chance = random.Random(1)
    holders = {role: [holder for holder in ROLES if policy.chain(holder, role)] for role in ROLES}
    rules: dict[tuple[str, int], list[Rule]] = defaultdict(list)
    for rule in policy.rules:
        where = "prefix" if rule.resource.endswith("*") else "path"
        depth = rule.resource.removesuffix("/*").count("/") + 1
        rules["denied by a rule" if rule.effect is Effect.DENY else f"allowed by {where}", depth].append(rule)
        rules["denied by default", depth].append(rule)
    requests: list[Request] = []
    for kind, share in SHARES.items():
        for depth in range(1, 6):
            wanted = len(requests) + round(share * REQUESTS / 5)
            while len(requests) < wanted:
                # Half of the time a rule from higher up, as rules cover all beneath them.
                rule = chance.choice(rules[kind, chance.choice([depth, chance.randint(1, depth)])])
                request = _ask(chance, rule, holders[rule.role], depth, miss=kind == "denied by default")
                if request[2].count("/") == depth - 1 and kind_of(policy, request) == kind:
                    requests.append(request)
    chance.shuffle(requests)
    return requests


def _ask(chance: random.Random, rule: Rule, holders: list[str], depth: int, *, miss: bool) -> Request:
    """Make a request that `rule` matches, at `depth` if it can; or one that misses it by role, action or resource."""
    name = rule.resource.removesuffix("/*")
    if name.endswith("*"):
        name = name[:-1] + f"i{chance.randrange(100_000)}"
    while name.count("/") < depth - 1:
        name += f"/i{chance.randrange(100_000)}"
    role = chance.choice(holders)
    action = chance.choice(ACTIONS) if rule.action == "*" else rule.action
    if not miss:
        return role, action, name
    head, _, rest = name.partition("/")
    match chance.randrange(20):
        case 0:
            return "nobody", action, name
        case 1:
            return role, "polish", name
        case 2:
            return role, action, f"unknown/{rest}" if rest else "unknown"
        case n if n < 12:
            return chance.choice(ROLES), chance.choice(ACTIONS), name
        case _:
            return role, action, f"{head}/m{rest[1:]}" if rest else f"{head}x"


def time_calls(call: Callable[[str, str, str], object], requests: list[Request]) -> list[int]:
    """Measure the nanoseconds of each call, the clock's own cost included."""
    clock = time.perf_counter_ns
    times = []
    for first, second, third in requests:
        before = clock()
        call(first, second, third)
        times.append(clock() - before)
    return times


def time_loop(call: Callable[[str, str, str], object], requests: list[Request]) -> float:
    """Measure the nanoseconds per call of one loop over all requests."""
    before = time.perf_counter_ns()
    for first, second, third in requests:
        call(first, second, third)
    return (time.perf_counter_ns() - before) / len(requests)


def nothing(_first: str, _second: str, _third: str) -> None:
    """Do nothing: the cost of the clock and the loop by themselves."""


def line(what: str, figure: str, bar: str = "", *, holds: bool | None = None) -> None:
    """Print one row of the table."""
    verdict = "" if holds is None else "holds" if holds else "FAILS"
    print(f"  {what:<58}{figure:>16}   {bar:<22}{verdict}")


def measure_load(folder: str) -> None:
    """Load `folder` in this fresh process, and print seconds and memory as JSON."""
    before = time.perf_counter()
    policy = load(folder)
    seconds = time.perf_counter() - before
    own, child = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"rules": len(policy.rules), "seconds": seconds, "own": own, "child": child}))


def report_load() -> None:
    """Load a folder of 100,000 rules in a fresh process."""
    with tempfile.TemporaryDirectory() as name:
        write_policy(Path(name), SIZES[-1])
        gc.collect()
        runs = []
        for _ in range(3):
            command = [sys.executable, __file__, "load", name]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    worst = {key: max(run[key] for run in runs) for key in runs[0]}
    print(
        f"\nLoading a folder of {worst['rules']:,} rules with rolecall.policy.load, the slowest of {len(runs)} runs\n"
    )
    seconds, own, child = worst["seconds"], worst["own"], worst["child"]
    line("time", f"{seconds:.2f} s", f"at most {MAX_LOAD_SECONDS} s", holds=seconds <= MAX_LOAD_SECONDS)
    line(
        "peak memory of the process (RUSAGE_SELF)",
        f"{own:.0f} MB",
        f"at most {MAX_LOAD_MB} MB",
        holds=own <= MAX_LOAD_MB,
    )
    line(
        "peak memory of its child (RUSAGE_CHILDREN)",
        f"{child:.0f} MB",
        f"at most {MAX_LOAD_MB} MB",
        holds=child <= MAX_LOAD_MB,
    )
    line("both peaks together", f"{own + child:.0f} MB", f"at most {MAX_LOAD_MB} MB", holds=own + child <= MAX_LOAD_MB)


def report_decide() -> None:
    """Measure the same mix of requests at each size, in interleaved rounds."""
    policies = {size: make_policy(size) for size in SIZES}
    requests = {size: make_requests(policy) for size, policy in policies.items()}
    print(f"\nDeciding {REQUESTS:,} random requests, {ROUNDS} interleaved rounds\n")
    for size in SIZES:
        kinds = Counter(kind_of(policies[size], request) for request in requests[size])
        depths = Counter(name.count("/") + 1 for _, _, name in requests[size])
        mix = ", ".join(f"{kinds[kind] / REQUESTS:.0%} {kind}" for kind in SHARES)
        spread = "/".join(f"{depths[depth] / REQUESTS:.0%}" for depth in sorted(depths))
        print(f"  {size:>7,} rules: {mix}; depth 1-5 {spread}")
    print()
    gc.collect()
    single: dict[int, list[int]] = {size: [] for size in (0, *SIZES)}
    loops: dict[int, list[float]] = {size: [] for size in (0, *SIZES)}
    calls: dict[int, Callable[[str, str, str], object]] = {
        0: nothing,
        **{size: policy.decide for size, policy in policies.items()},
    }
    requests[0] = requests[SIZES[0]]
    for round_ in range(ROUNDS + 1):
        for size, call in calls.items():
            times, loop = time_calls(call, requests[size]), time_loop(call, requests[size])
            if round_:  # the first warms up
                single[size] += times
                loops[size].append(loop)
    clock = statistics.median(single[0])
    p50 = {size: statistics.median(single[size]) for size in SIZES}
    p99 = {size: statistics.quantiles(single[size], n=100)[98] for size in SIZES}
    means = {size: statistics.median(loops[size]) for size in SIZES}
    line("the clock and an empty call (included in the p50s)", f"{clock:.0f} ns")
    for size in SIZES:
        bar = f"at most {MAX_P50_NS} ns"
        line(f"p50 of single calls at {size:,} rules", f"{p50[size]:.0f} ns", bar, holds=p50[size] <= MAX_P50_NS)
        line("    p99 of single calls", f"{p99[size]:.0f} ns")
        line("    mean over all requests, median of the rounds' loops", f"{means[size]:.0f} ns")
    first, last = SIZES[0], SIZES[-1]
    bar = f"at most {MAX_RATIO} times"
    for what, ratio in (
        (f"p50 at {last:,} to {first} rules", p50[last] / p50[first]),
        ("    the same less the clock's cost", (p50[last] - clock) / (p50[first] - clock)),
    ):
        line(what, f"{ratio:.2f} times", bar, holds=ratio <= MAX_RATIO)
    line("    mean of the loops at the same sizes", f"{means[last] / means[first]:.2f} times")
    # The effect of the processor's caches: few requests stay in them, 10,000 over 100,000 rules don't.
    repeated = {size: requests[size][:100] * 100 for size in SIZES}
    hot = {size: statistics.median(time_calls(calls[size], repeated[size])) for size in SIZES}
    line(f"    p50 of 100 of the requests over and over, at {last:,} rules", f"{hot[last]:.0f} ns")
    line(f"    the same, to that at {first} rules", f"{hot[last] / hot[first]:.2f} times")


def report_casbin() -> None:
    """Measure the same requests in Casbin and in the index, over the shipped matrix."""
    policy = load(POLICIES, 0.0)
    reference = casbin.Enforcer(str(POLICIES / "model.conf"), str(POLICIES / "policy.csv"))
    named = sorted({(rule.resource, rule.action) for rule in policy.rules})
    requests = [(role, action, name) for name, action in named for role in policy.roles]
    ours: list[int] = []
    theirs: list[int] = []
    for _ in range(ROUNDS):
        ours += time_calls(policy.decide, requests)
        theirs += time_calls(lambda role, action, name: reference.enforce(role, name, action), requests)
    fast, slow = statistics.median(ours), statistics.median(theirs)
    print(f"\nThe shipped matrix of {len(named)} permissions, {len(requests)} requests, {ROUNDS} rounds\n")
    line("median of casbin.Enforcer.enforce", f"{slow / 1000:.0f} us")
    line("median of decide, the clock included", f"{fast:.0f} ns")
    bar = f"at least {MIN_TIMES_FASTER} times"
    line("how many times faster", f"{slow / fast:.0f} times", bar, holds=slow / fast >= MIN_TIMES_FASTER)


def main() -> None:
    """Print every figure beside its bar. Loading comes first: a child's peak would include a large parent's."""
    report_load()
    report_casbin()
    report_decide()


if __name__ == "__main__":
    if sys.argv[1:2] == ["load"]:
        measure_load(sys.argv[2])
    else:
        main()
