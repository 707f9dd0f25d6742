"""Over random policies with conditions, subjects with several roles are answered as Casbin answers them."""

import os
import random
import tempfile
from collections import Counter
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rolecall.domain import Effect, Reason
from rolecall.policy import Conditional, Policy, casbin_check, index, read_and_index
from rolecall.policy.build import build
from support.policy_folders import CASES, OWNER_ROW, casbin_over, write_folder

IN_CI = os.environ.get("CI") == "true"
ROLES = ["viewer", "Admin", "x-1", "zed"]
NAMES = ["office", "mfa", "own"]
RESOURCES = ["a", "a/b", "a/b*", "ab", "a*", "*", "b"]
ASKED = ["a", "a/b", "a/bc", "a/b/c", "ab", "b", "b/x", "c"]
ACTIONS = ["view", "edit", "*"]
CONDITIONS = "".join(f"{name}:\n  expression: context.{name} == true\n" for name in NAMES)

_rules = st.lists(
    st.tuples(
        st.sampled_from(ROLES),
        st.sampled_from(RESOURCES),
        st.sampled_from(ACTIONS),
        st.sampled_from(["allow", "allow", "deny"]),
        st.sampled_from(["", *NAMES]),
    ),
    min_size=1,
    max_size=14,
    unique_by=lambda rule: rule[:3] + rule[4:],
)


@st.composite
def policies(draw: st.DrawFn) -> str:
    """Draw a policy.csv that the parser accepts, for Casbin with the last value of each rule written out."""
    # A rule on everything has no condition, as it makes owners.
    rules = [rule for rule in draw(_rules) if rule[1:3] != ("*", "*") or not rule[4]]
    below = [(child, parent) for i, child in enumerate(ROLES) for parent in ROLES[i + 1 :]]
    links = draw(st.lists(st.sampled_from(below), max_size=4, unique=True))
    rows = [f"{OWNER_ROW.strip()}, ", *(f"g, {child}, {parent}" for child, parent in links)]
    rows += [f"p, {', '.join(rule)}" for rule in rules]
    written = {rule[0] for rule in rules} | {child for child, _ in links}
    rows += [f"p, {role}, idle, idle, allow, " for role in ROLES if role not in written]
    return "".join(f"{row}\n" for row in rows)


def _folder(text: str, folder: str) -> Path:
    return write_folder(Path(folder), text, CASES, conditions=CONDITIONS)


