"""Role assignments and teams are in force when that is answered, and end in time; cached answers cost no query."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import event

from rolecall import Client
from rolecall.client.assignments import NewAssignment
from rolecall.domain import PlanKind
from rolecall.errors import PermissionMissing
from rolecall.server import build_server
from rolecall.server.build import Server
from support.credentials import id_of, put_credential
from support.engines import engine_of
from support.environment import CI
from support.server_calls import SiteCalls
from support.sites import MakeSite, Site, add_member

ROUNDS = 60 if CI else 8
AFTERWARDS = 3
SCOPE = "projects/billing"
# Seconds for which a short assignment lasts.
SHORT = 1.5


@pytest.fixture
def two_servers(make_site: MakeSite, database_url: str) -> Iterator[tuple[Site, Server]]:
    """A site, and another server on its database."""
    site = make_site(database_url)
    other = build_server(site.settings)
    other.start()
    yield site, other
    other.stop(0)


@dataclass(frozen=True)
class Contractor:
    """A VIEWER who is a CONTRIBUTOR in the whole organization, by an assignment of their own or of a team."""

    user_id: str
    token: str
    team: str
    assignment: str

    @property
    def subject(self) -> str:
        """The subject by which others ask about this person."""
        return f"user:{self.user_id}"


def add_contractor(site: Site, owner: Client, number: int, *, by_team: bool) -> Contractor:
    """Add such a person, with a token."""
    user_id = add_member(site.storage, "acme", f"p{number}@acme.io", "VIEWER").user_id
    team = f"team-{number}"
    owner.teams.create(team)
    owner.teams.add_members(team, [f"user:{user_id}"])
    principal = f"team:{team}" if by_team else f"user:{user_id}"
    [made] = owner.assignments.create([NewAssignment(principal, "CONTRIBUTOR")]).assignments
    return Contractor(user_id, put_credential(site, user_id), team, made.id)


Change = Callable[[Client, Contractor], int]


def end_own(owner: Client, who: Contractor) -> int:
    """Delete the person's assignment; return the revision."""
    return owner.assignments.delete(who.assignment).revision


def leave_team(owner: Client, who: Contractor) -> int:
    """Remove the person from the team."""
    return owner.teams.remove_members(who.team, [who.subject]).revision


def delete_team(owner: Client, who: Contractor) -> int:
    """Delete the team."""
    return owner.teams.delete(who.team).revision


def bar(owner: Client, who: Contractor) -> int:
    """Assign the person the role that denies what the other allows."""
    return owner.assignments.create([NewAssignment(who.subject, "BARRED")]).revision


def bring_forward(owner: Client, who: Contractor) -> int:
    """Let the assignment end in a moment, and wait for that."""
    changed = owner.assignments.update(who.assignment, expires=timedelta(milliseconds=300))
    wait_for(changed.assignment.expire_time.ToNanoseconds())
    return changed.revision


def wait_for(end: int) -> None:
    """Wait until a time, in nanoseconds since 1970, is past."""
    while time.time_ns() <= end:
        time.sleep(0.002)


CHANGES = [
    pytest.param(end_own, False, id="end own"),
    pytest.param(end_own, True, id="end the team's"),
    pytest.param(leave_team, True, id="leave the team"),
    pytest.param(delete_team, True, id="delete the team"),
    pytest.param(bar, True, id="deny"),
    pytest.param(bring_forward, False, id="bring forward"),
]


def asks(owner: Client, holder: Client, who: Contractor) -> list[Callable[[], bool]]:
    """Calls that succeed only with what is assigned: about the person, one and many, and by the person."""
    question = (who.subject, "update", "parameters")
    token = f"token:{id_of(who.token)}"

    def caller_may() -> bool:
        try:
            holder.check("role:OWNER", "view", "secrets")
        except PermissionMissing:
            return False
        return True

    return [
        lambda: bool(owner.check(*question)),
        lambda: bool(owner.batch_check([question, ("ann@acme.io", "view", "secrets")])[0]),
        lambda: bool(owner.check(token, "update", "parameters", scope=SCOPE)),
        lambda: bool(owner.check_token(who.token, "update", "parameters")),
        caller_may,
    ]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("change", "by_team"), CHANGES)
def test_what_is_ended_is_without_effect_when_that_is_answered(
    make_site: MakeSite, database_url: str, policy_folder: Path, change: Change, by_team: bool
) -> None:
    """Calls run all the time during the change: each that begins after its answer finds nothing assigned."""
    site = make_site(database_url, folder=with_barring(policy_folder))
    late: list[bool] = []
    before = 0
    with Client(site.address, site.tokens["OWNER"]) as owner:
        for number in range(ROUNDS):
            who = add_contractor(site, owner, number, by_team=by_team)
            with Client(site.address, who.token) as holder:
                observed = observe(asks(owner, holder, who), partial(change, owner, who), number)
            late += observed[True]
            before += sum(observed[False])

    assert len(late) >= ROUNDS * AFTERWARDS * 5
    assert not any(late)
    assert before >= ROUNDS


