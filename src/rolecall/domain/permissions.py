"""Permissions, roles, and restrictions of credentials."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

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


# Restriction of a credential: allow rules, of which one must cover each request. None: unrestricted.
Restriction: TypeAlias = tuple[Permission, ...] | None


@dataclass(frozen=True, slots=True)
class Role:
    """Role of the policy, with its direct parents and the permissions of its own rows."""

    name: str
    parents: tuple[str, ...]
    permissions: tuple[Permission, ...]
    updates_owners: bool
