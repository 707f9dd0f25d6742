"""Restrictions of credentials: the permissions of a restricted role, and whether one role lies within another.

Patterns nest: of any two, one covers the other or they are disjoint. So the intersection of two patterns is the
narrower one, and a pattern that is covered at all is covered by a single pattern. See docs/concepts.md, rules 1 and 3.
"""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property

from rolecall.domain import AssignedRoles, Effect, Permission, Restriction, covers
from rolecall.policy.index import Policy, permission_order

__all__ = [
    "HeldPermissions",
    "covering_patterns",
    "held_at",
    "is_restricted_within",
    "is_within",
    "permissions_at",
    "permits",
    "restrict",
]

# Resource and action, and the condition under which the rule counts; empty for always.
_Pattern = tuple[str, str, str]


def permits(restriction: Restriction | None, action: str, resource: str, scope: str = "") -> bool:
    """Return whether the restriction covers `action` on `resource` in `scope`. A role must allow it besides."""
    if restriction is None:
        return True
    if restriction.scope and not covers(restriction.scope, scope) and not covers(restriction.scope, resource):
        return False
    return restriction.permissions is None or any(
        permission.action in (action, "*") and _covers(permission.resource, resource)
        for permission in restriction.permissions
    )


def is_restricted_within(restriction: Restriction | None, bound: Restriction | None) -> bool:
    """Return whether a restriction lies within another one, for any role."""
    if bound is None or restriction is None:
        return bound is None
    if not covers(bound.scope, restriction.scope):
        return False
    if bound.permissions is None or restriction.permissions is None:
        return bound.permissions is None
    bounds, _ = _split(bound.permissions)
    return all(_is_covered(_pattern(permission), bounds) for permission in restriction.permissions)


def permissions_at(
    policy: Policy, role: str, assigned: AssignedRoles, restriction: Restriction | None, scope: str
) -> list[Permission]:
    """Return what a subject with these roles may and may not for questions in `scope`, under a restriction.

    Roles that are assigned elsewhere apply, and so does a restriction to another scope, to the resources that are at
    that scope or beneath it: their permissions are cut down to these. Empty for an unknown role.
    """
    found = set(policy.permissions_of(role))
    for each in assigned.roles:
        permissions = policy.permissions_of(each.role)
        found.update(permissions if covers(each.scope, scope) else _beneath(permissions, each.scope))
    permissions = _ordered(found)
    if restriction is None:
        return permissions
    if restriction.scope and not covers(restriction.scope, scope):
        permissions = _ordered(_beneath(permissions, restriction.scope))
    return restrict(permissions, restriction)


def restrict(permissions: Iterable[Permission], restriction: Restriction | None) -> list[Permission]:
    """Return the permissions that remain under those of a restriction; denies that overlap it remain too.

    The restriction's scope has no effect here.
    """
    held = list(permissions)
    if restriction is None or restriction.permissions is None:
        return held
    return _ordered(_common(held, restriction.permissions))


@dataclass(frozen=True)
class HeldPermissions:
    """Permissions that a credential has at the whole of a scope: the patterns of its allows and of its denies."""

    allows: frozenset[_Pattern]
    denies: frozenset[_Pattern]

    def covers(self, wanted: Permission) -> bool:
        """Return whether all of `wanted`, a pattern of a restriction, is allowed, perhaps under a condition.

        A restriction grants nothing: a condition counts for the new credential too, and so does a deny rule within the
        pattern. A deny rule that covers all of it, whatever the conditions, leaves nothing.
        """
        pattern = _pattern(wanted)
        return _is_covered(pattern, self._allowed) and not _is_covered(pattern, self.denies)

    @cached_property
    def _allowed(self) -> set[_Pattern]:
        """The patterns of the allows, whatever their conditions are."""
        return {(resource, action, "") for resource, action, _ in self.allows}


def held_at(
    policy: Policy,
    role: str,
    assigned: AssignedRoles,
    restriction: Restriction | None,
    scope: str,
    until: int,
) -> HeldPermissions:
    """Return what a credential has at the whole of `scope`, at least until the time `until`.

    Of the assigned roles, those allow that hold at all of the scope until then; all of them deny. A restriction to
    another scope leaves nothing allowed.
    """
    allowed = {role, *(each.role for each in assigned.covering(scope, until))}
    denied = {role, *(each.role for each in assigned.roles)}
    outside = restriction is not None and not covers(restriction.scope, scope)
    allows = () if outside else (each for name in allowed for each in policy.permissions_of(name))
    denies = (each for name in denied for each in policy.permissions_of(name))
    return HeldPermissions(
        frozenset(_split(restrict(allows, restriction))[0]), frozenset(_split(restrict(denies, restriction))[1])
    )


def is_within(policy: Policy, role: str, held: HeldPermissions) -> bool:
    """Return whether `role` lies within what a credential has.

    It does if every allow rule of the role is covered by one of the credential's, and every deny rule of the credential
    that overlaps the role stands in the role too. A rule covers another if it has no condition, or the same one. An
    unknown role lies within nothing.
    """
    if role not in policy.roles:
        return False
    own = policy.permissions_of(role)
    allows, denies = _split(own)
    if not all(_is_covered(allow, held.allows) for allow in allows):
        return False
    uncovered = (deny for deny in held.denies if not _is_covered(deny, denies))
    missing = [Permission(resource, action, Effect.DENY) for resource, action, _ in uncovered]
    return not any(permission.effect is Effect.ALLOW for permission in _common(own, missing))


def _common(held: Iterable[Permission], bounds: Iterable[Permission]) -> set[Permission]:
    """Return the intersections of each permission with each of `bounds`, with the effect of the permission."""
    held, bounds = list(held), list(bounds)
    common: set[Permission] = set()
    # If the bound covers the permission's resource, the intersection is the permission's resource, and vice versa.
    by_bound = _by_resource(bounds)
    for permission in held:
        for bound in _covering_permissions(permission.resource, by_bound):
            common |= _intersection(permission, bound, permission.resource)
    by_resource = _by_resource(held)
    for bound in bounds:
        for permission in _covering_permissions(bound.resource, by_resource):
            common |= _intersection(permission, bound, bound.resource)
    return common


def _beneath(permissions: Iterable[Permission], scope: str) -> set[Permission]:
    """Return the permissions cut down to the resources at a scope and beneath it."""
    return _common(permissions, [Permission(scope, "*", Effect.ALLOW)])


def _ordered(permissions: Iterable[Permission]) -> list[Permission]:
    return sorted(permissions, key=permission_order)


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


def _is_covered(wanted: _Pattern, patterns: AbstractSet[_Pattern]) -> bool:
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
