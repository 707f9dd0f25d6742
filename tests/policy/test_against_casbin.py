"""Over random policies and requests, the index answers as Casbin does and gives true reasons."""

import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rolecall.domain import Effect, Permission, Reason
from rolecall.policy import Policy, Rule, index, parser, read_and_index
from rolecall.policy.index import Decision
from support.policy_folders import CASES, OWNER_ROW, casbin_over, write_folder

IN_CI = os.environ.get("CI") == "true"
REQUESTS = 100

# Names that differ by a letter, a sign that sorts before the slash, or case: prefixes and neighbours of each other.
SEGMENTS = ["a", "ab", "abc", "b", "a-b", "a.b", "a0", "A", "é"]
ROLES = ["viewer", "Admin", "x-1", "a.b", "zed", "B_2", "owner"]
ACTIONS = ["view", "edit", "vie", "*"]

PROPERTY = settings(
    max_examples=100 if IN_CI else 20,
    deadline=None,
    # Without the phase that explains a failure, which takes a minute here.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

Request = tuple[str, str, str]


@dataclass(frozen=True)
class RandomPolicy:
    """A random policy as rows, and some requests about it as (role, action, resource)."""

    rows: tuple[str, ...]
    requests: tuple[Request, ...]

    @property
    def text(self) -> str:
        """The rows as a policy.csv."""
        return "".join(f"{row}\n" for row in self.rows)


_paths = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=5).map("/".join)
_patterns = st.one_of(
    _paths,
    _paths.map(lambda path: f"{path}*"),
    st.sampled_from(SEGMENTS).map(lambda segment: f"{segment}*"),
    _paths.map(lambda path: f"{path}/*"),
    st.just("*"),
)
_seeds = st.integers(0, 2**32 - 1)
_effects = st.sampled_from(["allow", "allow", "deny"])


@st.composite
def policies(draw: st.DrawFn) -> RandomPolicy:
    """Draw a policy that the parser accepts: no cycle of roles, each rule once, and an owner role."""
    roles = draw(st.lists(st.sampled_from(ROLES), min_size=1, max_size=6, unique=True))
    below = [(child, parent) for i, child in enumerate(roles) for parent in roles[i + 1 :]]
    links = draw(st.lists(st.sampled_from(below), max_size=8, unique=True)) if below else []
    keys = st.tuples(st.sampled_from(roles), _patterns, st.sampled_from(ACTIONS))
    rules = draw(st.dictionaries(keys, _effects, min_size=1, max_size=14))
    rows = [f"g, {child}, {parent}" for child, parent in links]
    rows += [f"p, {role}, {resource}, {action}, {effect}" for (role, resource, action), effect in rules.items()]
    written = {role for role, _, _ in rules} | {child for child, _ in links}
    rows += [f"p, {role}, idle, idle, allow" for role in sorted({parent for _, parent in links} - written)]
    paths = draw(st.lists(_paths, max_size=4))
    near = {probe for _, resource, _ in rules for probe in _around(resource)}
    resources = sorted({*paths, *near, "", "unknown", "owners", "/a", "a//b"})
    actions = ["view", "edit", "vie", "viewx", "View", "unknown", ""]
    everyone = [*roles, "TOP", "nobody", ""]
    # One number rather than a draw for each choice, so that a failure is cut down to its core within seconds.
    chance = random.Random(draw(_seeds))
    keys_of_rules = list(rules)
    requests: list[Request] = []
    for _ in range(REQUESTS):
        role, action, resource = chance.choice(everyone), chance.choice(actions), chance.choice(resources)
        if chance.random() < 0.7:
            # Around one rule rather than anywhere, so that many of the answers are not the default.
            _, pattern, verb = chance.choice(keys_of_rules)
            role = chance.choice(roles)
            action = chance.choice(["view", "edit"]) if verb == "*" else verb
            resource = chance.choice(sorted(_around(pattern)))
        requests.append((role, action, resource))
    return RandomPolicy((OWNER_ROW.strip(), *rows), tuple(requests))


def _around(pattern: str) -> set[str]:
    """Resources at the borders of a pattern: itself, its parent, beneath it, beside it, a letter more or less."""
    bare = pattern.rstrip("*")
    path = bare.rstrip("/")
    return {bare, path, f"{bare}b", f"{path}/a", f"{path}/a/b", f"{path}/", f"{path}-b", bare[:-1], bare.upper()}


