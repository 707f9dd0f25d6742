"""The decisions of the shipped policies are those of the permission matrix, in every cell."""

import csv
from pathlib import Path

import pytest

from rolecall.domain import Effect, Reason
from rolecall.policy import MODEL_FILE, POLICY_FILE, TEST_FILE, Policy, build
from support.environment import PERMISSIONS_FILE
from support.policy_folders import MODEL, SHIPPED

OWNER_MANAGED = SHIPPED / "variants" / "owner-managed"
THREE_ROLES = SHIPPED / "variants" / "viewer-editor-admin"
FOLDERS = [SHIPPED, OWNER_MANAGED, THREE_ROLES]

# From the highest to the lowest, each inheriting all that the next one may do.
ROLES = ("OWNER", "ADMIN", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS")

# (resource, action) -> the roles that may.
Matrix = dict[tuple[str, str], set[str]]

VIEWER_MAY = {("members", "view"), ("policy", "view"), ("validation-results", "view"), ("checkpoints", "view")}
EDITOR_MAY = (
    VIEWER_MAY
    | {(kind, verb) for kind in ("data-assets", "expectations") for verb in ("create", "update", "delete", "view")}
    | {("personal-tokens", "create"), ("authorization", "check")}
)


def _matrix() -> Matrix:
    with PERMISSIONS_FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(row["resource"], row["action"]): {role for role in ROLES if row[role] == "1"} for row in rows}


MATRIX = _matrix()
# Who changes members assigns roles to them, and keeps their teams.
_OWNER_ONLY = {("members", "update"), ("members", "remove")}
OWNER_MANAGED_MATRIX = {
    cell: {"OWNER"} if cell in _OWNER_ONLY or cell[0] in ("assignments", "teams") else roles
    for cell, roles in MATRIX.items()
}


def _policy(folder: Path) -> Policy:
    policy = build(folder, 0.0).policy
    assert policy is not None
    return policy


def _rows(folder: Path) -> list[list[str]]:
    lines = (folder / POLICY_FILE).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.split(",")] for line in lines if line.startswith("p")]


@pytest.fixture(scope="module")
def policy() -> Policy:
    """The default policy."""
    return _policy(SHIPPED)


@pytest.fixture(scope="module")
def owner_managed() -> Policy:
    """The policy in which only owners change and remove members."""
    return _policy(OWNER_MANAGED)


@pytest.fixture(scope="module")
def three_roles() -> Policy:
    """The policy of the three-role product."""
    return _policy(THREE_ROLES)


def test_matrix_has_all_permissions_for_five_roles() -> None:
    """The data that the other tests go through is complete."""
    granted = sum(len(roles) for roles in MATRIX.values())

    assert len(MATRIX) == 47
    assert granted == 120


@pytest.mark.parametrize(("resource", "action"), MATRIX)
def test_default_policy_answers_each_cell(policy: Policy, resource: str, action: str) -> None:
    """The default policy allows a permission to exactly the roles of its row in the matrix."""
    passing = {role for role in ROLES if policy.decide(role, action, resource).decision is Effect.ALLOW}

    assert passing == MATRIX[resource, action]


@pytest.mark.parametrize(("resource", "action"), OWNER_MANAGED_MATRIX)
def test_owner_managed_policy_answers_each_cell(owner_managed: Policy, resource: str, action: str) -> None:
    """The owner-managed policy differs from the matrix only in who changes and removes members: the owner."""
    passing = {role for role in ROLES if owner_managed.decide(role, action, resource).decision is Effect.ALLOW}

    assert passing == OWNER_MANAGED_MATRIX[resource, action]


@pytest.mark.parametrize(("resource", "action"), sorted(EDITOR_MAY | set(MATRIX)))
def test_three_role_policy_answers_each_permission(three_roles: Policy, resource: str, action: str) -> None:
    """VIEWER and EDITOR may exactly what their product says, ADMIN everything."""
    expected = {"ADMIN"}
    if (resource, action) in EDITOR_MAY:
        expected.add("EDITOR")
    if (resource, action) in VIEWER_MAY:
        expected.add("VIEWER")

    passing = set(three_roles.roles_that_may(action, resource))

    assert passing == expected


