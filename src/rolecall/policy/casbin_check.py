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
from rolecall.policy.index import Policy
from rolecall.policy.model import MODEL
from rolecall.policy.parsed import POLICY_FILE, ParsedPolicy

__all__ = ["check_against_casbin", "comparison_requests", "enforcer"]

# An Enforcer logs the whole policy when it is constructed.
logging.getLogger("casbin").setLevel(logging.WARNING)

# Maximum rules for a check that is bounded by time: above it, a single `enforce` takes longer than a start should.
MAX_RULES = 20_000
# Minimum comparisons, whatever the time limit: they take 2 s at 20,000 rules.
MIN_COMPARISONS = 20


def enforcer(policy_text: str) -> casbin.Enforcer:
    """Return a Casbin enforcer of the served model and `policy_text`, in the format of policy.csv."""
    model = Model()
    model.load_model_from_text(MODEL)
    # Casbin would read an indented comment as a row.
    return casbin.Enforcer(model, StringAdapter("\n".join(line.strip() for line in policy_text.split("\n"))))


def check_against_casbin(parsed: ParsedPolicy, policy: Policy, seconds: float | None) -> int:
    """Compare `policy` with Casbin for at most `seconds` (None: to the end). Returns the number of comparisons."""
    if seconds is not None and len(policy.rules) > MAX_RULES:
        return 0
    reference = enforcer(parsed.files.policy)
    deadline = None if seconds is None else time.monotonic() + seconds
    comparisons = 0
    for role, action, resource in comparison_requests(policy):
        if deadline is not None and comparisons >= MIN_COMPARISONS and time.monotonic() > deadline:
            break
        expected = Effect.ALLOW if reference.enforce(role, resource, action) else Effect.DENY
        comparisons += 1
        decision = policy.decide(role, action, resource)
        if decision.decision is not expected:
            message = f"`{role}` `{resource} {action}` is {decision.decision} here and {expected} in Casbin."
            parsed.add(POLICY_FILE, 0, 0, message, "This is a defect of Rolecall: report it with this policy.")
            break
    return comparisons


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
