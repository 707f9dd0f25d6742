"""How far a role reaches when a credential cuts it down, held against trying everything out."""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from policy_folders import SHIPPED

from rolecall.domain import Effect, Permission, Restriction
from rolecall.policy import Policy, Reach, Rule, build, is_cut_down, is_within, narrowed, permits
from rolecall.policy.source import Inheritance

ALLOW, DENY = Effect.ALLOW, Effect.DENY
FIVE = ("VIEWERNOSECRETS", "VIEWER", "CONTRIBUTOR", "ADMIN", "OWNER")
ROLES = ("low", "middle", "other", "high")
# Occurs in no pattern: what only a wildcard covers.
FRESH = "zz"

PROPERTY = settings(
    max_examples=1000 if os.environ.get("CI") == "true" else 80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

_paths = st.lists(st.sampled_from(["a", "ab", "b", "a-b"]), min_size=1, max_size=3).map("/".join)
_patterns = st.one_of(_paths, _paths.map(lambda path: f"{path}*"), _paths.map(lambda path: f"{path}/*"), st.just("*"))
_actions = st.sampled_from(["view", "edit", "*"])
_pairs = st.tuples(_patterns, _actions)
_restrictions = st.one_of(
    st.none(),
    st.lists(_pairs, min_size=1, max_size=4, unique=True).map(
        lambda pairs: tuple(Permission(resource, action, ALLOW) for resource, action in pairs)
    ),
)


@dataclass(frozen=True)
class Drawn:
    """A small policy, as rows and compiled."""

    rules: tuple[Rule, ...]
    inheritances: tuple[Inheritance, ...]

    @property
    def policy(self) -> Policy:
        """The policy that the rows make."""
        return Policy(self.rules, self.inheritances, "drawn")

    def held_by(self, role: str) -> list[Rule]:
        """The rules of a role, inherited ones too."""
        parents = [inheritance.parent for inheritance in self.inheritances if inheritance.role == role]
        own = [rule for rule in self.rules if rule.role == role]
        return own + [rule for parent in parents for rule in self.held_by(parent)]


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    """A policy in which every role has a rule, and inherits from earlier ones only."""
    keys = st.tuples(st.sampled_from(ROLES), _patterns, _actions)
    effects = st.sampled_from([ALLOW, ALLOW, ALLOW, DENY])
    rows = draw(st.dictionaries(keys, effects, max_size=10))
    missing = {(role, "idle", "idle"): ALLOW for role in ROLES}
    below = [(child, parent) for i, parent in enumerate(ROLES) for child in ROLES[i + 1 :]]
    links = draw(st.lists(st.sampled_from(below), max_size=4, unique=True))
    return Drawn(
        tuple(Rule(*key, effect, line) for line, (key, effect) in enumerate((missing | rows).items())),
        tuple(Inheritance(child, parent, 100 + line) for line, (child, parent) in enumerate(links)),
    )


def matches(pattern: str, resource: str) -> bool:
    """What the model's matcher says of a rule's resource."""
    return resource.startswith(pattern[:-1]) if pattern[-1] == "*" else f"{resource}/".startswith(f"{pattern}/")


def covers(held: Iterable[Rule | Permission], effect: Effect, resource: str, action: str) -> bool:
    """Whether one of them with this effect matches."""
    return any(
        item.effect is effect and matches(item.resource, resource) and item.action in (action, "*") for item in held
    )


def granted(held: Collection[Rule | Permission], resource: str, action: str) -> bool:
    """Whether it is allowed and not denied."""
    return covers(held, ALLOW, resource, action) and not covers(held, DENY, resource, action)


def within(restriction: Restriction, resource: str, action: str) -> bool:
    """Whether a restriction lets it pass."""
    return restriction is None or covers(restriction, ALLOW, resource, action)


def witness(pattern: str, action: str) -> tuple[str, str]:
    """A resource and action that a single pattern covers only if it covers the whole of this one."""
    return pattern.replace("*", FRESH), action.replace("*", FRESH)


def concrete(*patterns: Iterable[str]) -> list[tuple[str, str]]:
    """Every action on resources at the borders of these patterns: at them, beneath, beside, a letter more or less."""
    stems = {pattern.rstrip("*").rstrip("/") for group in patterns for pattern in group}
    found = {near for stem in stems for near in (stem, f"{stem}{FRESH}", f"{stem}/{FRESH}", f"{stem}/a", stem[:-1])}
    return [(resource, action) for resource in sorted(found - {""}) for action in ("view", "edit", FRESH)]


def near(rows: Drawn, restriction: Restriction) -> list[tuple[str, str]]:
    """What may be told apart by this policy and this restriction."""
    return concrete((rule.resource for rule in rows.rules), (item.resource for item in restriction or ()))


@PROPERTY
@given(drawn(), _restrictions)
def test_narrowed_rules_decide_as_the_role_within_the_restriction(rows: Drawn, restriction: Restriction) -> None:
    """Deciding by what is left of the rules is deciding by all of them, and asking `permits`."""
    policy = rows.policy
    for role in ROLES:
        left = narrowed(policy.permissions_of(role), restriction)
        for resource, action in near(rows, restriction):
            expected = granted(rows.held_by(role), resource, action) and within(restriction, resource, action)

            assert permits(restriction, action, resource) is within(restriction, resource, action)
            assert granted(left, resource, action) is expected, (role, resource, action)
            assert (bool(policy.decide(role, action, resource)) and permits(restriction, action, resource)) is expected


@PROPERTY
@given(drawn(), _restrictions)
def test_narrowed_rules_are_in_order_and_each_once(rows: Drawn, restriction: Restriction) -> None:
    """A list of them can be paged; an allow never becomes broader than both of what it came from."""
    for role in ROLES:
        left = narrowed(rows.policy.permissions_of(role), restriction)

        assert left == sorted(set(left), key=lambda item: (item.resource, item.action, item.effect))
        for item in left:
            resource, action = witness(item.resource, item.action)
            assert covers(rows.held_by(role), item.effect, resource, action)
            assert within(restriction, resource, action)


@PROPERTY
@given(drawn(), _restrictions, st.sampled_from(ROLES), _pairs)
def test_reach_is_what_a_single_allow_covers(
    rows: Drawn, restriction: Restriction, role: str, pair: tuple[str, str]
) -> None:
    """A pattern is reached where all that it could ever match is allowed, and it isn't denied whole."""
    wanted, (resource, action) = Permission(*pair, ALLOW), witness(*pair)
    held = rows.held_by(role)
    allowed = covers(held, ALLOW, resource, action) and within(restriction, resource, action)

    expected = allowed and not covers(held, DENY, resource, action)
    assert Reach(rows.policy, role, restriction).covers(wanted) is expected


@PROPERTY
@given(_restrictions, _restrictions)
def test_a_restriction_is_cut_down_where_all_that_passes_it_passes_the_bound(
    restriction: Restriction, bound: Restriction
) -> None:
    """None is no bound, and never lies within one."""
    if restriction is None or bound is None:
        expected = bound is None
    else:
        expected = all(within(bound, *witness(item.resource, item.action)) for item in restriction)

    assert is_cut_down(restriction, bound) is expected


@PROPERTY
@given(drawn(), _restrictions, st.sampled_from(ROLES), st.sampled_from(ROLES))
@example(
    Drawn(
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
def test_a_role_within_another_may_nothing_more(rows: Drawn, restriction: Restriction, role: str, holder: str) -> None:
    """Whatever such a role is granted, the holder is granted, cut down to the restriction."""
    if not is_within(rows.policy, role, holder, restriction):
        return
    beyond = [
        (resource, action)
        for resource, action in near(rows, restriction)
        if granted(rows.held_by(role), resource, action)
        and not (granted(rows.held_by(holder), resource, action) and within(restriction, resource, action))
    ]

    assert beyond == []


@PROPERTY
@given(drawn(), _restrictions, st.sampled_from(ROLES), st.sampled_from(ROLES))
def test_a_role_within_another_is_one_whose_every_rule_is(
    rows: Drawn, restriction: Restriction, role: str, holder: str
) -> None:
    """Every allow is covered, and every deny of the holder that overlaps one stands in the role; no more is needed."""
    own, held = rows.held_by(role), rows.held_by(holder)
    allows = [rule for rule in own if rule.effect is ALLOW]
    covered = all(
        covers(held, ALLOW, *witness(rule.resource, rule.action))
        and within(restriction, *witness(rule.resource, rule.action))
        for rule in allows
    )
    overlapping = [
        item
        for item in narrowed(rows.policy.permissions_of(holder), restriction)
        if item.effect is DENY and any(overlap(item, rule) for rule in allows)
    ]

    expected = covered and all(covers(own, DENY, *witness(item.resource, item.action)) for item in overlapping)
    assert is_within(rows.policy, role, holder, restriction) is expected


def overlap(one: Permission | Rule, other: Permission | Rule) -> bool:
    """Whether something is covered by both."""
    resources = any(
        matches(wide.resource, narrow.resource.replace("*", FRESH)) for wide, narrow in ((one, other), (other, one))
    )
    return resources and (one.action == other.action or "*" in (one.action, other.action))


@PROPERTY
@given(drawn(), st.sampled_from(ROLES))
def test_every_role_lies_within_itself(rows: Drawn, role: str) -> None:
    """Without a restriction, or with one that holds nothing back."""
    everything = (Permission("*", "*", ALLOW),)

    assert is_within(rows.policy, role, role, None)
    assert is_within(rows.policy, role, role, everything)


def test_an_unknown_role_lies_within_nothing() -> None:
    """Nor does any known one lie within it."""
    policy = Policy([Rule("low", "a", "view", ALLOW, 1)], [], "one")

    assert not is_within(policy, "nobody", "low", None)
    assert not is_within(policy, "low", "nobody", None)
    assert not is_within(policy, "nobody", "nobody", None)
    assert not Reach(policy, "nobody", None).covers(Permission("a", "view", ALLOW))


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
    found = {role for role in policy.roles if is_within(policy, role, "holder", None)}

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
    """Each lies within itself and those above, cut down to what it may itself or not; nothing lies within one check."""
    policy = build(SHIPPED / folder, 0.0).policy
    assert policy is not None
    check = (Permission("authorization", "check", ALLOW),)

    assert set(policy.roles) == set(chain)
    for i, role in enumerate(chain):
        own = tuple(policy.permissions_of(role))
        for j, holder in enumerate(chain):
            assert is_within(policy, role, holder, None) is (i <= j), (role, holder)
            assert is_within(policy, role, holder, own) is (i <= j), (role, holder)
            assert not is_within(policy, role, holder, check)
            assert not is_within(policy, role, holder, own[1:]) or len(own) == 1
