"""Plans: on which resources of a type an action is allowed, as patterns that a query can filter by."""

from collections.abc import Iterable

from rolecall.domain import Effect, Permission
from rolecall.policy.restrictions import covering_patterns

__all__ = ["plan_resources"]


def plan_resources(
    permissions: Iterable[Permission], action: str, resource_type: str
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the patterns of the allowed resources beneath `resource_type/`, and those of the denied ones among them.

    No pattern covers another of the same list, and each of the second is covered by one of the first. All resources
    are the pattern `resource_type/*`; none are two empty lists. A permission with a condition allows nothing here, and
    denies. The third list has the conditions by which a Check may allow more.
    """
    everything = f"{resource_type}/*"
    patterns: dict[Effect, set[tuple[str, str]]] = {Effect.ALLOW: set(), Effect.DENY: set()}
    for permission in permissions:
        if permission.action in (action, "*"):
            # Patterns nest: one that covers a part of the type lies within it, or covers all of it.
            if _is_covered(everything, {permission.resource}):
                patterns[permission.effect].add((everything, permission.condition))
            elif _is_covered(permission.resource, {everything}):
                patterns[permission.effect].add((permission.resource, permission.condition))
    allows, may_allow = _split(patterns[Effect.ALLOW])
    always_denied, may_deny = _split(patterns[Effect.DENY])
    denies = _widest(always_denied | {pattern for pattern, _ in may_deny})
    include = {allow for allow in _widest(allows) if not _is_covered(allow, denies)}
    exclude = {deny for deny in denies if _is_covered(deny, include)}
    conditions = {
        condition
        for pattern, condition in (*may_allow, *may_deny)
        if not _is_covered(pattern, always_denied if (pattern, condition) in may_deny else allows | always_denied)
    }
    return tuple(sorted(include)), tuple(sorted(exclude)), tuple(sorted(conditions))


def _split(patterns: set[tuple[str, str]]) -> tuple[set[str], set[tuple[str, str]]]:
    """Return the patterns without a condition, and the others with theirs."""
    return {pattern for pattern, condition in patterns if not condition}, {each for each in patterns if each[1]}


def _widest(patterns: set[str]) -> set[str]:
    return {pattern for pattern in patterns if not _is_covered(pattern, patterns - {pattern})}


def _is_covered(pattern: str, by: set[str]) -> bool:
    return any(wider in by for wider in covering_patterns(pattern))
