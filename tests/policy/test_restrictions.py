"""Permissions of restricted credentials, compared with an exhaustive evaluation."""

import os
from collections.abc import Collection, Iterable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rolecall.domain import NEVER, NOTHING_ASSIGNED, ORGANIZATION, Effect, Permission, Restriction
from rolecall.policy import (
    HeldPermissions,
    Policy,
    Rule,
    build,
    held_at,
    is_restricted_within,
    is_within,
    permissions_at,
    permits,
)
from support.policy_folders import SHIPPED
from support.random_policies import ROLES, RandomPolicy, matches, pairs, random_policies, restrictions

ALLOW, DENY = Effect.ALLOW, Effect.DENY
FIVE = ("VIEWERNOSECRETS", "VIEWER", "CONTRIBUTOR", "ADMIN", "OWNER")
# Occurs in no pattern: what only a wildcard covers.
FRESH = "zz"

PROPERTY = settings(
    max_examples=1000 if os.environ.get("CI") == "true" else 80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def permissions_in(restriction: Restriction | None) -> tuple[Permission, ...]:
    """The permissions of a restriction; none without one."""
    return (restriction and restriction.permissions) or ()


def left_of(policy: Policy, role: str, restriction: Restriction | None) -> list[Permission]:
    """The permissions of a role that remain under a restriction."""
    return permissions_at(policy, role, NOTHING_ASSIGNED, restriction, ORGANIZATION)


def held_by(policy: Policy, role: str, restriction: Restriction | None) -> HeldPermissions:
    """Return what a credential with this role and restriction has everywhere."""
    return held_at(policy, role, NOTHING_ASSIGNED, restriction, ORGANIZATION, NEVER)


def covers(held: Iterable[Rule | Permission], effect: Effect, resource: str, action: str) -> bool:
    """Whether one of them with this effect matches."""
    return any(
        item.effect is effect and matches(item.resource, resource) and item.action in (action, "*") for item in held
    )


def granted(held: Collection[Rule | Permission], resource: str, action: str) -> bool:
    """Whether it is allowed and not denied."""
    return covers(held, ALLOW, resource, action) and not covers(held, DENY, resource, action)


def permitted_by(restriction: Restriction | None, resource: str, action: str) -> bool:
    """Whether a restriction permits the action on the resource."""
    return restriction is None or covers(permissions_in(restriction), ALLOW, resource, action)


def example_of(pattern: str, action: str) -> tuple[str, str]:
    """A resource and action that another pattern covers only if it covers all that this one does."""
    return pattern.replace("*", FRESH), action.replace("*", FRESH)


def concrete(*patterns: Iterable[str]) -> list[tuple[str, str]]:
    """Every action on resources at the borders of these patterns: at them, beneath, beside, a letter more or less."""
    stems = {pattern.rstrip("*").rstrip("/") for group in patterns for pattern in group}
    found = {
        bordering for stem in stems for bordering in (stem, f"{stem}{FRESH}", f"{stem}/{FRESH}", f"{stem}/a", stem[:-1])
    }
    return [(resource, action) for resource in sorted(found - {""}) for action in ("view", "edit", FRESH)]


def requests_near(rows: RandomPolicy, restriction: Restriction | None) -> list[tuple[str, str]]:
    """Resources that this policy and this restriction may distinguish."""
    return concrete(
        (rule.resource for rule in rows.rules),
        (item.resource for item in permissions_in(restriction)),
    )


@PROPERTY
@given(random_policies(), restrictions)
def test_restricted_permissions_decide_as_role_and_restriction_together(
    rows: RandomPolicy, restriction: Restriction | None
) -> None:
    """The remaining permissions decide as all of the role's permissions and `permits` do together."""
    policy = rows.policy
    for role in ROLES:
        left = left_of(policy, role, restriction)
        for resource, action in requests_near(rows, restriction):
            expected = granted(rows.held_by(role), resource, action) and permitted_by(restriction, resource, action)

            assert permits(restriction, action, resource) is permitted_by(restriction, resource, action)
            assert granted(left, resource, action) is expected, (role, resource, action)
            assert (bool(policy.decide(role, action, resource)) and permits(restriction, action, resource)) is expected


@PROPERTY
@given(random_policies(), restrictions)
def test_restricted_permissions_are_sorted_and_unique(rows: RandomPolicy, restriction: Restriction | None) -> None:
    """A list of them can be paged; an allow never becomes broader than both of what it came from."""
    for role in ROLES:
        left = left_of(rows.policy, role, restriction)

        assert left == sorted(set(left), key=lambda item: (item.resource, item.action, item.effect))
        for item in left:
            resource, action = example_of(item.resource, item.action)
            assert covers(rows.held_by(role), item.effect, resource, action)
            assert permitted_by(restriction, resource, action)


@PROPERTY
@given(random_policies(), restrictions, st.sampled_from(ROLES), pairs)
def test_scope_covers_what_a_single_allow_covers(
    rows: RandomPolicy, restriction: Restriction | None, role: str, pair: tuple[str, str]
) -> None:
    """A scope covers a pattern where one allow covers all that the pattern matches, and no deny does."""
    wanted, (resource, action) = Permission(*pair, ALLOW), example_of(*pair)
    held = rows.held_by(role)
    allowed = covers(held, ALLOW, resource, action) and permitted_by(restriction, resource, action)

    expected = allowed and not covers(held, DENY, resource, action)
    assert held_by(rows.policy, role, restriction).covers(wanted) is expected


@PROPERTY
@given(restrictions, restrictions)
def test_restriction_is_within_a_bound_that_permits_all_it_permits(
    restriction: Restriction | None, bound: Restriction | None
) -> None:
    """None is no restriction, and never lies within one."""
    if restriction is None or bound is None:
        expected = bound is None
    else:
        expected = all(
            permitted_by(bound, *example_of(item.resource, item.action)) for item in restriction.permissions or ()
        )

    assert is_restricted_within(restriction, bound) is expected


@PROPERTY
@given(random_policies(), restrictions, st.sampled_from(ROLES), st.sampled_from(ROLES))
@example(
    RandomPolicy(
        (
            Rule("low", "a/b", "*", ALLOW, 1),
            Rule("middle", "idle", "*", ALLOW, 2),
            Rule("other", "idle", "*", ALLOW, 3),
            Rule("high", "a*", "*", ALLOW, 4),
            Rule("high", "a/b/a", "view", DENY, 5),
        ),
        (),
    ),
    None,
    "low",
    "high",
)
def test_a_role_within_another_may_nothing_more(
    rows: RandomPolicy, restriction: Restriction | None, role: str, holder: str
) -> None:
    """A grant to a role within another is a grant to the holder, restricted to the restriction."""
    if not is_within(rows.policy, role, held_by(rows.policy, holder, restriction)):
        return
    beyond = [
        (resource, action)
        for resource, action in requests_near(rows, restriction)
        if granted(rows.held_by(role), resource, action)
        and not (granted(rows.held_by(holder), resource, action) and permitted_by(restriction, resource, action))
    ]

    assert beyond == []


@PROPERTY
@given(random_policies(), restrictions, st.sampled_from(ROLES), st.sampled_from(ROLES))
def test_a_role_within_another_is_one_whose_every_rule_is(
    rows: RandomPolicy, restriction: Restriction | None, role: str, holder: str
) -> None:
    """A role is within another if its allows are covered and it has each of the holder's denies that overlap them."""
    own, held = rows.held_by(role), rows.held_by(holder)
    allows = [rule for rule in own if rule.effect is ALLOW]
    covered = all(
        covers(held, ALLOW, *example_of(rule.resource, rule.action))
        and permitted_by(restriction, *example_of(rule.resource, rule.action))
        for rule in allows
    )
    overlapping = [
        item
        for item in left_of(rows.policy, holder, restriction)
        if item.effect is DENY and any(have_overlap(item, rule) for rule in allows)
    ]

    expected = covered and all(covers(own, DENY, *example_of(item.resource, item.action)) for item in overlapping)
    assert is_within(rows.policy, role, held_by(rows.policy, holder, restriction)) is expected


def have_overlap(one: Permission | Rule, other: Permission | Rule) -> bool:
    """Whether something is covered by both."""
    resources = any(
        matches(wide.resource, narrow.resource.replace("*", FRESH)) for wide, narrow in ((one, other), (other, one))
    )
    return resources and (one.action == other.action or "*" in (one.action, other.action))


@PROPERTY
@given(random_policies(), st.sampled_from(ROLES))
def test_every_role_lies_within_itself(rows: RandomPolicy, role: str) -> None:
    """Every role lies within itself, without a restriction or with one that permits everything."""
    everything = Restriction((Permission("*", "*", ALLOW),))

    assert is_within(rows.policy, role, held_by(rows.policy, role, None))
    assert is_within(rows.policy, role, held_by(rows.policy, role, everything))


def test_an_unknown_role_lies_within_nothing() -> None:
    """An unknown role lies within none, and no known one lies within it."""
    policy = Policy([Rule("low", "a", "view", ALLOW, 1)], [], "one")

    assert not is_within(policy, "nobody", held_by(policy, "low", None))
    assert not is_within(policy, "low", held_by(policy, "nobody", None))
    assert not is_within(policy, "nobody", held_by(policy, "nobody", None))
    assert not held_by(policy, "nobody", None).covers(Permission("a", "view", ALLOW))


def test_a_deny_of_the_holder_must_stand_in_the_role() -> None:
    """A role without it could undo it; one that repeats it, or more, lies within."""
    rules = [
        Rule("holder", "secrets", "*", ALLOW, 1),
        Rule("holder", "secrets/prod", "view", DENY, 2),
        Rule("without", "secrets", "view", ALLOW, 3),
        Rule("with", "secrets", "view", ALLOW, 4),
        Rule("with", "secrets/prod", "view", DENY, 5),
        Rule("wider", "secrets", "view", ALLOW, 6),
        Rule("wider", "secrets/p*", "*", DENY, 7),
        Rule("narrower", "secrets", "view", ALLOW, 8),
        Rule("narrower", "secrets/prod/db", "view", DENY, 9),
        Rule("beside", "secrets/test", "view", ALLOW, 10),
        Rule("edits", "secrets", "edit", ALLOW, 11),
    ]
    policy = Policy(rules, [], "denies")
    found = {role for role in policy.roles if is_within(policy, role, held_by(policy, "holder", None))}

    assert found == {"holder", "with", "wider", "beside", "edits"}


@pytest.mark.parametrize(
    ("folder", "chain"),
    [
        (SHIPPED, FIVE),
        (SHIPPED / "variants/owner-managed", FIVE),
        (SHIPPED / "variants/viewer-editor-admin", ("VIEWER", "EDITOR", "ADMIN")),
    ],
    ids=["default", "owner-managed", "viewer-editor-admin"],
)
def test_the_shipped_roles_are_a_chain(folder: os.PathLike[str], chain: tuple[str, ...]) -> None:
    """Each shipped role lies within itself and those above, restricted to its own or not; none within one check."""
    policy = build(SHIPPED / folder, 0.0).policy
    assert policy is not None
    check = Restriction((Permission("authorization", "check", ALLOW),))

    assert set(policy.roles) == set(chain)
    for i, role in enumerate(chain):
        permissions = tuple(policy.permissions_of(role))
        own = Restriction(permissions)
        for j, holder in enumerate(chain):
            assert is_within(policy, role, held_by(policy, holder, None)) is (i <= j), (role, holder)
            assert is_within(policy, role, held_by(policy, holder, own)) is (i <= j), (role, holder)
            assert not is_within(policy, role, held_by(policy, holder, check))
            assert len(permissions) == 1 or not is_within(
                policy, role, held_by(policy, holder, Restriction(permissions[1:]))
            )
