"""How far a role reaches when a credential cuts it down, and whether one reach lies within another.

Patterns nest: of any two, one covers the other or they have nothing in common. So what two patterns share is the
narrower one, and a pattern is covered by a single other one or by none. (Requirements, rules 1 and 3.)
"""

from collections.abc import Iterable, Iterator

from rolecall.domain import Effect, Permission, Restriction
from rolecall.policy.compiled import Policy

__all__ = ["Reach", "is_cut_down", "is_within", "narrowed", "permits"]

_Pattern = tuple[str, str]


def permits(restriction: Restriction, action: str, resource: str) -> bool:
    """Whether a credential with this restriction may do `action` on `resource` if its role may."""
    if restriction is None:
        return True
    return any(
        permission.action in (action, "*") and _covers(permission.resource, resource) for permission in restriction
    )


def is_cut_down(restriction: Restriction, bound: Restriction) -> bool:
    """Whether a restriction lies within another one, whatever the roles."""
    if bound is None or restriction is None:
        return bound is None
    bounds, _ = _split(bound)
    return all(_is_covered((permission.resource, permission.action), bounds) for permission in restriction)


def narrowed(permissions: Iterable[Permission], restriction: Restriction) -> list[Permission]:
    """What is left of a role's permissions for a credential with this restriction; denies stay where they matter."""
    held = list(permissions)
    if restriction is None:
        return held
    common: set[Permission] = set()
    # Where the bound covers the permission's resource, the permission's is what they share, and the other way about.
    bounds = _by_resource(restriction)
    for permission in held:
        for bound in _covering(permission.resource, bounds):
            common |= _common(permission, bound, permission.resource)
    by_resource = _by_resource(held)
    for bound in restriction:
        for permission in _covering(bound.resource, by_resource):
            common |= _common(permission, bound, bound.resource)
    return sorted(common, key=lambda permission: (permission.resource, permission.action, permission.effect))


class Reach:
    """What a role is allowed, cut down to a restriction; reckoned once, to be asked often."""

    def __init__(self, policy: Policy, role: str, restriction: Restriction) -> None:
        self._allows, self._denies = _split(narrowed(policy.permissions_of(role), restriction))

    def covers(self, wanted: Permission) -> bool:
        """Whether all of `wanted`, a pattern, is allowed.

        A deny within it does not count, as it holds for whatever is made of `wanted`; one that covers it whole does.
        """
        pattern = (wanted.resource, wanted.action)
        return _is_covered(pattern, self._allows) and not _is_covered(pattern, self._denies)


def is_within(policy: Policy, role: str, holder: str, restriction: Restriction) -> bool:
    """Whether all that `role` may lies within what `holder` may, cut down to `restriction`.

    It does where every allow of the role is covered by one of the holder, and every deny of the holder that overlaps
    it stands in the role too. An unknown role lies within nothing.
    """
    if role not in policy.roles:
        return False
    own = policy.permissions_of(role)
    allows, denies = _split(own)
    held_allows, held_denies = _split(narrowed(policy.permissions_of(holder), restriction))
    if not all(_is_covered(allow, held_allows) for allow in allows):
        return False
    lacking = tuple(Permission(*deny, Effect.DENY) for deny in held_denies if not _is_covered(deny, denies))
    return not any(permission.effect is Effect.ALLOW for permission in narrowed(own, lacking))


def _common(permission: Permission, bound: Permission, resource: str) -> set[Permission]:
    """What the two share on `resource`, at most one permission."""
    if bound.action in ("*", permission.action):
        return {Permission(resource, permission.action, permission.effect)}
    if permission.action == "*":
        return {Permission(resource, bound.action, permission.effect)}
    return set()


def _by_resource(permissions: Iterable[Permission]) -> dict[str, list[Permission]]:
    found: dict[str, list[Permission]] = {}
    for permission in permissions:
        found.setdefault(permission.resource, []).append(permission)
    return found


def _covering(resource: str, by_resource: dict[str, list[Permission]]) -> Iterator[Permission]:
    """Those whose resource covers `resource`, a pattern; a few look-ups, however many there are."""
    for pattern in _coverings(resource):
        yield from by_resource.get(pattern, ())


def _split(permissions: Iterable[Permission]) -> tuple[set[_Pattern], set[_Pattern]]:
    """The (resource, action) patterns of the allows and of the denies."""
    sides: dict[Effect, set[_Pattern]] = {Effect.ALLOW: set(), Effect.DENY: set()}
    for permission in permissions:
        sides[permission.effect].add((permission.resource, permission.action))
    return sides[Effect.ALLOW], sides[Effect.DENY]


def _is_covered(wanted: _Pattern, patterns: set[_Pattern]) -> bool:
    """Whether one of `patterns` covers `wanted`."""
    resource, action = wanted
    return any((pattern, verb) in patterns for pattern in _coverings(resource) for verb in {action, "*"})


def _coverings(pattern: str) -> Iterator[str]:
    """Every resource pattern that covers `pattern`, itself included."""
    stem = pattern.removesuffix("*")
    if stem == pattern:
        yield pattern
    yield from (stem[:i] for i, character in enumerate(stem) if character == "/")
    yield from (f"{stem[:i]}*" for i in range(len(stem) + 1))


def _covers(pattern: str, resource: str) -> bool:
    if pattern.endswith("*"):
        return resource.startswith(pattern[:-1])
    return resource == pattern or resource.startswith(f"{pattern}/")
