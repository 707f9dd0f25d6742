"""An explanation names the rule and the chain of roles to it, or what is missing."""

from pathlib import Path

import pytest

from rolecall.domain import Explanation, Reason
from rolecall.policy import POLICY_FILE, Policy, build, explain, load
from support.environment import ROOT
from support.policy_folders import CASES, OWNER_ROW, SHIPPED, write_folder


@pytest.fixture(scope="module")
def default_policy() -> Policy:
    """The default policy."""
    policy = build(SHIPPED, 0.0).policy
    assert policy is not None
    return policy


def _policy(folder: Path, rows: str) -> Policy:
    policy = build(write_folder(folder, OWNER_ROW + rows, CASES), 0.0).policy
    assert policy is not None
    return policy


def test_allow_through_a_chain_names_rule_line_and_roles(tmp_path: Path) -> None:
    """An inherited allow names the row, its line, and the roles on the way to it."""
    policy = _policy(tmp_path, "g, LEAD, DEV\ng, DEV, GUEST\np, GUEST, docs, read, allow\n")

    explanation = explain(policy.decide("LEAD", "read", "docs/handbook"))

    assert explanation == Explanation(
        "LEAD may `read` on `docs/handbook` through LEAD -> DEV -> GUEST: policy.csv:4 allows it.",
        rule="p, GUEST, docs, read, allow",
        file="policy.csv",
        line=4,
        role_chain=("LEAD", "DEV", "GUEST"),
    )


def test_allow_of_the_own_role_has_no_chain(tmp_path: Path) -> None:
    """An allow by the role's own row is explained without a chain of roles."""
    policy = _policy(tmp_path, "p, GUEST, docs, read, allow\n")

    explanation = explain(policy.decide("GUEST", "read", "docs"))

    assert explanation.summary == "GUEST may `read` on `docs`: policy.csv:2 allows it."
    assert explanation.role_chain == ("GUEST",)


def test_deny_rule_is_named_with_the_roles_that_pass(tmp_path: Path) -> None:
    """A deny names the denying row, not the allowing one, and who may instead."""
    policy = _policy(
        tmp_path,
        "g, DEV, GUEST\np, GUEST, docs, read, allow\np, DEV, docs/payroll*, *, deny\n",
    )

    explanation = explain(policy.decide("DEV", "read", "docs/payroll-2026"))

    assert explanation == Explanation(
        "DEV may not `read` on `docs/payroll-2026`: policy.csv:4 denies it, and deny beats allow. "
        "Roles that may: GUEST.",
        rule="p, DEV, docs/payroll*, *, deny",
        file="policy.csv",
        line=4,
        role_chain=("DEV",),
        roles_that_pass=("GUEST",),
    )


def test_nearest_role_and_most_specific_resource_are_named(tmp_path: Path) -> None:
    """Of several matching rows the one of the nearest role is named, and of its rows the most specific."""
    policy = _policy(
        tmp_path,
        "g, DEV, GUEST\np, GUEST, docs/a/b, read, allow\np, DEV, docs, *, allow\np, DEV, docs/a*, read, allow\n",
    )

    explanation = explain(policy.decide("DEV", "read", "docs/a/b"))

    assert explanation.rule == "p, DEV, docs/a*, read, allow"


def test_default_deny_names_the_row_of_another_role(default_policy: Policy) -> None:
    """A default deny names the row that would have allowed it to another role, and the roles that may."""
    row = "p, CONTRIBUTOR, projects, create, allow"
    line = (SHIPPED / POLICY_FILE).read_text(encoding="utf-8").split("\n").index(row) + 1

    explanation = explain(default_policy.decide("VIEWER", "create", "projects/apollo"))

    assert explanation == Explanation(
        "VIEWER may not `create` on `projects/apollo`: no rule allows it. Roles that may: OWNER, ADMIN, CONTRIBUTOR.",
        nearest_miss=row,
        nearest_miss_line=line,
        roles_that_pass=("OWNER", "ADMIN", "CONTRIBUTOR"),
    )


