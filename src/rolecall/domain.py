"""Frozen values that every layer speaks in. Imports nothing of ours. Times are UTC microseconds since 1970."""

import time
from dataclasses import dataclass, field
from enum import Enum, StrEnum

__all__ = [
    "Caller",
    "CheckResult",
    "CredentialKind",
    "Effect",
    "Explanation",
    "ItemError",
    "Member",
    "Organization",
    "Page",
    "Permission",
    "Question",
    "Reason",
    "Role",
    "Subject",
    "SubjectKind",
    "now",
]


def now() -> int:
    """The present moment, in microseconds."""
    return time.time_ns() // 1000


class Effect(StrEnum):
    """What a rule does, and what a decision is."""

    ALLOW = "allow"
    DENY = "deny"


class Reason(Enum):
    """Why a decision is what it is. Only GRANTED goes with ALLOW."""

    GRANTED = "an allow rule matches and no deny rule does"
    FORBIDDEN = "a deny rule matches"
    NOT_GRANTED = "no rule matches"
    NOT_A_MEMBER = "the subject is no member of the organization"
    UNKNOWN_ROLE = "the policy has no such role"
    UNKNOWN_RESOURCE = "no rule matches, and the policy names no such resource type"
    UNKNOWN_ACTION = "no rule matches, and the policy names no such action"
    TOKEN_INVALID = "no such live token in the organization"  # noqa: S105 - a reason, not a secret
    TOKEN_SCOPE = "the token's own restriction does not reach that far"  # noqa: S105 - as above


class CredentialKind(StrEnum):
    """What sort of credential it is; the value is the prefix that its text begins with."""

    PERSONAL = "rcp"


@dataclass(frozen=True, slots=True)
class Organization:
    """A tenant. `id` is its slug; `revision` counts its mutations, without gaps."""

    id: str
    display_name: str
    revision: int
    create_time: int


@dataclass(frozen=True, slots=True)
class Member:
    """A person inside one organization. `email` is the address as written, not the normalised key."""

    organization: str
    user_id: str
    email: str
    display_name: str
    role: str
    create_time: int
    update_time: int


@dataclass(frozen=True, slots=True)
class Caller:
    """The presented credential and its holder, as they stand now."""

    organization: str
    credential_id: str
    kind: CredentialKind
    user_id: str
    email_key: str
    role: str


class SubjectKind(Enum):
    """How a subject is named."""

    USER_ID = "user:<id>"
    EMAIL = "user:<address>"
    TOKEN_ID = "token:<id>"  # noqa: S105 - a form, not a secret
    PRESENTED = "a presented token"
    ROLE = "role:<name>"


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is asked about. `value` is the id, the address key or the role; `digest` a presented token's SHA-256."""

    kind: SubjectKind
    value: str
    digest: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Question:
    """May `subject` do `action` on `resource`?"""

    subject: Subject
    action: str
    resource: str


@dataclass(frozen=True, slots=True)
class Permission:
    """A rule as somebody holds it: `resource` and `action` are the policy's patterns."""

    resource: str
    action: str
    effect: Effect


@dataclass(frozen=True, slots=True)
class Role:
    """A role of the policy with the rules that it states itself, and those it inherits from."""

    name: str
    parents: tuple[str, ...]
    permissions: tuple[Permission, ...]
    updates_owners: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a decision came out as it did. Empty where there is nothing to say."""

    summary: str
    rule: str = ""
    file: str = ""
    line: int = 0
    role_chain: tuple[str, ...] = ()
    nearest_miss: str = ""
    nearest_miss_line: int = 0
    roles_that_pass: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ItemError:
    """What is wrong with one item of a batch."""

    field: str
    message: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The answer to one question. True in a condition only where the decision is ALLOW."""

    reason: Reason
    role: str = ""
    revision: int = 0
    policy_version: str = ""
    explanation: Explanation | None = None
    error: ItemError | None = None
    decision: Effect = field(init=False)

    def __post_init__(self) -> None:
        """Derive the decision from the reason, so that the two can't disagree."""
        object.__setattr__(self, "decision", Effect.ALLOW if self.reason is Reason.GRANTED else Effect.DENY)

    def __bool__(self) -> bool:
        """Whether it is allowed: `if client.check(...)` must not pass because an object is truthy."""
        return self.decision is Effect.ALLOW


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted: at most `size` entries after the one that `token` names."""

    size: int = 0
    token: str = ""
