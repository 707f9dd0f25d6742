"""Restrictions of credentials: the permissions of a restricted role, and whether one role lies within another.

Patterns nest: of any two, one covers the other or they are disjoint. So the intersection of two patterns is the
narrower one, and a pattern that is covered at all is covered by a single pattern. See docs/concepts.md, rules 1 and 3.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from rolecall.domain import Effect, Permission, Restriction
from rolecall.policy.index import Policy, permission_order

__all__ = ["PermissionScope", "covering_patterns", "is_restricted_within", "is_within", "permits", "restrict"]

# Resource and action, and the condition under which the rule counts; empty for always.
_Pattern = tuple[str, str, str]


def permits(restriction: Restriction, action: str, resource: str) -> bool:
    """Return whether the restriction covers `action` on `resource`. The role must allow it besides."""
    if restriction is None:
        return True
    return any(
        permission.action in (action, "*") and _covers(permission.resource, resource) for permission in restriction
    )


def is_restricted_within(restriction: Restriction, bound: Restriction) -> bool:
    """Return whether a restriction lies within another one, for any role."""
    if bound is None or restriction is None:
        return bound is None
    bounds, _ = _split(bound)
    return all(_is_covered(_pattern(permission), bounds) for permission in restriction)


def restrict(permissions: Iterable[Permission], restriction: Restriction) -> list[Permission]:
    """Return the permissions of a role that remain under a restriction; denies that overlap it remain too."""
    held = list(permissions)
    if restriction is None:
        return held
    common: set[Permission] = set()
    # If the bound covers the permission's resource, the intersection is the permission's resource, and vice versa.
    bounds = _by_resource(restriction)
    for permission in held:
        for bound in _covering_permissions(permission.resource, bounds):
            common |= _intersection(permission, bound, permission.resource)
    by_resource = _by_resource(held)
    for bound in restriction:
        for permission in _covering_permissions(bound.resource, by_resource):
            common |= _intersection(permission, bound, bound.resource)
    return sorted(common, key=permission_order)


class PermissionScope:
    """Permissions of a role under a restriction, computed once for many calls of `covers`."""

    def __init__(self, policy: Policy, role: str, restriction: Restriction) -> None:
        self._allows, denies = _split(restrict(policy.permissions_of(role), restriction))
        # A deny rule counts whatever its condition is.
        self._denies = {(resource, action, "") for resource, action, _ in denies}

    def covers(self, wanted: Permission) -> bool:
        """Return whether all of `wanted`, a pattern, is allowed, without a condition.

        A deny rule within it doesn't matter, as it applies to the new credential too; one that covers all of it does.
        """
        pattern = _pattern(wanted)
        return _is_covered(pattern, self._allows) and not _is_covered(pattern, self._denies)


def is_within(policy: Policy, role: str, holder: str, restriction: Restriction) -> bool:
    """Return whether `role` lies within what the role `holder` may under `restriction`.

    It does if every allow rule of the role is covered by one of the holder, and every deny rule of the holder that
    overlaps the role stands in the role too. A rule covers another if it has no condition, or the same one. An unknown
    role lies within nothing.
    """
    if role not in policy.roles:
        return False
    own = policy.permissions_of(role)
    allows, denies = _split(own)
    held_allows, held_denies = _split(restrict(policy.permissions_of(holder), restriction))
    if not all(_is_covered(allow, held_allows) for allow in allows):
        return False
    uncovered = (deny for deny in held_denies if not _is_covered(deny, denies))
    missing = tuple(Permission(resource, action, Effect.DENY) for resource, action, _ in uncovered)
    return not any(permission.effect is Effect.ALLOW for permission in restrict(own, missing))


def _intersection(permission: Permission, bound: Permission, resource: str) -> set[Permission]:
    """Return the intersection of the two on `resource`: at most one permission."""
    if bound.action in ("*", permission.action):
        return {replace(permission, resource=resource)}
    if permission.action == "*":
        return {replace(permission, resource=resource, action=bound.action)}
    return set()


def _by_resource(permissions: Iterable[Permission]) -> dict[str, list[Permission]]:
    found: dict[str, list[Permission]] = {}
    for permission in permissions:
        found.setdefault(permission.resource, []).append(permission)
    return found


def _covering_permissions(resource: str, by_resource: dict[str, list[Permission]]) -> Iterator[Permission]:
    """Yield those whose resource covers `resource`, a pattern; a few look-ups for any number of permissions."""
    for pattern in covering_patterns(resource):
        yield from by_resource.get(pattern, ())


def _pattern(permission: Permission) -> _Pattern:
    return permission.resource, permission.action, permission.condition


def _split(permissions: Iterable[Permission]) -> tuple[set[_Pattern], set[_Pattern]]:
    """Split into the patterns of the allows and of the denies."""
    sides: dict[Effect, set[_Pattern]] = {Effect.ALLOW: set(), Effect.DENY: set()}
    for permission in permissions:
        sides[permission.effect].add(_pattern(permission))
    return sides[Effect.ALLOW], sides[Effect.DENY]


def _is_covered(wanted: _Pattern, patterns: set[_Pattern]) -> bool:
    """Return whether one of `patterns` covers `wanted`."""
    resource, action, condition = wanted
    return any(
        (pattern, verb, when) in patterns
        for pattern in covering_patterns(resource)
        for verb in {action, "*"}
        for when in {condition, ""}
    )


def covering_patterns(pattern: str) -> Iterator[str]:
    """Yield every resource pattern that covers `pattern`, itself included."""
    prefix = pattern.removesuffix("*")
    if prefix == pattern:
        yield pattern
    yield from (prefix[:i] for i, character in enumerate(prefix) if character == "/")
    yield from (f"{prefix[:i]}*" for i in range(len(prefix) + 1))


def _covers(pattern: str, resource: str) -> bool:
    if pattern.endswith("*"):
        return resource.startswith(pattern[:-1])
    return resource == pattern or resource.startswith(f"{pattern}/")
