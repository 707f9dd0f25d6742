"""Check of a policy's index against Casbin itself: one different answer, and the policy doesn't go live.

`enforce` costs about 7 µs per rule, so the check is bounded by time; it starts with what the policy grants.
Run it from one thread only: Casbin's use of `ast.parse` is not thread-safe.
"""

import logging
import random
import time
from collections.abc import Iterator

import casbin
from casbin.model import Model
from casbin.persist.adapters.string_adapter import StringAdapter

from rolecall.domain import Effect
from rolecall.policy.index import Conditional, Policy
from rolecall.policy.model import CONDITIONAL_MODEL, MODEL
from rolecall.policy.parsed import POLICY_FILE, ParsedPolicy

__all__ = ["check_against_casbin", "comparison_requests", "enforcer"]

# An Enforcer logs the whole policy when it is constructed.
logging.getLogger("casbin").setLevel(logging.WARNING)

# Maximum rules for a check that is bounded by time: above it, a single `enforce` takes longer than a start should.
MAX_RULES = 20_000
# Minimum comparisons, whatever the time limit: they take 2 s at 20,000 rules.
MIN_COMPARISONS = 20
# Comparisons of a request that several conditions matter to, besides those in which all of them hold, or none.
MIXED_TRUTHS = 3


def enforcer(policy_text: str, *, conditional: bool = False) -> casbin.Enforcer:
    """Return a Casbin enforcer of the served model and `policy_text`, in the format of policy.csv.

    With the model with conditions, the last value of a request is the set of the conditions that hold.
    """
    model = Model()
    model.load_model_from_text(CONDITIONAL_MODEL if conditional else MODEL)
    # Casbin would read an indented comment as a row.
    rows = [line.strip() for line in policy_text.split("\n")]
    if conditional:
        # Casbin refuses a row without the last value, which may be empty.
        rows = [f"{row}," if row.startswith("p") and row.count(",") == 4 else row for row in rows]
    reference = casbin.Enforcer(model, StringAdapter("\n".join(rows)))
    reference.add_function("condition", lambda name, holding: name in holding)
    return reference


def check_against_casbin(parsed: ParsedPolicy, policy: Policy, seconds: float | None) -> int:
    """Compare `policy` with Casbin for at most `seconds` (None: to the end). Returns the number of comparisons."""
    if seconds is not None and len(policy.rules) > MAX_RULES:
        return 0
    conditional = parsed.has_condition_column
    reference = enforcer(parsed.files.policy, conditional=conditional)
    deadline = None if seconds is None else time.monotonic() + seconds
    comparisons = 0
    order = random.Random(0)  # noqa: S311 - the same comparisons at each start
    for role, action, resource in comparison_requests(policy):
        for holding in _truths(policy, role, action, resource, order):
            if deadline is not None and comparisons >= MIN_COMPARISONS and time.monotonic() > deadline:
                return comparisons
            request = (role, resource, action, holding) if conditional else (role, resource, action)
            expected = Effect.ALLOW if reference.enforce(*request) else Effect.DENY
            comparisons += 1
            decision = policy.decide(role, action, resource, holding.__contains__)
            if decision.decision is not expected:
                when = f" while {', '.join(sorted(holding)) or 'no condition'} holds" if conditional else ""
                message = f"`{role}` `{resource} {action}`{when} is {decision.decision} here and {expected} in Casbin."
                parsed.add(POLICY_FILE, 0, 0, message, "This is a defect of Rolecall: report it with this policy.")
                return comparisons
    return comparisons


def _truths(policy: Policy, role: str, action: str, resource: str, order: random.Random) -> Iterator[frozenset[str]]:
    """Generate the sets of holding conditions to compare a request with: none, all that matter to it, mixed ones."""
    reason = policy._reason(role, action, resource)  # noqa: SLF001 - the child sends the policy, but not a cache
    if not isinstance(reason, Conditional):
        # A condition that matters to Casbin alone would be a difference.
        yield frozenset(name for name in policy.conditions if order.random() < 0.5)
        return
    names = sorted({*reason.denies, *reason.allows})
    yield frozenset()
    yield frozenset(names)
    for _ in range(MIXED_TRUTHS if len(names) > 1 else 0):
        yield frozenset(name for name in names if order.random() < 0.5)


def comparison_requests(policy: Policy) -> Iterator[tuple[str, str, str]]:
    """Generate the (role, action, resource) triples to compare: those that rules name first, then their borders.

    Borders are resources beneath and beside the named ones, and unknown roles, actions and resources.
    """
    named = sorted({(rule.resource.rstrip("*"), rule.action) for rule in policy.rules})
    probes = sorted({probe for resource, _ in named for probe in _around(resource)})
    actions = [*sorted(policy.actions), "an-unknown-action"]
    roles = [*policy.roles, "an-unknown-role"]
    order = random.Random(0)  # noqa: S311 - a fixed shuffle, so that a time limit doesn't always leave out the same end
    order.shuffle(named)
    order.shuffle(probes)
    # Each round covers every named permission, for another role each time, so that a time limit omits no permission.
    for turn in range(len(roles)):
        for i, (resource, action) in enumerate(named):
            yield roles[(i + turn) % len(roles)], action, resource or "any"
    for resource in probes:
        for action in actions:
            for role in roles:
                yield role, action, resource


def _around(resource: str) -> list[str]:
    """Return resources at the borders of a pattern: itself, beneath it, one letter longer, one letter shorter."""
    bare = resource.rstrip("/")
    return [name for name in (bare, f"{bare}/x", f"{bare}x", bare[:-1], "an-unknown-type") if name]