def with_barring(folder: Path) -> Path:
    """Add a role to a policy's folder that denies what contractors do."""
    file = folder / "policy.csv"
    rows = "p, BARRED, parameters, update, deny\np, BARRED, authorization, check, deny\n"
    file.write_text(file.read_text(encoding="utf-8") + rows, encoding="utf-8")
    return folder


def observe(calls: list[Callable[[], bool]], change: Callable[[], object], number: int) -> dict[bool, list[bool]]:
    """Make all calls in turn, in two threads, during a change; return the answers, by whether they began after it."""
    answers: list[tuple[float, bool]] = []
    start, done = Barrier(3), threading.Event()

    def work() -> None:
        start.wait()
        turn = 0
        rest = AFTERWARDS * len(calls)
        while rest:
            began = time.monotonic()
            answers.append((began, calls[turn % len(calls)]()))
            turn += 1
            rest -= done.is_set()
            # Leaves the server, which is in this process, room to work.
            time.sleep(0.001)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    start.wait()
    # From before the first answer is cached to after that, in turn.
    time.sleep(number % 5 * 0.01)
    change()
    changed = time.monotonic()
    done.set()
    for thread in threads:
        thread.join()
    found: dict[bool, list[bool]] = {False: [], True: []}
    for began, answer in answers:
        found[began > changed].append(answer)
    return found


