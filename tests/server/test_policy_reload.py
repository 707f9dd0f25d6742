"""Editing the policy under a running server."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from grpc_health.v1.health_pb2 import HealthCheckResponse

from rolecall import Client
from rolecall.audit import AuditLog
from rolecall.credentials import server_key
from rolecall.domain import Effect, Reason, now
from rolecall.errors import PermissionMissing, RolecallError, StorageUnavailable
from rolecall.policy import Build, Finding, Policy, PolicyError, PolicyFiles, build_in_subprocess, reload
from rolecall.policy.reload import InForce, LivePolicy, Refusal
from rolecall.server import build_server
from rolecall.server.build import Server
from rolecall.server.servicers.health import READY
from rolecall.services import organizations
from rolecall.storage import Storage, Transaction
from rolecall.storage import members as member_rows
from rolecall.storage import policies as policy_rows
from rolecall.storage.policies import Activation, ProcessBehind, StoredPolicy
from rolecall.v1.policy_pb2 import GetPolicyResponse
from support.environment import CI
from support.sites import MakeSite, Site, add_member, sqlite_file

GRANT = "p, VIEWER, templates, delete, allow\n"
EXPECTATION = "VIEWER,templates,delete,deny,"


@pytest.fixture
def owner(sqlite_site: Site) -> Client:
    """A client with the owner's token."""
    return sqlite_site.channels.enter_context(Client(sqlite_site.address, sqlite_site.tokens["OWNER"]))


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> float:
    """Wait until `condition` holds; return the seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it never came to be"
        time.sleep(0.02)
    return time.monotonic() - started


def viewer_may(client: Client) -> bool:
    """Whether the edit that the tests make is in force."""
    return bool(client.check("viewer@acme.io", "delete", "templates"))


def grant(folder: Path) -> None:
    """Let viewers delete templates, in policy.csv and policy_test.csv."""
    tests = (folder / "policy_test.csv").read_text()
    (folder / "policy_test.csv").write_text(tests.replace(EXPECTATION, EXPECTATION.replace("deny", "allow")))
    with (folder / "policy.csv").open("a") as file:
        file.write(GRANT)


def refusal(client: Client) -> list[str]:
    """The problem that GetPolicy reports with the folder's present state."""
    return refusal_of(client.policy())


def refusal_of(state: GetPolicyResponse) -> list[str]:
    """The findings in an answer of GetPolicy that keep the folder out."""
    return [f"{f.file}:{f.line}:{f.column} {f.message} {f.fix}" for f in state.refusal.findings]


@contextmanager
def closing_server(server: Server) -> Iterator[None]:
    """Starts a server, and stops it at the end."""
    server.start()
    yield
    server.stop(0)


def test_an_edit_is_in_force_within_a_second(sqlite_site: Site, owner: Client) -> None:
    """The first answer by the new policy comes soon after the save, with its version; later saves too."""
    before = owner.policy().policy

    grant(sqlite_site.policy_folder)
    took = eventually(lambda: viewer_may(owner))

    after = owner.policy().policy
    assert took < (5.0 if CI else 2.0), "an idle machine takes 0.6 s"
    assert after.policy_version != before.policy_version
    assert after.load_time.ToNanoseconds() > before.load_time.ToNanoseconds()
    assert not owner.policy().HasField("refusal")


def test_an_editors_rename_and_replace_is_seen(sqlite_site: Site, owner: Client) -> None:
    """Editors write another file and rename it over the old one."""
    folder = sqlite_site.policy_folder
    aside = folder.parent / "aside"
    shutil.copytree(folder, aside)
    grant(aside)

    for name in ("policy_test.csv", "policy.csv"):
        (aside / name).replace(folder / name)

    eventually(lambda: viewer_may(owner))


def test_a_replaced_folder_is_seen(sqlite_site: Site, owner: Client) -> None:
    """Deployments replace the folder, or a symbolic link to it."""
    folder = sqlite_site.policy_folder
    aside = folder.parent / "aside"
    shutil.copytree(folder, aside)
    grant(aside)

    folder.rename(folder.parent / "old")
    aside.rename(folder)

    eventually(lambda: viewer_may(owner))


