"""Casbin itself as the reference: one different answer, and a policy doesn't go live.

`enforce` costs about 7 µs a rule, so a comparison is bounded by time; it starts with what the policy grants.
Run it from one thread: Casbin's `ast.parse` is not thread-safe.
"""

import logging
import random
import time
from collections.abc import Iterator

import casbin
from casbin.model import Model
from casbin.persist.adapters.string_adapter import StringAdapter

from rolecall.domain import Effect
from rolecall.policy.compiled import Policy
from rolecall.policy.model import MODEL
from rolecall.policy.source import POLICY_FILE, Source

__all__ = ["check_against_casbin", "enforcer", "questions"]

# An Enforcer logs the whole policy when it is made.
logging.getLogger("casbin").setLevel(logging.WARNING)

# Above this many rules a single `enforce` takes longer than a start should.
MAX_RULES = 20_000
# So many are compared at least, whatever the time: at 20,000 rules, 2 s.
MIN_COMPARED = 20


def enforcer(policy_text: str) -> casbin.Enforcer:
    """Casbin over the served model and `policy_text`, lines as policy.csv has them."""
    model = Model()
    model.load_model_from_text(MODEL)
    # Casbin would read an indented comment as a row.
    return casbin.Enforcer(model, StringAdapter("\n".join(line.strip() for line in policy_text.split("\n"))))


def check_against_casbin(source: Source, policy: Policy, seconds: float | None) -> int:
    """Compare `policy` with Casbin for at most `seconds` (None: to the end). Returns how many answers were compared."""
    if seconds is not None and len(policy.rules) > MAX_RULES:
        return 0
    reference = enforcer(source.policy_text)
    deadline = None if seconds is None else time.monotonic() + seconds
    compared = 0
    for role, action, resource in questions(policy):
        if deadline is not None and compared >= MIN_COMPARED and time.monotonic() > deadline:
            break
        expected = Effect.ALLOW if reference.enforce(role, resource, action) else Effect.DENY
        compared += 1
        decision = policy.decide(role, action, resource)
        if decision.decision is not expected:
            message = f"`{role}` `{resource} {action}` is {decision.decision} here and {expected} in Casbin."
            source.add(POLICY_FILE, 0, 0, message, "This is a defect of Rolecall: report it with this policy.")
            break
    return compared


def questions(policy: Policy) -> Iterator[tuple[str, str, str]]:
    """Every (role, action, resource) of the policy and of its borders: below, beside, unknown. The named ones first."""
    named = sorted({(rule.resource.rstrip("*"), rule.action) for rule in policy.rules})
    probes = sorted({probe for resource, _ in named for probe in _around(resource)})
    actions = [*sorted(policy.actions), "an-unknown-action"]
    roles = [*policy.roles, "an-unknown-role"]
    order = random.Random(0)  # noqa: S311 - a fixed shuffle, so that a time limit doesn't always leave out the same end
    order.shuffle(named)
    order.shuffle(probes)
    # Each round asks about everything, of another role each time: nothing is left out by a limit of time for long.
    for turn in range(len(roles)):
        for i, (resource, action) in enumerate(named):
            yield roles[(i + turn) % len(roles)], action, resource or "any"
    for resource in probes:
        for action in actions:
            for role in roles:
                yield role, action, resource


def _around(resource: str) -> list[str]:
    """Resources at the borders of a pattern: itself, beneath it, one letter more, one less."""
    bare = resource.rstrip("/")
    return [name for name in (bare, f"{bare}/x", f"{bare}x", bare[:-1], "an-unknown-type") if name]