def test_default_deny_falls_back_to_the_roles_own_row(tmp_path: Path) -> None:
    """Where nobody may, the nearest miss is a row of the role itself on the same resource, with another action."""
    policy = _policy(tmp_path, "p, GUEST, docs, read, allow\np, GUEST, files, write, allow\n")

    explanation = explain(policy.decide("GUEST", "write", "docs/a"))

    assert explanation.nearest_miss == "p, GUEST, docs, read, allow"
    assert explanation.nearest_miss_line == 2
    assert explanation.summary == "GUEST may not `write` on `docs/a`: no rule allows it. No role may."


def test_default_deny_without_any_row_near_names_none(tmp_path: Path) -> None:
    """Where no row is near, the explanation names none rather than an unrelated one."""
    policy = _policy(tmp_path, "p, GUEST, docs/a, read, allow\np, GUEST, files, write, allow\n")

    explanation = explain(policy.decide("GUEST", "read", "docs/b"))

    assert (explanation.nearest_miss, explanation.nearest_miss_line) == ("", 0)


def test_deny_rule_is_no_nearest_miss(tmp_path: Path) -> None:
    """A row that denies is never offered as one that would have allowed."""
    policy = _policy(tmp_path, "p, GUEST, docs, read, deny\np, DEV, docs, write, allow\n")

    explanation = explain(policy.decide("DEV", "read", "docs"))

    assert explanation.nearest_miss == "p, DEV, docs, write, allow"


@pytest.mark.parametrize(
    ("role", "action", "resource", "reason", "says", "nearest"),
    [
        (
            "VEIWER",
            "view",
            "secrets",
            Reason.UNKNOWN_ROLE,
            "the policy has no role `VEIWER` (perhaps `VIEWER`)",
            "VIEWER",
        ),
        (
            "viewer",
            "view",
            "secrets",
            Reason.UNKNOWN_ROLE,
            "the policy has no role `viewer` (perhaps `VIEWER`)",
            "VIEWER",
        ),
        (
            "VIEWER",
            "view",
            "secretz/db/password",
            Reason.UNKNOWN_RESOURCE,
            "the policy names no resource type `secretz` (perhaps `secrets`)",
            "secrets",
        ),
        (
            "VIEWER",
            "veiw",
            "secrets/db",
            Reason.UNKNOWN_ACTION,
            "the policy names no action `veiw` (perhaps `view`)",
            "view",
        ),
        ("x", "view", "secrets", Reason.UNKNOWN_ROLE, "the policy has no role `x`.", ""),
        ("VIEWER", "view", "zzz", Reason.UNKNOWN_RESOURCE, "the policy names no resource type `zzz`.", ""),
        ("VIEWER", "polish", "secrets", Reason.UNKNOWN_ACTION, "the policy names no action `polish`.", ""),
    ],
    ids=["role", "case of a role", "resource", "action", "no such role", "no such resource", "no such action"],
)
def test_mistyped_name_is_answered_with_the_nearest(
    default_policy: Policy, role: str, action: str, resource: str, reason: Reason, says: str, nearest: str
) -> None:
    """A default deny for an unknown name says which one, and the policy's name most like it, if any is."""
    decision = default_policy.decide(role, action, resource)

    explanation = explain(decision)

    assert decision.reason is reason
    assert says in explanation.summary
    assert explanation.nearest_miss == nearest
    assert explanation.nearest_miss_line == 0


def test_mistyped_role_gets_the_roles_that_may(default_policy: Policy) -> None:
    """An explanation for an unknown role lists the roles that would pass."""
    explanation = explain(default_policy.decide("OWNR", "manage", "account"))

    assert "(perhaps `OWNER`)" in explanation.summary
    assert explanation.summary.endswith(" Roles that may: OWNER.")
    assert explanation.roles_that_pass == ("OWNER",)


def test_denied_decision_is_false() -> None:
    """`if policy.decide(...)` is false for a denial."""
    policy = load(ROOT / "policies", 0.0)

    assert policy.decide("VIEWER", "view", "secrets")
    assert not policy.decide("VIEWER", "delete", "projects")