@pytest.mark.parametrize(("change", "by_team"), CHANGES)
def test_the_other_server_follows_what_is_ended(
    make_site: MakeSite, database_url: str, policy_folder: Path, change: Change, by_team: bool
) -> None:
    """A second server answers at once by the revision of the change, and without it soon; for its callers too."""
    site = make_site(database_url, folder=with_barring(policy_folder))
    other = build_server(site.settings)
    other.start()
    late = []
    try:
        with (
            Client(site.address, site.tokens["OWNER"]) as owner,
            Client(other.address, site.tokens["OWNER"]) as elsewhere,
        ):
            for number in range(ROUNDS):
                who = add_contractor(site, owner, number, by_team=by_team)
                with Client(other.address, who.token) as holder:
                    calls = asks(elsewhere, holder, who)
                    began = time.monotonic()
                    while not all(call() for call in calls):
                        assert time.monotonic() < began + 5
                    revision = change(owner, who)
                    began = time.monotonic()
                    question = (who.subject, "update", "parameters")
                    assert not elsewhere.check(*question, at_least_revision=revision)
                    assert not elsewhere.batch_check([question], at_least_revision=revision)[0]
                    while any(call() for call in calls):
                        assert time.monotonic() < began + 5
                    late.append(time.monotonic() - began)
    finally:
        other.stop(0)

    # The bar of the change feed is 0.1 s where nothing else runs.
    assert sorted(late)[len(late) // 2] < 0.7


def test_what_is_assigned_is_in_force_when_that_is_answered(two_servers: tuple[Site, Server]) -> None:
    """A cached absence of roles ends with the answer; in the other server at once by its revision, for all subjects."""
    site, other = two_servers
    with (
        Client(site.address, site.tokens["OWNER"]) as owner,
        Client(other.address, site.tokens["OWNER"]) as elsewhere,
    ):
        for number in range(ROUNDS):
            user_id = add_member(site.storage, "acme", f"p{number}@acme.io", "VIEWER").user_id
            token = put_credential(site, user_id)
            forms = [f"user:{user_id}", f"p{number}@acme.io", f"user:idp:{user_id}", f"token:{id_of(token)}"]
            team = owner.teams.create(f"team-{number}").team.id
            owner.assignments.create([NewAssignment(f"team:{team}", "CONTRIBUTOR", SCOPE)])
            for client in (owner, elsewhere):
                assert not any(client.check(form, "update", "parameters", scope=SCOPE) for form in forms)
            if number % 2:
                [made] = owner.assignments.create([NewAssignment(forms[0], "ADMIN", SCOPE)]).assignments
                revision = owner.assignments.update(made.id, note="longer").revision
            else:
                revision = owner.teams.add_members(team, forms[:1]).revision
            for form in forms:
                assert owner.check(form, "update", "parameters", scope=SCOPE), form
                assert elsewhere.check(form, "update", "parameters", scope=SCOPE, at_least_revision=revision), form
                assert not owner.check(form, "update", "parameters"), form


@pytest.mark.timeout(300)
def test_an_assignment_that_ends_by_time_ends_everywhere_without_a_change(two_servers: tuple[Site, Server]) -> None:
    """Every call that begins after the end is answered without the role: cached, in both servers, of all kinds."""
    site, other = two_servers
    for by_team in (False, True):
        with Client(site.address, site.tokens["OWNER"]) as owner:
            _let_one_end(site, owner, [site.address, other.address], by_team=by_team)


def _let_one_end(site: Site, owner: Client, addresses: list[str], *, by_team: bool) -> None:
    """Assign a role for a short time, ask all the time, and compare the answers with the end."""
    user_id = add_member(site.storage, "acme", f"p{by_team}@acme.io", "VIEWER").user_id
    token, team = put_credential(site, user_id), f"short-{by_team}".lower()
    owner.teams.create(team)
    owner.teams.add_members(team, [f"user:{user_id}"])
    principal = f"team:{team}" if by_team else f"user:{user_id}"
    life = timedelta(seconds=SHORT)
    wanted = [NewAssignment(principal, role, scope, life) for role, scope in (("CONTRIBUTOR", ""), ("ADMIN", SCOPE))]
    created = owner.assignments.create(wanted)
    ends = [made.expire_time.ToNanoseconds() for made in created.assignments]
    who = Contractor(user_id, token, team, created.assignments[0].id)
    answers: list[tuple[int, int, bool]] = []
    last = max(ends) + 300_000_000
    clients = [(Client(address, site.tokens["OWNER"]), Client(address, token)) for address in addresses]
    calls = [call for asker, holder in clients for call in [*asks(asker, holder, who), *_lists(asker, who)]]
    while time.time_ns() < last:
        for call in calls:
            began = time.time_ns()
            answer = call()
            answers.append((began, time.time_ns(), answer))
    for pair in clients:
        for client in pair:
            client.close()

    early = [answer for _, done, answer in answers if done < min(ends)]
    late = [answer for began, _, answer in answers if began > max(ends)]
    assert early
    assert all(early)
    assert len(late) >= len(calls)
    assert not any(late)
    assert owner.check("ann@acme.io", "view", "members").revision == created.revision


def _lists(asker: Client, who: Contractor) -> list[Callable[[], bool]]:
    """Lists and plans that name something only by what is assigned."""
    subject = who.subject

    def permitted() -> bool:
        held = asker.permissions(subject, scope=SCOPE)
        return ("member-tokens", "delete") in [(each.resource, each.action) for each in held]

    return [
        permitted,
        lambda: asker.plan_resources(subject, "update", "parameters").kind is PlanKind.ALWAYS,
        lambda: who.user_id in [member.user_id for member in asker.subjects("delete", "member-tokens", scope=SCOPE)],
        lambda: SCOPE in list(asker.resources(subject, "update", "projects")),
        lambda: bool(asker.check(subject, "delete", "member-tokens", scope=f"{SCOPE}/db", explain=True)),
    ]


def test_a_cached_check_of_a_member_with_assignments_costs_no_query(site: Site) -> None:
    """Checks and batches, of and by a member with ten assignments and two teams, are answered without the database."""
    user_id = add_member(site.storage, "acme", "kim@acme.io", "VIEWER").user_id
    token = put_credential(site, user_id)
    sent: list[str] = []

    def note(*arguments: Any) -> None:
        if threading.current_thread().name != "change-feed":
            sent.append(arguments[2])

    with Client(site.address, site.tokens["OWNER"]) as owner, Client(site.address, token) as holder:
        wanted = [NewAssignment(f"user:{user_id}", "CONTRIBUTOR", f"projects/{number}") for number in range(9)]
        owner.assignments.create([*wanted, NewAssignment(f"user:{user_id}", "CONTRIBUTOR", "", timedelta(days=1))])
        for team in ("red", "blue"):
            owner.teams.create(team)
            owner.teams.add_members(team, [f"user:{user_id}"])
            owner.assignments.create([NewAssignment(f"team:{team}", "ADMIN", f"projects/{team}")])
        forms = [f"user:{user_id}", "kim@acme.io", f"user:idp:{user_id}", f"token:{id_of(token)}"]
        questions = [
            (form, action, "secrets", scope)
            for form in forms
            for action in ("view", "delete")
            for scope in ("", "projects/3", "projects/red/x", "nowhere")
        ]

        def ask() -> list[bool]:
            answers = [bool(owner.check(*question[:3], scope=question[3])) for question in questions]
            answers += [bool(holder.check(*question[:3], scope=question[3])) for question in questions]
            batches = [owner.batch_check(questions), holder.batch_check(questions)]
            return [*answers, *(bool(each) for batch in batches for each in batch)]

        first = ask()
        # Uses of credentials are written beside the calls; let those of the first round be written.
        site.core.authenticator.last_used.flush()
        event.listen(engine_of(site.server.storage), "before_cursor_execute", note)
        again = ask()
        event.remove(engine_of(site.server.storage), "before_cursor_execute", note)

    assert again == first
    assert any(first)
    assert sent == []


def test_revision_of_a_change_of_a_team_is_reached_by_the_cache(site: Site) -> None:
    """Changes of teams and assignments raise the revision that cached answers carry, by one each."""
    calls = SiteCalls(site)
    with Client(calls.site.address, site.tokens["OWNER"]) as owner:
        revisions = [owner.teams.create("red").revision]
        revisions.append(owner.teams.update("red", "Red").revision)
        revisions.append(owner.teams.add_members("red", ["viewer@acme.io"]).revision)
        revisions.append(owner.assignments.create([("team:red", "CONTRIBUTOR")]).revision)
        revisions.append(owner.teams.remove_members("red", ["viewer@acme.io"]).revision)
        revisions.append(owner.teams.delete("red").revision)

        assert revisions == list(range(revisions[0], revisions[0] + 6))
        assert owner.check("viewer@acme.io", "view", "secrets").revision == revisions[-1]
