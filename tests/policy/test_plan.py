"""Plans of resources, compared with an exhaustive evaluation."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rolecall.domain import NOTHING_ASSIGNED, ORGANIZATION, Effect, Permission, Reason, Restriction
from rolecall.policy import permissions_at, permits, plan_resources
from support.environment import CI
from support.random_policies import ROLES, RandomPolicy, matches, random_policies, restrictions

ALLOW, DENY = Effect.ALLOW, Effect.DENY
# Segments of patterns, beginnings and continuations of them, and one that no pattern names.
_segments = st.sampled_from(["a", "ab", "abc", "b", "a-b", "a-c", "zz"])
_below = st.lists(_segments, min_size=1, max_size=3).map("/".join)


@settings(max_examples=500 if CI else 100, suppress_health_check=[HealthCheck.too_slow])
@given(
    random_policies(), restrictions, st.sampled_from(["a", "ab", "b", "zz"]), st.lists(_below, min_size=1, max_size=20)
)
def test_a_plan_equals_a_check_of_each_resource(
    made: RandomPolicy, restriction: Restriction | None, resource_type: str, paths: list[str]
) -> None:
    """A resource is covered by a plan exactly if a Check allows it; no pattern is superfluous."""
    policy = made.policy
    for role in ROLES:
        permissions = permissions_at(policy, role, NOTHING_ASSIGNED, restriction, ORGANIZATION)
        for action in ("view", "edit", "other"):
            include, exclude, _ = plan_resources(permissions, action, resource_type)
            for path in paths:
                resource = f"{resource_type}/{path}"
                allowed = policy.reason(role, action, resource) is Reason.GRANTED
                allowed = allowed and permits(restriction, action, resource)
                covered = any(matches(each, resource) for each in include)

                assert allowed == (covered and not any(matches(each, resource) for each in exclude))
                # Of nested patterns, only the widest is needed.
                assert sum(matches(each, resource) for each in include) <= 1
                assert sum(matches(each, resource) for each in exclude) <= covered


@pytest.mark.parametrize(
    ("rows", "include", "exclude"),
    [
        ([], (), ()),
        ([("docs", ALLOW)], ("docs/*",), ()),
        ([("*", ALLOW)], ("docs/*",), ()),
        ([("do*", ALLOW)], ("docs/*",), ()),
        ([("docs/a", ALLOW), ("docs/a/b", ALLOW)], ("docs/a",), ()),
        ([("docs/a", ALLOW), ("docs/a*", ALLOW)], ("docs/a*",), ()),
        ([("docs", ALLOW), ("docs/a", DENY), ("docs/a/b", DENY)], ("docs/*",), ("docs/a",)),
        ([("docs/a", ALLOW), ("docs/b", DENY)], ("docs/a",), ()),
        ([("docs/a", ALLOW), ("docs", DENY)], (), ()),
        ([("docs/a", ALLOW), ("*", DENY)], (), ()),
        ([("docsother", ALLOW), ("docsother/*", ALLOW), ("doc", ALLOW)], (), ()),
    ],
)
def test_a_plan_has_the_widest_patterns_of_its_type(
    rows: list[tuple[str, Effect]], include: tuple[str, ...], exclude: tuple[str, ...]
) -> None:
    """Patterns beyond the type become the type's; covered ones and those of other types are left out."""
    permissions = [Permission(resource, "view", effect) for resource, effect in rows]

    assert plan_resources(permissions, "view", "docs") == (include, exclude, ())
    assert plan_resources(permissions, "edit", "docs") == ((), (), ())