def test_three_role_admin_may_what_the_policy_never_names(three_roles: Policy) -> None:
    """ADMIN's `*` covers resources and actions that no rule names; EDITOR's rules don't."""
    reasons = [three_roles.decide(role, "polish", "brass/knob").reason for role in ("ADMIN", "EDITOR")]

    assert reasons == [Reason.GRANTED, Reason.UNKNOWN_RESOURCE]


def test_rule_on_any_action_covers_all_actions(three_roles: Policy, policy: Policy) -> None:
    """A rule on every action makes all actions known, so that a token can be restricted to ones that no row names."""
    assert three_roles.mentions("organization-tokens", "create")
    assert three_roles.mentions("anything", "imaginable")
    assert policy.mentions("secrets/billing", "view")
    assert not policy.mentions("secrets", "imaginable")
    assert not policy.mentions("anything", "view")


@pytest.mark.parametrize(
    ("folder", "roles", "founder"),
    [
        (SHIPPED, ROLES, "OWNER"),
        (OWNER_MANAGED, ROLES, "OWNER"),
        (THREE_ROLES, ("ADMIN", "EDITOR", "VIEWER"), "ADMIN"),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else None,
)
def test_one_role_may_update_owners(folder: Path, roles: tuple[str, ...], founder: str) -> None:
    """Each shipped policy has exactly its roles, highest first, and one that may `owners update`."""
    policy = _policy(folder)

    assert policy.roles == roles
    assert policy.owner_roles == (founder,)


@pytest.mark.parametrize("folder", [SHIPPED, OWNER_MANAGED], ids=lambda folder: folder.name)
def test_each_permission_is_granted_once_at_the_lowest_role(folder: Path) -> None:
    """Each permission has one row, for the lowest role that has it."""
    matrix = MATRIX if folder == SHIPPED else OWNER_MANAGED_MATRIX
    lowest = {permission: [[role for role in ROLES if role in roles][-1]] for permission, roles in matrix.items()}

    granted: dict[tuple[str, str], list[str]] = {}
    for _, role, resource, action, _ in _rows(folder):
        granted.setdefault((resource, action), []).append(role)

    assert granted == lowest


def test_three_role_policy_grants_each_permission_once() -> None:
    """Each permission of VIEWER, EDITOR and ADMIN is one row, at the lowest role."""
    rows = sorted((role, resource, action) for _, role, resource, action, _ in _rows(THREE_ROLES))

    assert rows == sorted(
        [("VIEWER", *permission) for permission in VIEWER_MAY]
        + [("EDITOR", *permission) for permission in EDITOR_MAY - VIEWER_MAY]
        + [("ADMIN", "*", "*")]
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_shipped_policy_has_no_finding(folder: Path) -> None:
    """A shipped policy is built without a warning, and agrees with Casbin."""
    result = build(folder, 0.5)

    assert result.findings == ()
    assert result.comparisons > 20


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_shipped_policies_share_one_model(folder: Path) -> None:
    """Every shipped policy runs on the same model, so on the same server."""
    assert (folder / MODEL_FILE).read_text(encoding="utf-8") == MODEL


@pytest.mark.parametrize(
    ("folder", "matrix"), [(SHIPPED, MATRIX), (OWNER_MANAGED, OWNER_MANAGED_MATRIX)], ids=["policies", "owner-managed"]
)
def test_policy_test_file_has_every_cell_of_the_matrix(folder: Path, matrix: Matrix) -> None:
    """policy_test.csv states each of the 235 cells once, as the matrix does."""
    with (folder / TEST_FILE).open(newline="", encoding="utf-8") as file:
        stated = [(r["role"], r["resource"], r["action"], r["expected"]) for r in csv.DictReader(file)]

    assert sorted(stated) == sorted(
        (role, resource, action, "allow" if role in roles else "deny")
        for (resource, action), roles in matrix.items()
        for role in ROLES
    )
