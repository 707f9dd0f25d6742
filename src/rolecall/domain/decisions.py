"""Requests for a decision, and their results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from rolecall.domain.credentials import Address
from rolecall.domain.permissions import Effect

__all__ = [
    "NOTHING_GIVEN",
    "CheckResult",
    "Explanation",
    "ItemError",
    "PlanKind",
    "Question",
    "Reason",
    "ResourcePlan",
    "RoleExplanation",
    "Subject",
    "SubjectKind",
]


class Reason(StrEnum):
    """Reason of a decision. Only GRANTED goes with ALLOW."""

    GRANTED = "an allow rule matches and no deny rule does"
    FORBIDDEN = "a deny rule matches"
    NOT_GRANTED = "no rule matches"
    CONDITION_NOT_MET = "only allow rules with conditions match, and none of these holds"
    NOT_A_MEMBER = "the subject is no member of the organization"
    UNKNOWN_ROLE = "the policy has no such role"
    UNKNOWN_RESOURCE = "no rule matches, and the policy names no such resource type"
    UNKNOWN_ACTION = "no rule matches, and the policy names no such action"
    TOKEN_INVALID = "no such live token in the organization"  # noqa: S105 - a reason, not a secret
    TOKEN_SCOPE = "the token's own restriction does not reach that far"  # noqa: S105 - as above


class SubjectKind(StrEnum):
    """Form in which a request names its subject."""

    USER_ID = "user:<id>"
    EXTERNAL_ID = "user:<external id>"
    EMAIL = "user:<address>"
    TOKEN_ID = "token:<id>"  # noqa: S105 - a form, not a secret
    PRESENTED = "a presented token"
    ROLE = "role:<name>"


_FORMS = {
    SubjectKind.USER_ID: "user:",
    SubjectKind.EXTERNAL_ID: "user:",
    SubjectKind.EMAIL: "user:",
    SubjectKind.TOKEN_ID: "token:",
    SubjectKind.PRESENTED: "token:",
    SubjectKind.ROLE: "role:",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """Subject of a decision. `value` is an id, the address key or the role; `digest` a presented token's SHA-256.

    `address` is where the token was presented from, None where that isn't known. `key` is the cache key: a string,
    because Python computes its hash only once. It is empty for a role, which needs no look-up. `is_token`: the subject
    is a token, whose validity depends on the clock.
    """

    kind: SubjectKind
    value: str
    digest: bytes = field(default=b"", repr=False)
    address: Address | None = field(default=None, compare=False, repr=False)
    key: str = field(init=False, compare=False, repr=False)
    is_token: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Derive the key."""
        object.__setattr__(self, "is_token", self.kind in (SubjectKind.TOKEN_ID, SubjectKind.PRESENTED))
        key = "" if self.kind is SubjectKind.ROLE else f"{self.kind.name} {self.digest.hex()} {self.value}"
        object.__setattr__(self, "key", key)

    @property
    def text(self) -> str:
        """The subject as people write it; a presented token by its id, never by its secret."""
        return f"{_FORMS[self.kind]}{self.value}"


NOTHING_GIVEN: Mapping[str, Any] = MappingProxyType({})
"""Values of a question without any."""


class Question(NamedTuple):
    """Question to the policy: may `subject` do `action` on `resource`?

    `scope` is the path in which the resource stands, empty for the whole organization. `given` are the values for
    conditions that the asking service knows, by the names of their variables: `context` and the properties.
    """

    subject: Subject
    action: str
    resource: str
    scope: str = ""
    given: Mapping[str, Any] = NOTHING_GIVEN


@dataclass(frozen=True, slots=True)
class RoleExplanation:
    """Role that a subject has, and why it applies to a question or doesn't.

    `reason` is what the role alone gives, None if it doesn't apply. `assignment_id` is empty for the role that the
    subject has everywhere.
    """

    role: str
    assignment_id: str
    scope: str
    applies: bool
    reason: Reason | None
    summary: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Explanation of a decision. Fields that don't apply are empty.

    `condition` is that of the rule that decided, or came nearest; `missing_values` are those that it lacked.
    """

    summary: str
    rule: str = ""
    file: str = ""
    line: int = 0
    role_chain: tuple[str, ...] = ()
    nearest_miss: str = ""
    nearest_miss_line: int = 0
    roles_that_pass: tuple[str, ...] = ()
    roles: tuple[RoleExplanation, ...] = ()
    condition: str = ""
    missing_values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ItemError:
    """Error in one item of a batch."""

    field: str
    message: str


class CheckResult(NamedTuple):
    """Result of one question. True in a condition only if the decision is ALLOW.

    `role` decided: where several allow, or deny, the first, beginning with the role that the subject has everywhere.
    `assignment_id`: how the subject has that role; empty if everywhere.
    """

    reason: Reason
    role: str = ""
    revision: int = 0
    policy_version: str = ""
    explanation: Explanation | None = None
    error: ItemError | None = None
    assignment_id: str = ""

    @property
    def decision(self) -> Effect:
        """ALLOW or DENY."""
        return Effect.ALLOW if self.reason is Reason.GRANTED else Effect.DENY

    def __bool__(self) -> bool:
        """Return whether the decision is ALLOW: `if client.check(...)` must not pass because an object is truthy."""
        return self.reason is Reason.GRANTED


class PlanKind(StrEnum):
    """Kind of a plan: whether its subject may on none of the resources, on all, or on those of its patterns."""

    NEVER = "never"
    ALWAYS = "always"
    CONDITIONAL = "conditional"


@dataclass(frozen=True, slots=True)
class ResourcePlan:
    """Resources of a type on which a subject may do an action.

    A conditional plan covers the resources that a pattern of `include` covers and none of `exclude`: `secrets/a` covers
    itself and everything beneath it, `secrets/a*` everything that begins with `secrets/a`. `role` is empty if the
    subject has none. `conditions` are those of rules that could allow more, or that exclude only while they hold.
    """

    kind: PlanKind
    resource_type: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    role: str = ""
    revision: int = 0
    policy_version: str = ""
    conditions: tuple[str, ...] = ()
