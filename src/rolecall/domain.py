"""Frozen values that every layer speaks in. Imports nothing of ours. Times are UTC microseconds since 1970."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from typing import Any, TypeAlias

__all__ = [
    "AuditEntry",
    "AuditFilter",
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
    "Restriction",
    "Role",
    "Subject",
    "SubjectKind",
    "Token",
    "TokenState",
    "now",
    "rfc3339",
]


def now() -> int:
    """The present moment, in microseconds."""
    return time.time_ns() // 1000


def rfc3339(microseconds: int) -> str:
    """A moment as people and programs read it, in UTC and to the microsecond."""
    at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


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
    ORGANIZATION = "rco"
    SESSION = "rcs"


@dataclass(frozen=True, slots=True)
class Permission:
    """A rule as somebody holds it: `resource` and `action` are the policy's patterns."""

    resource: str
    action: str
    effect: Effect


# What a credential is cut down to: allow rules, of which one must cover what it does. None: it is not cut down.
Restriction: TypeAlias = tuple[Permission, ...] | None


@dataclass(frozen=True, slots=True)
class Organization:
    """A tenant. `id` is its slug; `revision` counts its mutations, `changed` is the one that last changed it itself."""

    id: str
    display_name: str
    revision: int
    create_time: int
    changed: int = 1

    @property
    def etag(self) -> str:
        """Changes with every change of the organization itself."""
        return f"{self.changed:x}"


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
    """The presented credential and its holder, as they stand now. An organization's token has no person behind it.

    `digest` is the SHA-256 of the text that was presented.
    """

    organization: str
    credential_id: str
    kind: CredentialKind
    user_id: str
    email_key: str
    role: str
    restriction: Restriction = None
    expire_time: int = 0
    digest: bytes = field(default=b"", repr=False)

    @property
    def actor(self) -> str:
        """Who acts, as the audit log names them: the person, else the organization's token."""
        return f"user:{self.user_id}" if self.user_id else f"token:{self.credential_id}"


class TokenState(StrEnum):
    """Whether a token works."""

    LIVE = "live"
    EXPIRED = "expired"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Token:
    """A personal or an organization's token without its secret. `user_id` is empty for the organization's.

    `role` is a personal token's holder's present one, an organization token's own. `changed` is the revision that
    last changed it.
    """

    organization: str
    id: str
    kind: CredentialKind
    name: str
    user_id: str
    created_by: str
    role: str
    restriction: Restriction
    last_four: str
    create_time: int
    expire_time: int
    last_used_time: int | None
    revoke_time: int | None
    changed: int

    @property
    def etag(self) -> str:
        """Changes with every change of the token; its being used is none."""
        return f"{self.changed:x}"

    def state(self, at: int) -> TokenState:
        """Whether it works at the moment `at`."""
        if self.revoke_time is not None:
            return TokenState.DELETED
        return TokenState.LIVE if at < self.expire_time else TokenState.EXPIRED


class SubjectKind(Enum):
    """How a subject is named."""

    USER_ID = "user:<id>"
    EMAIL = "user:<address>"
    TOKEN_ID = "token:<id>"  # noqa: S105 - a form, not a secret
    PRESENTED = "a presented token"
    ROLE = "role:<name>"


_FORMS = {
    SubjectKind.USER_ID: "user:",
    SubjectKind.EMAIL: "user:",
    SubjectKind.TOKEN_ID: "token:",
    SubjectKind.PRESENTED: "token:",
    SubjectKind.ROLE: "role:",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is asked about. `value` is the id, the address key or the role; `digest` a presented token's SHA-256."""

    kind: SubjectKind
    value: str
    digest: bytes = field(default=b"", repr=False)

    @property
    def text(self) -> str:
        """The subject as people write it; a presented token by its id, never its secret."""
        return f"{_FORMS[self.kind]}{self.value}"


@dataclass(frozen=True, slots=True)
class Question:
    """May `subject` do `action` on `resource`?"""

    subject: Subject
    action: str
    resource: str


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


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change, or refused attempts at one. `reason` is empty for a change that was made.

    `details` are as people read them: values of persons in their places, `[erased]` where they were erased.
    """

    sequence: int
    time: int
    actor: str
    credential_id: str
    action: str
    object: str
    reason: str
    details: Mapping[str, Any]
    request_id: str
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries are wanted; what is empty or None takes any. `denied`: those with a reason, or those without."""

    start_time: int | None = None
    end_time: int | None = None
    actor: str = ""
    action: str = ""
    object: str = ""
    denied: bool | None = None