@contextmanager
def _folder(random_policy: RandomPolicy) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield write_folder(Path(folder), random_policy.text, CASES)


def _index(folder: Path) -> Policy:
    source, policy = read_and_index(folder)
    assert policy is not None, source.errors
    assert source.errors == []
    return policy


def _build(random_policy: RandomPolicy) -> Policy:
    with _folder(random_policy) as folder:
        return _index(folder)


def _matches(pattern: str, resource: str) -> bool:
    if pattern.endswith("*"):
        return resource.startswith(pattern[:-1])
    return resource == pattern or resource.startswith(f"{pattern}/")


def _distances(random_policy: RandomPolicy, role: str) -> dict[str, int]:
    """The roles that `role` holds, with the number of links to each."""
    links = [row.split(", ")[1:] for row in random_policy.rows if row.startswith("g")]
    found = {role: 0}
    for steps in range(1, len(links) + 1):
        for child, parent in links:
            if found.get(child) == steps - 1:
                found.setdefault(parent, steps)
    return found


def _decide(permissions: list[Permission], action: str, resource: str) -> Effect:
    """The decision by a list of permissions: deny beats allow, and the default is deny."""
    effects = {
        permission.effect
        for permission in permissions
        if permission.action in ("*", action) and _matches(permission.resource, resource)
    }
    return Effect.ALLOW if effects == {Effect.ALLOW} else Effect.DENY


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "apart"])
def test_decisions_equal_those_of_casbin(merged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request is answered as `casbin.Enforcer` answers it, be the rules on any action merged or kept apart."""
    wanted = 20_000 if IN_CI else 2_000
    reasons: Counter[Reason] = Counter()
    kept_apart = 0
    if not merged:
        monkeypatch.setattr(index, "MAX_ANY_ACTION_SHARE", 0)
        monkeypatch.setattr(index, "MIN_ANY_ACTION_ROWS", 0)

    @settings(PROPERTY, max_examples=wanted // REQUESTS + 10)
    @given(policies())
    def compare(random_policy: RandomPolicy) -> None:
        nonlocal kept_apart
        with _folder(random_policy) as folder:
            policy = _index(folder)
            reference = casbin_over(folder)
        kept_apart += not policy._merged
        for role, action, resource in random_policy.requests:
            decision = policy.decide(role, action, resource)
            reasons[decision.reason] += 1
            allowed = decision.decision is Effect.ALLOW
            assert allowed == reference.enforce(role, resource, action), (role, action, resource)

    compare()

    assert reasons.total() >= wanted
    assert (kept_apart > 0) is not merged
    assert min(reasons[Reason.GRANTED], reasons[Reason.FORBIDDEN], reasons[Reason.NOT_GRANTED]) > wanted // 100
    assert min(reasons[r] for r in (Reason.UNKNOWN_ROLE, Reason.UNKNOWN_RESOURCE, Reason.UNKNOWN_ACTION)) > 0


def _assert_rule_is_true(random_policy: RandomPolicy, policy: Policy, decision: Decision) -> None:
    held = _distances(random_policy, decision.role)
    wanted = Effect.DENY if decision.reason is Reason.FORBIDDEN else Effect.ALLOW
    matching = [
        rule
        for rule in policy.rules
        if rule.role in held and rule.action in ("*", decision.action) and _matches(rule.resource, decision.resource)
    ]
    deciding = [rule for rule in matching if rule.effect is wanted]
    rule = decision.rule
    assert rule in deciding
    assert (held[rule.role], -len(rule.resource)) == min((held[r.role], -len(r.resource)) for r in deciding)
    chain = decision.role_chain
    assert (chain[0], chain[-1], len(chain)) == (decision.role, rule.role, held[rule.role] + 1)
    assert all(f"g, {child}, {parent}" in random_policy.rows for child, parent in pairwise(chain))
    if decision.reason is Reason.GRANTED:
        assert deciding == matching


def _without(random_policy: RandomPolicy, rule: Rule) -> Policy:
    """The policy less every rule of the resource, action and effect of `rule`, whatever its role."""
    gone = f", {rule.resource}, {rule.action}, {rule.effect}"
    # An empty line keeps the line numbers of the others.
    rows = ["" if row.endswith(gone) and row.startswith("p, ") else row for row in random_policy.rows]
    with _folder(RandomPolicy(tuple(rows), ())) as folder:
        source = parser.read(folder)
    return Policy(source.rules, source.inheritances, "")


@PROPERTY
@given(policies())
def test_named_rule_really_decides(random_policy: RandomPolicy) -> None:
    """The named rule matches, is held through the named roles, is the nearest; without it something else decides."""
    policy = _build(random_policy)
    without = cache(lambda rule: _without(random_policy, rule))

    for request in random_policy.requests:
        decision = policy.decide(*request)
        rule = decision.rule
        if decision.reason in (Reason.GRANTED, Reason.FORBIDDEN):
            assert rule is not None
            _assert_rule_is_true(random_policy, policy, decision)
            again = without(rule).decide(*request)
            assert again.reason is not decision.reason or again.rule not in (rule, None)
        else:
            assert rule is None
            assert decision.role_chain == ()


@PROPERTY
@given(policies())
def test_lists_of_permissions_and_roles_agree_with_decisions(random_policy: RandomPolicy) -> None:
    """`permissions_of` agrees with the decision on every request, and `roles_that_may` lists just the allowed roles."""
    policy = _build(random_policy)

    for role, action, resource in random_policy.requests:
        decision = policy.decide(role, action, resource)
        assert decision.decision is _decide(policy.permissions_of(role), action, resource), (role, action, resource)
        assert (role in policy.roles_that_may(action, resource)) is (decision.decision is Effect.ALLOW)
        assert set(policy.roles_that_may(action, resource)) <= set(policy.roles)


@PROPERTY
@given(policies())
def test_own_permissions_of_all_held_roles_are_the_roles_permissions(random_policy: RandomPolicy) -> None:
    """`describe_roles` states each role's own rows; those of a role and all it inherits from are its permissions."""
    policy = _build(random_policy)

    own = {role.name: role for role in policy.describe_roles()}

    assert tuple(own) == policy.roles
    assert sum(len(role.permissions) for role in own.values()) == len(policy.rules)
    for name, role in own.items():
        together = {permission for held in _distances(random_policy, name) for permission in own[held].permissions}
        assert set(policy.permissions_of(name)) == together
        assert role.updates_owners is (name in policy.owner_roles)


@PROPERTY
@given(policies(), _seeds)
def test_decisions_do_not_depend_on_the_order_of_rows(random_policy: RandomPolicy, seed: int) -> None:
    """Rows in another order answer every request with the same reason, and hold the same permissions."""
    policy = _build(random_policy)
    rows = list(random_policy.rows)
    random.Random(seed).shuffle(rows)

    shuffled = _build(RandomPolicy(tuple(rows), random_policy.requests))

    assert [shuffled.decide(*r).reason for r in random_policy.requests] == [
        policy.decide(*r).reason for r in random_policy.requests
    ]
    assert {r: shuffled.permissions_of(r) for r in policy.roles} == {r: policy.permissions_of(r) for r in policy.roles}
    assert set(shuffled.roles) == set(policy.roles)


@PROPERTY
@given(policies())
def test_chain_is_the_shortest_way_and_exists_only_to_held_roles(random_policy: RandomPolicy) -> None:
    """Between any two roles the chain has as few links as possible, and is empty where nothing is inherited."""
    policy = _build(random_policy)

    for role in policy.roles:
        held = _distances(random_policy, role)
        assert {other: len(policy.chain(role, other)) - 1 for other in policy.roles if other in held} == held
        assert {policy.chain(role, other) for other in (*policy.roles, "nobody") if other not in held} == {()}
        assert policy.chain("nobody", role) == ()


@PROPERTY
@given(policies())
def test_default_deny_says_what_the_policy_does_not_name(random_policy: RandomPolicy) -> None:
    """An unknown role, resource type or action is reported where no rule matches, and only there."""
    policy = _build(random_policy)
    patterns = [row.split(", ")[2] for row in random_policy.rows if row.startswith("p")]

    for role, action, resource in random_policy.requests:
        reason = policy.decide(role, action, resource).reason
        kind = resource.split("/")[0]
        named = any(
            pattern.split("/")[0] == kind
            or (pattern.endswith("*") and len(pattern) > 1 and _matches(pattern, resource))
            for pattern in patterns
        )
        if role not in policy.roles:
            assert reason is Reason.UNKNOWN_ROLE
        elif reason not in (Reason.GRANTED, Reason.FORBIDDEN):
            known = Reason.NOT_GRANTED if action in policy.actions else Reason.UNKNOWN_ACTION
            assert reason is (known if named else Reason.UNKNOWN_RESOURCE)
