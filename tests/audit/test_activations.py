"""Each activation of a policy leaves one entry in the log of every organization, before what is judged under it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rolecall.audit import ActivationEntries, AuditLog, Event, read_entries, verify
from rolecall.audit import activations as task
from rolecall.client import to_dict
from rolecall.domain import AuditEntry, AuditFilter, Organization, now
from rolecall.storage import Storage, Transaction
from rolecall.storage import audit as audit_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage import policies as policy_rows
from rolecall.storage.policies import StoredPolicy
from support.audit_logs import entries
from support.sites import Site
from support.waiting import wait_until


def activate(storage: Storage, version: str, activator: str = "host-a") -> int:
    """Put a policy of this version in force; return the activation's sequence number."""
    policy = StoredPolicy(version, "model", version, "tests", 1, "")
    return storage.exclusive(lambda tx: policy_rows.activate(tx, policy, activator, now())).sequence


def add_organizations(storage: Storage, log: AuditLog, count: int) -> list[str]:
    """Add organizations, each with an empty audit log."""
    names = [f"org-{number:03}" for number in range(count)]

    def work(tx: Transaction) -> None:
        for name in names:
            organization_rows.add(tx, Organization(name, name, 1, now()))
            log.begin(tx, name)

    storage.write(work)
    return names


def log_of(storage: Storage, organization: str) -> list[AuditEntry]:
    """Return the entries of one organization, in order."""
    return storage.read(lambda tx: read_entries(tx, organization, AuditFilter(), 0, 100))


def versions(found: list[AuditEntry]) -> list[tuple[str, str]]:
    """Return the old and the new version of each activation, by the entries about them."""
    details = [entry.details for entry in found if entry.action == "ActivatePolicy"]
    return [(each["before"]["policy_version"], each["after"]["policy_version"]) for each in details]


def run_to_the_end(entries_of: ActivationEntries) -> None:
    """Run the task until it has nothing left to do."""
    while entries_of.run() is not None:
        pass


def test_each_organization_gets_one_entry_by_several_servers(
    database_url: str, storage: Storage, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers at work at once, beside changes, record each activation once in each organization, in order."""
    monkeypatch.setattr(task, "BATCH", 7)
    activate(storage, "v1")
    names = add_organizations(storage, log, 40)
    activate(storage, "v2")
    last = activate(storage, "v3", "host-b")
    servers = [Storage(database_url) for _ in range(3)]

    def change() -> None:
        for name in names[::4]:
            storage.mutate(name, lambda tx, name=name: log.record(tx, Event(name, "user:1", "Change")))  # type: ignore[misc]

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(run_to_the_end, ActivationEntries(each, log, lambda: last)) for each in servers]
        for future in [*futures, pool.submit(change)]:
            future.result()
    found = {name: log_of(storage, name) for name in names}
    broken = [name for name in names if not storage.read(lambda tx, name=name: verify(tx, log, name)).intact]  # type: ignore[misc]
    for each in servers:
        each.close()

    assert {name: versions(log) for name, log in found.items()} == {
        name: [("v1", "v2"), ("v2", "v3")] for name in names
    }
    assert found["org-001"][-1].actor == "operator"
    assert found["org-001"][-1].object == "policy:v3"
    assert found["org-001"][-1].details["activator"] == "host-b"
    assert found["org-001"][-1].details["activation"] == last
    assert found["org-001"][-1].details["activate_time"].endswith("Z")
    assert sorted(entry.action for entry in found["org-000"]) == ["ActivatePolicy", "ActivatePolicy", "Change"]
    assert broken == []


def test_an_interrupted_task_is_continued(storage: Storage, log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts after another has ended half-way records the rest, and nothing twice."""
    monkeypatch.setattr(task, "BATCH", 4)
    activate(storage, "v1")
    names = add_organizations(storage, log, 10)
    last = activate(storage, "v2")
    ActivationEntries(storage, log, lambda: last).run()
    half = sum(len(log_of(storage, name)) for name in names)

    run_to_the_end(ActivationEntries(storage, log, lambda: last))
    run_to_the_end(ActivationEntries(storage, log, lambda: last))

    assert half == 4
    assert {name: versions(log_of(storage, name)) for name in names} == {name: [("v1", "v2")] for name in names}


def test_a_change_stands_after_the_activation_that_it_was_judged_under(storage: Storage, log: AuditLog) -> None:
    """An organization's next change records the activations first, in its own transaction."""
    activate(storage, "v1")
    add_organizations(storage, log, 1)
    activate(storage, "v2")
    activate(storage, "v1")

    storage.mutate("org-000", lambda tx: log.record(tx, Event("org-000", "user:1", "Change")))
    found = log_of(storage, "org-000")

    assert [entry.action for entry in found] == ["ActivatePolicy", "ActivatePolicy", "Change"]
    assert versions(found) == [("v1", "v2"), ("v2", "v1")]


def test_a_broken_log_keeps_no_other_from_its_entry(storage: Storage, log: AuditLog) -> None:
    """An organization whose log has lost its end is passed over."""
    activate(storage, "v1")
    names = add_organizations(storage, log, 3)
    last = activate(storage, "v2")

    def forge(tx: Transaction) -> None:
        head = audit_rows.head(tx, names[0])
        assert head is not None
        audit_rows.move_head(tx, replace(head, signature=bytes(32)))

    storage.write(forge)
    run_to_the_end(ActivationEntries(storage, log, lambda: last))

    assert [len(log_of(storage, name)) for name in names] == [0, 1, 1]


def test_an_idle_database_is_not_read(storage: Storage, log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once all logs have an activation, the task reads nothing until there is another one."""
    activate(storage, "v1")
    add_organizations(storage, log, 1)
    sequence = activate(storage, "v2")
    entries_of = ActivationEntries(storage, log, lambda: sequence)
    run_to_the_end(entries_of)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "read", None)
        entries_of.run()
    sequence = activate(storage, "v3")
    run_to_the_end(entries_of)

    assert versions(log_of(storage, "org-000")) == [("v1", "v2"), ("v2", "v3")]


def test_an_edit_of_the_folder_is_in_the_log_of_a_quiet_organization(site: Site) -> None:
    """A running server records it within seconds, though nobody changes anything there."""
    before = site.server.live.in_force.activation

    with (site.policy_folder / "policy.csv").open("a") as file:
        file.write("# edited\n")
    wait_until(lambda: site.server.live.in_force.activation.sequence > before.sequence)
    wait_until(lambda: entries(site)[-1].action == "ActivatePolicy")
    after = site.server.live.in_force.activation
    details = to_dict(entries(site)[-1])["details"]

    assert details["before"]["policy_version"] == before.version
    assert details["after"]["policy_version"] == after.version
    assert details["activator"] == after.activator