def _expected(
    policy: Policy, roles: tuple[str, ...], action: str, resource: str, holding: Mapping[str, bool | None]
) -> Effect:
    """The decision by the rules alone: a condition that can't be evaluated counts for deny rules only."""
    held = {ancestor for role in roles for ancestor in policy.ancestors(role)}
    counting = {
        rule.effect
        for rule in policy.matching_rules(action, resource)
        if rule.role in held
        and (
            not rule.condition
            or holding[rule.condition]
            or (holding[rule.condition] is None and rule.effect is Effect.DENY)
        )
    }
    return Effect.ALLOW if counting == {Effect.ALLOW} else Effect.DENY


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "apart"])
def test_decisions_over_several_roles_equal_those_of_casbin(merged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each subject with one to three roles gets Casbin's answer, whichever of the conditions hold."""
    wanted = 25_000 if IN_CI else 3_000
    reasons: Counter[Reason] = Counter()
    if not merged:
        monkeypatch.setattr(index, "MAX_ANY_ACTION_SHARE", 0)
        monkeypatch.setattr(index, "MIN_ANY_ACTION_ROWS", 0)

    @settings(
        max_examples=wanted // 100 + 10,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(policies(), st.integers(0, 2**32 - 1))
    def compare(text: str, seed: int) -> None:
        chance = random.Random(seed)
        with tempfile.TemporaryDirectory() as path:
            folder = _folder(text, path)
            parsed, policy = read_and_index(folder)
            assert policy is not None, parsed.errors
            reference = casbin_over(folder)
        reference.add_function("condition", lambda name, holding: holding[name])
        subjects = [tuple(chance.sample(ROLES, count)) for count in (1, 1, 2, 2, 3)]
        for subject, roles in enumerate(subjects):
            for role in roles:
                reference.add_grouping_policy(f"subject-{subject}", role)
        for _ in range(100):
            subject = chance.randrange(len(subjects))
            roles, action = subjects[subject], chance.choice(["view", "edit", "delete"])
            resource = chance.choice(ASKED)
            holding = {name: chance.random() < 0.5 for name in NAMES}
            reason, deciding = policy.decide_for_roles(roles, action, resource, holding.__getitem__)
            allowed = reference.enforce(f"subject-{subject}", resource, action, holding)
            reasons[reason] += 1

            assert (reason is Reason.GRANTED) is allowed, (roles, action, resource, holding)
            if reason in (Reason.GRANTED, Reason.FORBIDDEN, Reason.CONDITION_NOT_MET):
                assert policy.decide(roles[deciding], action, resource, holding.__getitem__).reason is reason

    compare()

    assert reasons.total() >= wanted
    assert min(reasons[r] for r in (Reason.GRANTED, Reason.FORBIDDEN, Reason.CONDITION_NOT_MET)) > wanted // 100


@settings(
    max_examples=300 if IN_CI else 40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(policies(), st.integers(0, 2**32 - 1))
def test_a_condition_that_cannot_be_evaluated_fails_closed(text: str, seed: int) -> None:
    """Whether a condition holds, doesn't or is unknown, the rules decide; a named rule is one that counts."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as path:
        policy = read_and_index(_folder(text, path))[1]
    assert policy is not None
    for _ in range(60):
        roles = tuple(chance.sample(ROLES, chance.randint(1, 3)))
        action, resource = chance.choice(["view", "edit"]), chance.choice(ASKED)
        holding = {name: chance.choice([True, False, None]) for name in NAMES}
        reason, deciding = policy.decide_for_roles(roles, action, resource, holding.__getitem__)
        expected = _expected(policy, roles, action, resource, holding)
        unknown = policy.decide_for_roles(roles, action, resource)[0]

        assert (reason is Reason.GRANTED) is (expected is Effect.ALLOW), (roles, action, resource, holding)
        if unknown is Reason.GRANTED:
            every = ({**dict(zip(NAMES, values, strict=True))} for values in product([True, False], repeat=len(NAMES)))
            for each in every:
                assert _expected(policy, roles, action, resource, each) is Effect.ALLOW
        rule = policy.decide(roles[deciding], action, resource, holding.__getitem__).rule
        if rule is not None:
            assert not rule.condition or holding[rule.condition] is not False
            assert not rule.condition or rule.effect is Effect.DENY or holding[rule.condition]


def test_the_comparison_at_a_load_tries_conditions_that_hold_and_that_do_not(tmp_path: Path) -> None:
    """A condition that the index forgets, or takes for another, is a difference from Casbin."""
    rows = f"{OWNER_ROW}p, A, docs, view, allow, office\np, A, docs, edit, allow\np, A, docs, edit, deny, mfa\n"
    files = build(write_folder(tmp_path, rows, CASES, conditions=CONDITIONS), None)
    parsed, policy = read_and_index(tmp_path)
    assert policy is not None
    for wrong in (Reason.GRANTED, Conditional((), ("mfa",), Reason.CONDITION_NOT_MET)):
        mistaken = _Mistaken(policy, wrong)

        casbin_check.check_against_casbin(parsed, mistaken, None)

        assert "in Casbin" in parsed.findings[-1].message
        parsed.findings.clear()
    assert files.errors == ()
    assert files.comparisons > 0


class _Mistaken(Policy):
    """The policy, but one answer is wrong."""

    def __init__(self, policy: Policy, wrong: Reason | Conditional) -> None:
        vars(self).update(vars(policy))
        self._wrong = wrong

    def _reason(self, role: str, action: str, resource: str) -> Reason | Conditional:
        if (role, action, resource) == ("A", "view", "docs"):
            return self._wrong
        return super()._reason(role, action, resource)
