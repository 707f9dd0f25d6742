"""Plans: on which resources of a type an action is allowed, as patterns that a query can filter by."""

from collections.abc import Iterable

from rolecall.domain import Effect, Permission
from rolecall.policy.restrictions import covering_patterns

__all__ = ["plan_resources"]


def plan_resources(
    permissions: Iterable[Permission], action: str, resource_type: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the patterns of the allowed resources beneath `resource_type/`, and those of the denied ones among them.

    No pattern covers another of the same list, and each of the second is covered by one of the first. All resources
    are the pattern `resource_type/*`; none are two empty lists. Permissions with conditions allow nothing here, and
    deny.
    """
    everything = f"{resource_type}/*"
    patterns: dict[Effect, set[str]] = {Effect.ALLOW: set(), Effect.DENY: set()}
    for permission in permissions:
        if permission.condition and permission.effect is Effect.ALLOW:
            continue
        if permission.action in (action, "*"):
            # Patterns nest: one that covers a part of the type lies within it, or covers all of it.
            if _is_covered(everything, {permission.resource}):
                patterns[permission.effect].add(everything)
            elif _is_covered(permission.resource, {everything}):
                patterns[permission.effect].add(permission.resource)
    denies = _widest(patterns[Effect.DENY])
    include = {allow for allow in _widest(patterns[Effect.ALLOW]) if not _is_covered(allow, denies)}
    exclude = {deny for deny in denies if _is_covered(deny, include)}
    return tuple(sorted(include)), tuple(sorted(exclude))


def _widest(patterns: set[str]) -> set[str]:
    return {pattern for pattern in patterns if not _is_covered(pattern, patterns - {pattern})}


def _is_covered(pattern: str, by: set[str]) -> bool:
    return any(wider in by for wider in covering_patterns(pattern))
