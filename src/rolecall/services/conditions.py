"""Values of conditions: what the server knows about a question itself, and what the asking service gives besides."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from rolecall.domain import NOTHING_GIVEN
from rolecall.policy import Evaluate, Policy

__all__ = ["ROLE", "TOKEN", "USER", "Memo", "QuestionValues", "evaluator"]

# Kinds of subjects, as expressions compare them: a member, also by a token of its own; an organization's token; a role.
USER, TOKEN, ROLE = "user", "token", "role"

# What conditions were worth in a batch, by their names and the keys of the values that they depend on.
Memo = dict[tuple[Hashable, ...], bool | None]


class QuestionValues(Mapping[str, Any]):
    """Values of a question, by the names of the variables. Each is made when it is needed: most conditions need one."""

    __slots__ = ("_given", "action", "at", "email", "identifier", "kind", "resource", "roles", "scope")

    def __init__(
        self,
        subject: tuple[str, str, str],
        roles: tuple[str, ...],
        action: str,
        resource: str,
        scope: str,
        at: int,
        given: Mapping[str, Any] = NOTHING_GIVEN,
    ) -> None:
        """Take what is known of a question at the time `at`.

        `subject` is its kind, its id and its address, empty where it has none. What is `given` never stands for what
        the server knows itself.
        """
        self.kind, self.identifier, self.email = subject
        self.roles = roles
        self.action = action
        self.resource = resource
        self.scope = scope
        self.at = at
        self._given = given

    def __getitem__(self, name: str) -> Any:
        """Return a value. Raises `KeyError` where it is missing."""
        known = _KNOWN.get(name)
        return self._given[name] if known is None else known(self)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the values that aren't missing."""
        names = {*_KNOWN, *self._given}
        return iter(name for name in names if name in self)

    def __len__(self) -> int:
        """Count the values."""
        return sum(1 for _ in self)

    def key(self, name: str) -> Hashable:
        """Return what is equal only for equal values, while the values exist; None for a missing one."""
        try:
            value = self[name]
        except KeyError:
            return None
        if isinstance(value, dict):
            return id(value)
        return tuple(value) if isinstance(value, list) else value


def _present(text: str) -> str:
    if not text:
        raise KeyError(text)
    return text


_KNOWN: dict[str, Callable[[QuestionValues], Any]] = {
    "subject.id": lambda values: _present(values.identifier),
    "subject.email": lambda values: _present(values.email),
    "subject.roles": lambda values: list(dict.fromkeys(values.roles)),
    "subject.kind": lambda values: values.kind,
    "resource.type": lambda values: values.resource.partition("/")[0],
    "resource.id": lambda values: values.resource.partition("/")[2],
    "resource.path": lambda values: values.resource,
    "action.name": lambda values: values.action,
    "scope": lambda values: values.scope,
    "time": lambda values: datetime.fromtimestamp(values.at / 1_000_000, UTC),
}


def evaluator(policy: Policy, values: QuestionValues, memo: Memo | None) -> Evaluate:
    """Return the function that evaluates the policy's conditions; with a `memo`, not twice for the same values."""
    if memo is None:
        return policy.evaluator(values)
    known, found = policy.conditions, memo

    def evaluate(name: str) -> bool | None:
        condition = known[name]
        key = (name, *map(values.key, condition.variables))
        try:
            return found[key]
        except KeyError:
            holds = found[key] = condition.holds(values)
            return holds

    return evaluate
