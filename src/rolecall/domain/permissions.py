"""What rules say: who may do what, and what a credential is cut down to."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

__all__ = ["Effect", "Permission", "Restriction", "Role"]


class Effect(StrEnum):
    """What a rule does, and what a decision is."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Permission:
    """A rule as somebody holds it: `resource` and `action` are the policy's patterns."""

    resource: str
    action: str
    effect: Effect


# What a credential is cut down to: allow rules, of which one must cover what it does. None: it is not cut down.
Restriction: TypeAlias = tuple[Permission, ...] | None


@dataclass(frozen=True, slots=True)
class Role:
    """A role of the policy with the rules that it states itself, and those it inherits from."""

    name: str
    parents: tuple[str, ...]
    permissions: tuple[Permission, ...]
    updates_owners: bool
