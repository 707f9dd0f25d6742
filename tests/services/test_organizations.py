"""Organizations: which role the founder gets."""

from pathlib import Path

import pytest

from rolecall.audit import AuditLog
from rolecall.limits import Limits
from rolecall.policy import build
from rolecall.policy.reload import LivePolicy
from rolecall.services import organizations
from rolecall.storage import Storage
from support.policy_folders import CASES, HEADER, OWNER_ROW, write_folder


@pytest.mark.parametrize(
    ("rows", "cases", "role"),
    [
        (f"g, alice, TOP\n{OWNER_ROW}", CASES, "TOP"),
        (f"g, alice, DEPUTY\ng, DEPUTY, TOP\np, DEPUTY, docs, read, deny\n{OWNER_ROW}", CASES, "DEPUTY"),
        (f"g, alice, BASE\np, BASE, docs, read, allow\ng, TOP, BASE\n{OWNER_ROW}", CASES, "TOP"),
        ("g, alice, BOSS\np, BOSS, *, *, allow\n", f"{HEADER}BOSS,owners,update,allow,\n", "BOSS"),
    ],
)
def test_founder_gets_a_role_with_a_rule(
    rows: str, cases: str, role: str, storage: Storage, log: AuditLog, tmp_path: Path
) -> None:
    """A person whom somebody wrote into a `g` row, before all other rows, is no role for the founder."""
    policy = build(write_folder(tmp_path / "policies", rows, cases), 0.0).policy
    assert policy is not None

    created = organizations.create(storage, log, policy, "acme", "ann@acme.io")

    assert created.owner.role == policy.founder_role == role


def test_the_first_policy_comes_into_force_with_the_organization(
    storage: Storage, log: AuditLog, tmp_path: Path
) -> None:
    """A server that starts first with another folder, under which there would be no owner, serves this policy."""
    built = build(write_folder(tmp_path / "policies", OWNER_ROW, CASES), 0.0)
    assert built.policy is not None
    other = write_folder(
        tmp_path / "other",
        "p, BOSS, *, *, allow\ng, BOSS, TOP\np, TOP, docs, read, allow\n",
        f"{HEADER}BOSS,owners,update,allow,\n",
    )

    organizations.create(storage, log, built.policy, "acme", "ann@acme.io", first=built)
    served = LivePolicy(other, storage, Limits(casbin_seconds=0.0)).in_force

    assert served.policy.version == built.version
    assert served.refusal is not None
    assert "no member who may `owners update`" in str(served.refusal.findings)