def test_a_burst_of_saves_is_one_change(sqlite_site: Site, owner: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files saved one after the other are evaluated together: no state in between is refused."""
    built: list[Path | PolicyFiles] = []

    def counted(source: Path | PolicyFiles, seconds: float, known_key: str) -> Build:
        built.append(source)
        return build_in_subprocess(source, seconds, known_key)

    monkeypatch.setattr(reload, "build_in_subprocess", counted)
    folder = sqlite_site.policy_folder
    text = (folder / "policy.csv").read_text()
    for i in range(20):
        (folder / "policy.csv").write_text(text + f"# {i}\n")
        time.sleep(0.01)

    grant(folder)
    eventually(lambda: viewer_may(owner))

    assert len(built) <= 2
    assert not owner.policy().HasField("refusal")


def test_a_broken_policy_is_refused_and_the_last_good_one_stays(
    sqlite_site: Site, owner: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    """GetPolicy and the log name file and line; a correction is accepted."""
    folder = sqlite_site.policy_folder
    before = owner.policy().policy.policy_version
    good = (folder / "policy.csv").read_text()

    (folder / "policy.csv").write_text(good + "p, VIEWER, templates, delete, DENY\n")
    eventually(lambda: owner.policy().HasField("refusal"))

    line = good.count("\n") + 1
    state = owner.policy()
    assert state.policy.policy_version == before
    assert state.refusal.policy_version not in ("", before)
    assert state.refusal.refuse_time.ToNanoseconds() > state.policy.load_time.ToNanoseconds()
    assert any(problem.startswith(f"policy.csv:{line}:") and "DENY" in problem for problem in refusal(owner))
    assert f"policy.csv:{line}:" in capfd.readouterr().out
    assert not viewer_may(owner)

    (folder / "policy.csv").write_text(good)
    eventually(lambda: not owner.policy().HasField("refusal"))
    assert owner.policy().policy.policy_version == before


@pytest.mark.parametrize("breakage", ["missing folder", "truncated", "empty", "missing test file", "failing test"])
def test_incomplete_policy_never_goes_live(sqlite_site: Site, owner: Client, breakage: str) -> None:
    """Any damage to the folder leaves the last good policy in force."""
    folder = sqlite_site.policy_folder
    text = (folder / "policy.csv").read_text()
    if breakage == "missing folder":
        folder.rename(folder.parent / "gone")
    elif breakage == "truncated":
        (folder / "policy.csv").write_text(text[: len(text) // 2])
    elif breakage == "empty":
        (folder / "policy.csv").write_text("")
    elif breakage == "missing test file":
        (folder / "policy_test.csv").unlink()
    else:
        (folder / "policy.csv").write_text(text + GRANT)

    eventually(lambda: owner.policy().HasField("refusal"))

    assert owner.check("ann@acme.io", "manage", "account")
    assert not viewer_may(owner)
    assert all(finding.fix for finding in owner.policy().refusal.findings)


def test_policy_without_a_role_of_members_is_refused(sqlite_site: Site, owner: Client) -> None:
    """A policy without the role would lock its members out; once nobody holds it, it may go."""
    folder = sqlite_site.policy_folder
    for name in ("policy.csv", "policy_test.csv"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(line.replace("VIEWERNOSECRETS", "GUEST") for line in lines))

    eventually(lambda: owner.policy().HasField("refusal"))

    assert any("`VIEWERNOSECRETS`" in problem for problem in refusal(owner))
    with sqlite_file(sqlite_site.settings.database) as database:
        database.execute("UPDATE members SET role = 'VIEWER' WHERE role = 'VIEWERNOSECRETS'")
    eventually(lambda: not owner.policy().HasField("refusal"))
    assert "GUEST" in {role.name for role in owner.roles()}


def test_policy_without_a_role_of_tokens_is_refused(sqlite_site: Site, owner: Client) -> None:
    """An organization's token keeps its role in the policy as long as it lives."""
    folder = sqlite_site.policy_folder
    made = owner.tokens.create_organization("ci", "VIEWERNOSECRETS")
    with sqlite_file(sqlite_site.settings.database) as database:
        database.execute("UPDATE members SET role = 'VIEWER' WHERE role = 'VIEWERNOSECRETS'")
    for name in ("policy.csv", "policy_test.csv"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(line.replace("VIEWERNOSECRETS", "GUEST") for line in lines))

    eventually(lambda: owner.policy().HasField("refusal"))

    assert any("`VIEWERNOSECRETS`" in problem for problem in refusal(owner))
    owner.tokens.delete(made.token.id)
    eventually(lambda: not owner.policy().HasField("refusal"))
    assert "GUEST" in {role.name for role in owner.roles()}


def test_no_policy_leaves_an_organization_without_an_owner(
    sqlite_site: Site, owner: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where `owners update` would be with a role that nobody holds, the policy is refused."""
    folder = sqlite_site.policy_folder
    text = (folder / "policy.csv").read_text()
    (folder / "policy.csv").write_text(
        text.replace("p, OWNER, owners, update, allow", "g, FOUNDER, OWNER\np, FOUNDER, owners, update, allow")
    )
    tests = (folder / "policy_test.csv").read_text()
    (folder / "policy_test.csv").write_text(tests.replace("OWNER,owners,update,allow", "FOUNDER,owners,update,allow"))

    eventually(lambda: owner.policy().HasField("refusal"))

    assert any("would have no member who may `owners update`" in problem for problem in refusal(owner))
    assert "acme" not in str(refusal(owner)), "who else is served is nobody's business"
    assert "acme" in capfd.readouterr().out
    assert owner.check("ann@acme.io", "update", "owners")


def test_start_checks_the_policy_against_the_members(make_site: MakeSite, database_url: str) -> None:
    """A server whose folder doesn't fit the members starts with the policy in force, and says why."""
    site = make_site(database_url)
    before = site.server.live.in_force
    site.server.live.stop()
    grant(site.policy_folder)
    add_member(site.storage, "acme", "old@acme.io", "RETIRED")

    started = LivePolicy(site.policy_folder, site.storage).in_force

    assert started.policy.version == before.policy.version
    assert started.activation == before.activation
    assert started.refusal is not None
    assert "`RETIRED`" in str(started.refusal.findings)


def test_a_start_with_a_broken_folder_serves_the_policy_in_force(make_site: MakeSite, sqlite_url: str) -> None:
    """Only a database without any policy needs a folder without errors."""
    site = make_site(sqlite_url)
    before = site.server.live.in_force
    site.server.live.stop()
    (site.policy_folder / "policy.csv").write_text("p, OWNER\n")

    started = LivePolicy(site.policy_folder, site.storage).in_force

    assert started.activation == before.activation
    assert started.policy.reason("OWNER", "update", "owners") is Reason.GRANTED
    assert started.refusal is not None


def test_the_first_policy_is_served_whatever_members_have(tmp_path: Path, policy_folder: Path, sqlite_url: str) -> None:
    """A server never fails to start for what a tenant holds; errors of the folder stop it."""
    storage = Storage(sqlite_url)
    storage.create()
    log = AuditLog(server_key.create(tmp_path / "key"))
    loaded = build_in_subprocess(policy_folder, 0.0).policy
    assert loaded is not None
    organizations.create(storage, log, loaded, "acme", "ann@acme.io")
    add_member(storage, "acme", "old@acme.io", "RETIRED")

    assert LivePolicy(policy_folder, storage).in_force.policy.version == loaded.version


def test_a_database_without_a_policy_needs_one(policy_folder: Path, sqlite_url: str) -> None:
    """Where none was ever in force, a folder with errors stops the start."""
    storage = Storage(sqlite_url)
    storage.create()
    (policy_folder / "policy.csv").write_text("p, OWNER\n")

    with pytest.raises(PolicyError, match=r"policy\.csv:1"):
        LivePolicy(policy_folder, storage)


def test_the_second_folder_is_served_by_all_and_told(
    make_site: MakeSite, database_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server with another folder activates it when it starts; the first follows, and says which files differ."""
    site = make_site(database_url)
    other_folder = tmp_path / "other"
    shutil.copytree(site.policy_folder, other_folder)
    grant(other_folder)

    other = build_server(site.settings.model_copy(update={"policy": other_folder}), limits=site.limits)
    with closing_server(other), Client(site.address, site.tokens["OWNER"]) as client:
        took = eventually(lambda: viewer_may(client))
        eventually(lambda: client.policy().HasField("refusal"))
        state = client.policy()
        other_version = other.live.in_force.policy.version

    assert took < (5.0 if CI else 3.0)
    assert state.policy.policy_version == other.live.in_force.policy.version
    assert "policy.csv, policy_test.csv" in refusal_of(state)[0]
    log = capfd.readouterr().out
    assert "policy in force differs from the folder" in log
    # The one that replaces a policy as it starts is loud, too.
    activated = next(line for line in log.splitlines() if "files_changed" in line and other_version in line)
    assert "warning" in activated


def test_a_change_is_authorized_by_the_policy_in_force(make_site: MakeSite, database_url: str) -> None:
    """A server that is behind, as its feed is interrupted, refuses what the policy in force doesn't allow."""
    site = make_site(database_url)
    site.core.feed.stop()
    site.server.live.stop()
    folder = site.policy_folder
    for name, row, replacement in (
        ("policy.csv", "p, OWNER, account, manage, allow\n", ""),
        ("policy_test.csv", "OWNER,account,manage,allow", "OWNER,account,manage,deny"),
    ):
        text = (folder / name).read_text()
        assert row in text
        (folder / name).write_text(text.replace(row, replacement))
    activated = LivePolicy(folder, site.storage).in_force.policy.version
    with Client(site.address, site.tokens["OWNER"]) as client:
        served = client.check("ann@acme.io", "update", "owners").policy_version
        with pytest.raises(PermissionMissing):
            client.organization.update("Acme")
        caught_up = client.check("ann@acme.io", "update", "owners").policy_version

    assert served != activated
    assert caught_up == activated


def test_a_change_is_not_refused_by_an_older_policy(make_site: MakeSite, database_url: str) -> None:
    """A server that is behind catches up before it refuses what the policy in force allows."""
    site = make_site(database_url)
    site.core.feed.stop()
    site.server.live.stop()
    folder = site.policy_folder
    tests = (folder / "policy_test.csv").read_text()
    assert "ADMIN,account,manage,deny" in tests
    (folder / "policy_test.csv").write_text(tests.replace("ADMIN,account,manage,deny", "ADMIN,account,manage,allow"))
    rows = (folder / "policy.csv").read_text()
    (folder / "policy.csv").write_text(
        rows.replace("p, OWNER, account, manage, allow", "p, ADMIN, account, manage, allow")
    )
    LivePolicy(folder, site.storage)

    with Client(site.address, site.tokens["ADMIN"]) as client:
        updated = client.organization.update("Acme")

    assert updated.display_name == "Acme"


def test_policy_is_retried_after_a_database_outage(
    sqlite_site: Site, owner: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit during an outage goes live when the database is back."""
    live = sqlite_site.server.live
    conflicts = live._conflicts
    outage = threading.Event()

    def unreachable(tx: Transaction, policy: Policy) -> object:
        if not outage.is_set():
            raise StorageUnavailable("down")
        return conflicts(tx, policy)

    monkeypatch.setattr(live, "_conflicts", unreachable)
    grant(sqlite_site.policy_folder)
    eventually(lambda: owner.policy().HasField("refusal"))
    assert not viewer_may(owner)

    outage.set()

    eventually(lambda: viewer_may(owner))


def test_policy_is_not_swapped_between_a_change_and_its_commit(make_site: MakeSite, database_url: str) -> None:
    """A new policy waits until changes that the policy in force authorized are committed."""
    site = make_site(database_url)
    old, live = site.members["OWNER"], site.server.live
    under_way, go_on = threading.Event(), threading.Event()

    def demote() -> None:
        def work(tx: Transaction) -> None:
            member_rows.change_role(tx, old, "ADMIN", old.update_time + 1)
            under_way.set()
            assert go_on.wait(30)

        site.storage.mutate("acme", work)

    add_member(site.storage, "acme", "second@acme.io", "OWNER")
    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(demote)
        assert under_way.wait(10)
        before = live.in_force.policy.version
        grant(site.policy_folder)
        time.sleep(1.0)
        waited = live.in_force.policy.version == before
        go_on.set()
        changing.result()

    assert waited
    eventually(lambda: live.in_force.policy.version != before)


def test_wake_reads_the_folder_again(sqlite_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP's handler asks for a look even where nothing seems to have changed."""
    built: list[Path | PolicyFiles] = []

    def counted(source: Path | PolicyFiles, seconds: float, known_key: str) -> Build:
        built.append(source)
        return build_in_subprocess(source, seconds, known_key)

    monkeypatch.setattr(reload, "build_in_subprocess", counted)
    since = sqlite_site.server.live.in_force.activation.time

    sqlite_site.server.live.wake()
    eventually(lambda: len(built) == 1)

    assert sqlite_site.server.live.in_force.activation.time == since, "the same policy has been in force all the time"


def test_a_change_of_mode_alone_is_seen(sqlite_site: Site, owner: Client) -> None:
    """A file that couldn't be read is read when its mode is mended, as nothing else of it changes."""
    file = sqlite_site.policy_folder / "policy.csv"
    before = sqlite_site.server.live._fingerprint()

    file.chmod(0o640)

    assert sqlite_site.server.live._fingerprint() != before


@contextmanager
def four_clients(site: Site) -> Iterator[set[tuple[str, bool]]]:
    """Four clients that check without a pause; yields what they saw, as (version, allowed). Fails where one errs."""
    stop = threading.Event()
    failures: list[object] = []
    seen: set[tuple[str, bool]] = set()

    def ask() -> None:
        with Client(site.address, site.tokens["OWNER"]) as client:
            while not stop.is_set():
                try:
                    edited, same = client.batch_check(
                        [("viewer@acme.io", "delete", "templates"), ("ann@acme.io", "view", "secrets")]
                    )
                except RolecallError as error:
                    failures.append(error)
                    return
                if same.decision is not Effect.ALLOW:
                    failures.append(same)
                seen.add((edited.policy_version, bool(edited)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    yield seen
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_every_answer_under_swaps_is_one_of_the_two_policies(sqlite_site: Site) -> None:
    """Swapped every 200 ms under four clients: none errs, and a version always answers the same."""
    live = sqlite_site.server.live
    first = live.in_force
    grant(sqlite_site.policy_folder)
    result = build_in_subprocess(sqlite_site.policy_folder, 0.0)
    assert result.policy is not None
    states = (replace(first, policy=result.policy), first)
    live.stop()

    with four_clients(sqlite_site) as seen:
        for i in range(100 if CI else 20):
            live._in_force = states[i % 2]
            time.sleep(0.2)

    assert seen == {(first.policy.version, False), (result.version, True)}


def test_every_answer_under_edits_is_one_of_the_two_policies(sqlite_site: Site, owner: Client) -> None:
    """Four clients ask while policies, some of them broken, are saved: no call fails or is decided by a broken one."""
    folder = sqlite_site.policy_folder
    base = (folder / "policy.csv").read_text()
    tests = (folder / "policy_test.csv").read_text()
    versions = ((base + GRANT, tests.replace(EXPECTATION, EXPECTATION.replace("deny", "allow"))), (base, tests))

    with four_clients(sqlite_site) as seen:
        for i in range(10 if CI else 3):
            text, expected = versions[i % 2]
            (folder / "policy.csv").write_text(base + "p, VIEWER\n")
            eventually(lambda: owner.policy().HasField("refusal"))
            (folder / "policy_test.csv").write_text(expected)
            (folder / "policy.csv").write_text(text)
            eventually(lambda: not owner.policy().HasField("refusal"))

    assert len(seen) == 2
    assert {allowed for _, allowed in seen} == {True, False}


def test_get_policy_shows_warnings(sqlite_site: Site, owner: Client) -> None:
    """A policy with warnings is served, and GetPolicy shows them."""
    with (sqlite_site.policy_folder / "policy.csv").open("a") as file:
        file.write("p, ADMIN, secrets, view, allow\n")

    def warned() -> bool:
        state: GetPolicyResponse = owner.policy()
        return len(state.policy.warnings) == 1 and not state.policy.warnings[0].blocking

    eventually(warned)


def test_a_policy_in_force_that_cannot_be_built_is_not_built_for_each_call(
    make_site: MakeSite, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a server can't build what another activated, Checks go on, changes are refused at once, nothing spins."""
    site = make_site(database_url)
    built: list[Path | PolicyFiles] = []

    def counted(source: Path | PolicyFiles, seconds: float, known_key: str) -> Build:
        built.append(source)
        return build_in_subprocess(source, seconds, known_key)

    monkeypatch.setattr(reload, "build_in_subprocess", counted)
    unknown = StoredPolicy("f" * 16, "[model]", "p, ALL, *", "tests", 0, "")
    site.storage.exclusive(lambda tx: policy_rows.activate(tx, unknown, "another version", now()))
    with Client(site.address, site.tokens["OWNER"], timeout=10) as client:
        eventually(lambda: bool(built))
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(StorageUnavailable, match="can't build the policy in force"):
                client.organization.update("Acme")
        checked = client.check("ann@acme.io", "update", "owners")
        took = time.monotonic() - began

    assert checked
    assert len(built) <= 2 + took / reload.RETRY_SECONDS


def test_the_policy_in_force_has_its_activation(sqlite_site: Site, owner: Client) -> None:
    """GetPolicy says since when it is in force, by whom, and which process answers."""
    grant(sqlite_site.policy_folder)
    eventually(lambda: viewer_may(owner))
    state, activation = owner.policy(), sqlite_site.server.live.in_force.activation

    assert state.policy.activator == activation.activator == socket.gethostname()
    assert state.policy.activate_time.ToMicroseconds() == activation.time
    assert state.policy.load_time.ToMicroseconds() >= activation.time
    assert state.process == f"{socket.gethostname()}/{os.getpid()}"
    assert not state.HasField("ahead")


def test_a_process_that_cannot_follow_says_so(
    make_site: MakeSite, database_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GetPolicy and the log name the policy in force that this process doesn't serve, its activation, and why."""
    site = make_site(database_url)
    tries: list[Path | PolicyFiles] = []

    def counted(source: Path | PolicyFiles, seconds: float, known_key: str) -> Build:
        tries.append(source)
        return build_in_subprocess(source, seconds, known_key)

    monkeypatch.setattr(reload, "build_in_subprocess", counted)
    served = site.server.live.in_force.policy.version
    unknown = StoredPolicy("from-a-later-release", "[new_section]", "x, y", "", 0, "")

    activation = site.storage.exclusive(lambda tx: policy_rows.activate(tx, unknown, "other-host", now()))
    with Client(site.address, site.tokens["OWNER"]) as client:
        eventually(lambda: bool(client.policy().behind))
        eventually(lambda: len(tries) > 1, 10)
        state = client.policy()

    assert [each.process for each in state.behind] == [state.process]
    assert state.policy.policy_version == served
    assert state.ahead.policy_version == "from-a-later-release"
    assert state.ahead.activator == "other-host"
    assert state.ahead.activate_time.ToMicroseconds() == activation.time
    assert "can't build the policy in force" in state.ahead.problem
    log = capfd.readouterr().out
    assert log.count("policy in force can't be followed") == 1, "once, though it is tried again and again"
    assert served in log.partition("policy in force can't be followed")[2]


def test_any_process_names_those_that_are_behind(
    make_site: MakeSite, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GetPolicy of one server lists another that can't build the policy in force, until that has caught up."""
    site = make_site(database_url)
    other_folder = tmp_path / "other"
    shutil.copytree(site.policy_folder, other_folder)
    other = build_server(site.settings.model_copy(update={"policy": other_folder}), limits=site.limits)
    monkeypatch.setattr(other.live, "process", "other-host/7")
    served = other.live.in_force.policy.version

    def unbuildable(_activation: Activation, _refusal: Refusal | None) -> InForce:
        raise reload._Unbuildable((Finding("policy.csv", 3, 1, "This row is new.", "Upgrade Rolecall."),))

    with closing_server(other), Client(site.address, site.tokens["OWNER"]) as client:
        before = list(client.policy().behind)
        with monkeypatch.context() as patched:
            patched.setattr(other.live, "_stored", unbuildable)
            grant(site.policy_folder)
            eventually(lambda: bool(client.policy().behind))
            state = client.policy()
            eventually(lambda: client.policy().behind[0].try_time.ToMicroseconds() > at(state))
            health = other._health.status(READY)
        eventually(lambda: not client.policy().behind)
        left = site.storage.read(lambda tx: policy_rows.behind(tx, 0))

    assert before == []
    assert not state.HasField("ahead")
    (behind,) = state.behind
    assert (behind.process, behind.policy_version) == ("other-host/7", served)
    assert "policy.csv:3:1: error: This row is new." in behind.problem
    assert health == HealthCheckResponse.NOT_SERVING
    assert other.live.problem == ""
    assert other.live.in_force.policy.version == site.server.live.in_force.policy.version != served
    assert left == [], "nothing is kept of it"


def at(state: GetPolicyResponse) -> int:
    """When the process that is behind tried last."""
    return state.behind[0].try_time.ToMicroseconds()


def test_a_process_that_ended_is_not_behind(sqlite_site: Site, owner: Client) -> None:
    """A report that isn't renewed is ignored after some seconds, and deleted with the next one."""
    storage, long_ago = sqlite_site.storage, now() - policy_rows.REPORT_MICROSECONDS - 1
    ended = ProcessBehind("ended/1", "abc", "It was too old.", long_ago)
    storage.write(lambda tx: policy_rows.report(tx, ended))

    listed = list(owner.policy().behind)
    present = ProcessBehind("host/2", "abc", "It is too old.", now())
    storage.write(lambda tx: policy_rows.report(tx, present))

    assert listed == []
    assert [each.process for each in owner.policy().behind] == ["host/2"]
    assert storage.read(lambda tx: policy_rows.behind(tx, 0)) == [present]
