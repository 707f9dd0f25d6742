"""Permissions, roles, and restrictions of credentials."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Effect", "Permission", "Restriction", "Role"]


class Effect(StrEnum):
    """Effect of a rule, and of a decision."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Permission:
    """Permission of a role or credential: a rule without its role. `resource` and `action` are patterns.

    With a `condition`, the permission counts only while that condition holds. Those of a credential have none.
    """

    resource: str
    action: str
    effect: Effect
    condition: str = ""


@dataclass(frozen=True, slots=True)
class Restriction:
    """Restriction of a credential: bounds what it may do, besides its role.

    One of `permissions`, allow rules, must cover each request; None: any request. With a `scope`, the request's scope
    or its resource must be at that path or beneath it.
    """

    permissions: tuple[Permission, ...] | None = None
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Role:
    """Role of the policy, with its direct parents and the permissions of its own rows."""

    name: str
    parents: tuple[str, ...]
    permissions: tuple[Permission, ...]
    updates_owners: bool
