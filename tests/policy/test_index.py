"""A table finds the bits of all rules that cover a resource, and a policy keeps its tables small."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolecall.domain import Effect, Reason
from rolecall.policy import Policy, Rule, build, explain
from rolecall.policy.index import Table, build_table, mask_for, share_masks
from support.policy_folders import CASES, OWNER_ROW, write_folder

_SEGMENTS = st.sampled_from(["a", "ab", "abc", "b", "a-b", "é"])
_PATHS = st.lists(_SEGMENTS, min_size=1, max_size=4).map("/".join)
_PATTERNS = st.one_of(_PATHS, st.tuples(_PATHS, st.sampled_from(["*", "/*"])).map("".join), st.just("*"))


def _covers(pattern: str, resource: str) -> bool:
    if pattern.endswith("*"):
        return resource.startswith(pattern[:-1])
    return resource == pattern or resource.startswith(f"{pattern}/")


def _look_up(table: Table, resource: str) -> int:
    return mask_for(table, resource, resource)


@settings(max_examples=100)
@given(st.lists(_PATTERNS, max_size=12), st.lists(_PATHS, min_size=1, max_size=8))
def test_table_gives_the_bits_of_all_that_cover(patterns: list[str], paths: list[str]) -> None:
    """A lookup returns the bits of the patterns that cover the resource and no others, for any patterns."""
    rows = [(pattern, 1 << i) for i, pattern in enumerate(patterns)]
    resources = {f"{path}{more}" for path in (*paths, *patterns) for more in ("", "b", "-", "/", "/a", "/a/b")}

    table = build_table(rows)

    for resource in {resource.replace("*", "") for resource in resources}:
        assert _look_up(table, resource) == sum(bit for pattern, bit in rows if _covers(pattern, resource)), resource


@pytest.mark.parametrize(
    ("resource", "bits"),
    [
        ("docs", 0b1),
        ("docs/b", 0b1),
        ("docs/a", 0b11),
        ("docs/ab", 0b11),
        ("docs/abc", 0b111),
        ("docs/abcd/e", 0b111),
        ("docs/abd", 0b1011),
        ("docs/abd/e", 0b1011),
        ("docs/abd/x1/y", 0b11011),
        ("docsx", 0),
        ("", 0),
    ],
)
def test_longer_prefix_has_the_bits_of_shorter_ones(resource: str, bits: int) -> None:
    """A resource has the bits of all patterns on it, on its parents, and on prefixes that these begin with."""
    patterns = ["docs", "docs/a*", "docs/abc*", "docs/abd", "docs/abd/x*"]

    table = build_table([(pattern, 1 << i) for i, pattern in enumerate(patterns)])

    assert _look_up(table, resource) == bits


def test_table_of_no_rule_covers_nothing() -> None:
    """A policy without a rule on any action has an empty table, which answers all the same."""
    assert {_look_up(build_table([]), resource) for resource in ("", "docs", "docs/a", "/", "a//b")} == {0}


def test_bits_of_one_pattern_add_up() -> None:
    """Rules of several roles on one pattern give one entry with the bits of all."""
    table = build_table([("docs", 1), ("docs", 4), ("logs*", 2), ("logs*", 8)])

    assert (_look_up(table, "docs/x"), _look_up(table, "logs-1")) == (5, 10)


def test_equal_masks_become_one_object() -> None:
    """Over several tables and their prefixes, equal masks are shared, and every look-up gives what it gave."""
    tables = [build_table([("docs", 1 << 90), ("logs/x*", 1 << 90), ("logs", 1 << 91)]) for _ in range(2)]
    resources = ["docs", "docs/a", "logs", "logs/xy", "logs/y", "zzz"]
    before = [[_look_up(table, resource) for resource in resources] for table in tables]

    share_masks(tables)

    after = [[_look_up(table, resource) for resource in resources] for table in tables]
    masks = [mask for answers in after for mask in answers]
    assert after == before
    assert len({id(mask) for mask in masks}) == len(set(masks)) == 4


def test_rules_on_any_action_are_not_copied_into_many_actions() -> None:
    """Where many rules on `*` meet many actions, the index grows with their sum, not with their product."""
    starred = [Rule("A", f"docs/{i}", "*", Effect.ALLOW, i) for i in range(1, 3001)]
    named = [Rule("B", "docs/7", f"act{i}", Effect.DENY, 3001 + i) for i in range(30)]

    policy = Policy([*starred, *named], [], "")

    assert len(starred) * len(named) > 20 * len(policy.rules)
    assert sum(len(table) for table in (policy._any_action, *policy._tables.values())) < 2 * len(policy.rules)
    questions = product("AB", ("act3", "polish"), ("docs/7/x", "docs/0"))
    assert [policy.decide(*question).reason for question in questions] == [
        Reason.GRANTED,
        Reason.NOT_GRANTED,
        Reason.GRANTED,
        Reason.UNKNOWN_ACTION,
        Reason.FORBIDDEN,
        Reason.NOT_GRANTED,
        Reason.UNKNOWN_ACTION,
        Reason.UNKNOWN_ACTION,
    ]


@pytest.mark.parametrize(
    ("resource", "reason"),
    [
        ("secrets", Reason.NOT_GRANTED),
        ("secrets/db", Reason.NOT_GRANTED),
        ("sec", Reason.NOT_GRANTED),
        ("se", Reason.UNKNOWN_RESOURCE),
        ("se/c", Reason.UNKNOWN_RESOURCE),
        ("xsec", Reason.UNKNOWN_RESOURCE),
    ],
)
def test_type_that_only_a_prefix_names_is_known(resource: str, reason: Reason, tmp_path: Path) -> None:
    """A resource type that begins as a pattern does is known, though no rule spells it out."""
    rows = f"{OWNER_ROW}p, A, sec*, view, allow\np, A, docs, edit, allow\n"
    policy = build(write_folder(tmp_path, rows, CASES), 0.0).policy
    assert policy is not None

    decision = policy.decide("A", "edit", resource)

    assert decision.reason is reason
    assert ("no resource type" in explain(decision).summary) is (reason is Reason.UNKNOWN_RESOURCE)
    assert policy.resource_types == {"docs", "owners"}
