"""Activation by the operator: who is moved, and the audit entries of that."""

from pathlib import Path

from rolecall.audit import AuditLog, read_entries
from rolecall.credentials import server_key
from rolecall.domain import AuditFilter
from rolecall.policy import build
from rolecall.services import operator_policy, organizations
from rolecall.storage import Storage
from rolecall.storage import policies as policy_rows
from support.environment import ROOT
from support.sites import add_member


def test_many_holders_are_recorded_in_entries_of_bounded_size(sqlite_url: str, tmp_path: Path) -> None:
    """Every holder of a moved role is in exactly one entry, of which none has more than a thousand."""
    storage = Storage(sqlite_url)
    storage.create()
    log = AuditLog(server_key.create(tmp_path / "key"))
    built = build(ROOT / "policies", 0.0)
    assert built.policy is not None
    organizations.create(storage, log, built.policy, "acme", "ann@acme.io")
    moved = [add_member(storage, "acme", f"m{number}@acme.io", "RETIRED").user_id for number in range(1001)]

    activated = operator_policy.activate(storage, log, built, {"RETIRED": "VIEWER"}, "operator")

    wanted = AuditFilter(action="MoveRoles")
    entries = storage.read(lambda tx: read_entries(tx, "acme", wanted, 0, 10))
    parts = [entry.details["members"] for entry in entries]
    assert (activated.holders, activated.organizations) == (1001, 1)
    assert [len(part) for part in parts] == [1000, 1]
    assert sorted(user_id for part in parts for user_id in part) == sorted(moved)


def test_a_policy_in_force_is_not_activated_again(sqlite_url: str, tmp_path: Path) -> None:
    """A deployment that repeats the command leaves no second activation, which every audit log would record."""
    storage = Storage(sqlite_url)
    storage.create()
    log = AuditLog(server_key.create(tmp_path / "key"))
    built = build(ROOT / "policies", 0.0)
    assert built.policy is not None
    organizations.create(storage, log, built.policy, "acme", "ann@acme.io", first=built)
    before = storage.read(policy_rows.in_force)

    activated = operator_policy.activate(storage, log, built, {}, "operator")

    assert before is not None
    assert activated.activation == before == storage.read(policy_rows.in_force)
