"""Values of conditions: what the server knows about a question itself, and what the asking service gives besides."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rolecall.domain import NOTHING_GIVEN, now
from rolecall.policy import Evaluate, Policy, Values, values_of

__all__ = ["ROLE", "TOKEN", "USER", "evaluator", "values"]

# Kinds of subjects, as expressions compare them: a member, also by a token of its own; an organization's token; a role.
USER, TOKEN, ROLE = "user", "token", "role"


def values(
    subject: tuple[str, str, str],
    roles: Sequence[str],
    action: str,
    resource: str,
    scope: str,
    given: Mapping[str, Any] = NOTHING_GIVEN,
) -> Values:
    """Return the values of a question now. `subject` is its kind, its id and its address, empty where it has none.

    `given` has only values that the server doesn't know itself.
    """
    kind, identifier, email = subject
    found: dict[str, Any] = {
        **given,
        **values_of(action, resource),
        "scope": scope,
        "time": datetime.fromtimestamp(now() / 1_000_000, UTC),
        "subject.kind": kind,
        "subject.roles": list(dict.fromkeys(roles)),
    }
    if identifier:
        found["subject.id"] = identifier
    if email:
        found["subject.email"] = email
    return found


def evaluator(policy: Policy, make_values: Callable[[], Values]) -> Evaluate:
    """Return the function that evaluates the policy's conditions, with values that are made for the first of them."""
    made: Values | None = None

    def evaluate(name: str) -> bool | None:
        nonlocal made
        if made is None:
            made = make_values()
        return policy.conditions[name].holds(made)

    return evaluate
