"""Members, invitations, roles and credentials of two organizations in any order, against a plain model."""

import sys
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, note
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from sqlalchemy import update

from rolecall.audit import OPERATOR
from rolecall.domain import InvitationState, LinkKind, MemberOrder, Page, now
from rolecall.errors import RolecallError
from rolecall.services import organizations
from rolecall.storage import Transaction
from rolecall.storage import tables as t
from stateful.credential_model import ExpectedEntry, Person
from stateful.people_machine_base import ADDRESSES, PeopleMachineBase, outcome
from stateful.people_model import ModelCredential, ModelOrganization, Rules
from stateful.people_questions import QuestionBatch
from stateful.people_requests import permissions
from stateful.people_rows import clear, compare, requests_of, rows_of
from stateful.people_site import PeopleSite
from support.environment import CI, ROOT

STEPS = 40 if CI else 30
POLICIES = {
    "shipped": ROOT / "policies",
    "owner-managed": ROOT / "policies" / "variants" / "owner-managed",
    "viewer-editor-admin": ROOT / "policies" / "variants" / "viewer-editor-admin",
}
# How many runs each test makes; the tests share the runs on one kind of database and one policy.
SHARDS = (
    [("sqlite", policy, 36) for policy in POLICIES for _ in range(2)]
    + [("postgresql", policy, 16) for policy in POLICIES]
    if CI
    # The policy is not in the database: outside CI, one policy on PostgreSQL is enough.
    else [("sqlite", policy, 5) for policy in POLICIES] + [("postgresql", "shipped", 2)]
)

SECOND = 1_000_000
# Permissions of the credentials that are tried most.
MANAGING = [("members", "invite"), ("members", "update"), ("members", "remove"), ("owners", "update")]
# Relative frequency of each rule.
WEIGHTS = {
    "change_role": 10,
    "remove": 7,
    "leave": 2,
    "invite": 10,
    "invite_again": 5,
    "resend": 6,
    "withdraw": 3,
    "expire_invitation": 2,
    "accept_the_newest": 10,
    "accept_any_secret": 4,
    "request_sign_in": 3,
    "send_mails": 4,
    "sign_in_at_once": 4,
    "sign_in": 4,
    "expire_link": 1,
    "create_personal": 6,
    "create_for_program": 5,
    "delete_token": 4,
    "sign_out": 2,
    "expire_credential": 2,
    "repeat": 4,
    "use_earlier_caller": 3,
    "try_other_organization": 3,
    "compare_lists": 4,
}
SEEDS = st.binary(min_size=8, max_size=8)
# Runs of one Hypothesis test: after ten, Hypothesis mostly varies earlier ones instead of choosing new ones.
BATCH = 9


class PeopleMachine(PeopleMachineBase):
    """State machine of people: events in the two organizations, and the invariants after each."""

    @initialize(seed=SEEDS)
    def begin(self, seed: bytes) -> None:
        """Create the organizations, with a member for each role, and tokens for some."""
        self._turn(seed)
        self.site.storage.write(clear)
        run = uuid.uuid4().hex
        policy = self.site.live.in_force.policy
        for name in (f"a-{run}", f"b-{run}"):
            demo = self.random.random() < 0.8
            made = organizations.create(self.site.storage, self.site.log, policy, name, "ann@acme.io", demo=demo)
            org = ModelOrganization(name)
            for member in (made.owner, *made.others):
                org.people.append(Person(member.user_id, member.email.lower(), member.role, member.etag))
            assert org.people[0].role == self.role_rules.owners[0]
            org.entries.append(ExpectedEntry(OPERATOR, "CreateOrganization", f"organization:{name}", ""))
            self.orgs.append(org)
            self._made_by_operator(org, org.people[0], made.token.id, made.token.text)
            for person in org.people:
                if self.random.random() < 0.7:
                    self._issue(org, person)
            self.changes_made.add(org)
        for _ in range(4):
            self.invite()
            self.create_personal()
            self.create_for_program()
            self.random.choice([self.accept_the_newest, self.sign_in_at_once])()

    @rule(seed=SEEDS)
    def happen(self, seed: bytes) -> None:
        """Run one of the methods in WEIGHTS. They are one rule, because Hypothesis disables many rules in each run."""
        self._turn(seed)
        [what] = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        note(what)
        getattr(self, what)()

    # What members do to members.

    def change_role(self) -> None:
        """Change a member's role."""
        org, by = self._choose_caller(("members", "update"), ("owners", "update"))
        self._attempt(org, by, self._change_role(org, by))

    def remove(self) -> None:
        """Remove a member."""
        org, by = self._choose_caller(("members", "remove"), ("owners", "remove"))
        self._attempt(org, by, self._remove(org, by))

    def leave(self) -> None:
        """Leave the organization."""
        org, by = self._choose_caller(("organization", "leave"))
        self._attempt(org, by, self.requests.leave(org))

    # Invitations.

    def invite(self) -> None:
        """Invite up to three people."""
        org, by = self._choose_caller(("members", "invite"), ("owners", "invite"))
        self._attempt(org, by, self._invite(org, by))

    def invite_again(self) -> None:
        """Invite a removed member, or the address of an invitation that ended."""
        org, by = self._choose_caller(("members", "invite"), ("owners", "invite"))
        gone = {person.key for person in org.people} | {invite.key for invite in org.invites}
        free = [key for key in sorted(gone) if not org.member(key) and not org.pending(key)]
        if free:
            role = self._role(by)
            self._attempt(org, by, self.requests.invite(org, [(self.random.choice(free), role)], checked=False))

    def resend(self) -> None:
        """Resend an invitation."""
        org, by = self._choose_caller(("members", "invite"), ("owners", "invite"))
        self._attempt(org, by, self._on_some_invitation(org, self.requests.resend))

    def withdraw(self) -> None:
        """Delete an invitation."""
        org, by = self._choose_caller(("members", "invite"), ("owners", "invite"))
        self._attempt(org, by, self._on_some_invitation(org, self.requests.withdraw))

    def expire_invitation(self) -> None:
        """Let an invitation expire."""
        org, _ = self._choose_caller()
        pending = [invite for invite in org.invites if invite.shown == "pending"]
        if pending:
            invite, at = self.random.choice(pending), now() - SECOND
            changed = update(t.invitations).where(t.invitations.c.id == invite.id).values(expire_time=at)
            self.site.storage.write(lambda tx: tx.connection.execute(changed))
            invite.late, invite.expire_time = True, at
            self.changes_made.add(org)

    def accept_the_newest(self) -> None:
        """Accept an invitation, or try to, with its newest secret."""
        org, _ = self._choose_caller()
        pending = [invite for invite in org.invites if invite.shown == "pending"]
        chosen = pending if pending and self.random.random() < 0.9 else org.invites
        if chosen:
            self._accept(self.random.choice(chosen).texts[-1])

    def accept_any_secret(self) -> None:
        """Try to accept with a secret that may be old, used, foreign, forged, or of another kind."""
        org, _ = self._choose_caller()
        mailed = [text for org in self.orgs for invite in org.invites for text in invite.texts]
        used = [invite.texts[-1] for invite in org.invites if invite.state == "accepted"]
        links = [link.text for org in self.orgs for link in org.links]
        forged = [self.site.links.secret(LinkKind.INVITATION, invite.id, 99) for invite in org.invites]
        strange = [cred.text for cred in org.creds[:2]] + [text[:-1] + "x" for text in mailed[:2]]
        pools = [pool for pool in (mailed, mailed, used, links, forged, strange) if pool]
        self._accept(self.random.choice(self.random.choice(pools)))

    # Signing in and out, and what people sign in with.

    def request_sign_in(self) -> None:
        """Request a sign-in link."""
        org, _ = self._choose_caller()
        members = [person.key for person in org.present]
        pool = members if self.random.random() < 0.75 else ADDRESSES
        key = self.random.choice(pool)
        self._request_sign_in(org, key)

    def send_mails(self) -> None:
        """Send all mails that are due."""
        self._send_mails()

    def sign_in_at_once(self) -> None:
        """A member asks for a link, gets it, and uses it."""
        org, _ = self._choose_caller()
        person = self.random.choice(org.present)
        link = self._request_sign_in(org, person.key)
        self._send_mails()
        self._sign_in(link.text)

    def sign_in(self) -> None:
        """Try a link that was requested some time ago."""
        org, _ = self._choose_caller()
        fresh = [link.text for link in org.links if link.person and not link.used]
        texts = [link.text for org in self.orgs for link in org.links]
        strange = [invite.texts[-1] for invite in org.invites] + [cred.text for cred in org.creds[:1]]
        chosen = fresh if fresh and self.random.random() < 0.6 else [*texts, *strange]
        self._sign_in(self.random.choice(chosen))

    def expire_link(self) -> None:
        """Let a link expire."""
        org, _ = self._choose_caller()
        fresh = [link for link in org.links if not link.used and not link.late]
        if fresh:
            link = self.random.choice(fresh)
            changed = update(t.sign_ins).where(t.sign_ins.c.id == link.id).values(expire_time=now() - SECOND)
            self.site.storage.write(lambda tx: tx.connection.execute(changed))
            link.late = True
            self.changes_made.add(org)

    def create_personal(self) -> None:
        """Create a personal token."""
        org, by = self._choose_caller(("personal-tokens", "create"))
        self._attempt(org, by, self._create(org, by, None))

    def create_for_program(self) -> None:
        """Create an organization's token."""
        org, by = self._choose_caller(("organization-tokens", "create"))
        self._attempt(org, by, self._create(org, by, self._program_role(by)))

    def delete_token(self) -> None:
        """Delete a token."""
        org, by = self._choose_caller(("member-tokens", "delete"))
        self._attempt(org, by, self._delete(org, by))

    def sign_out(self) -> None:
        """Sign the presented credential out."""
        org, by = self._choose_caller()
        self._attempt(org, by, self.requests.sign_out())

    def expire_credential(self) -> None:
        """Let a credential expire."""
        org, cred = self._choose_caller()
        at = now() - SECOND

        def work(tx: Transaction) -> None:
            tx.connection.execute(update(t.credentials).where(t.credentials.c.id == cred.id).values(expire_time=at))

        self.site.storage.write(work)
        cred.expire_time = at
        self.changes_made.add(org)

    # What nobody should do.

    def repeat(self) -> None:
        """Repeat a request, as it was or with another body: it has one effect."""
        org, by = self._choose_caller()
        candidates = [
            (*entry[2:], cred)
            for entry in self.repeatable
            if entry[0] is org
            for cred in org.live
            if cred.actor == entry[1]
        ]
        if not candidates:
            return
        request, request_id, body, answer, by = self.random.choice(candidates[-12:])
        same = self.random.random() < 0.7
        expected = request.rights(by)
        if expected in ("", "MEMBER_NOT_FOUND", "INVITATION_NOT_FOUND", "TOKEN_NOT_FOUND"):
            # What the first did is in the way of no repeated one.
            expected = "" if same else "REQUEST_ID_REUSED"
        again = self._call(org, by, request, expected, request_id, body if same else b"another")
        assert expected or again == request.kept(answer)

    def use_earlier_caller(self) -> None:
        """Use a caller that was authenticated before its rights changed: its present rights count."""
        self._choose_caller()
        if not self.earlier:
            return
        stale = [entry for entry in self.earlier if not entry[1].live or entry[1].role != entry[2].role]
        org, by, caller = self.random.choice(stale if stale and self.random.random() < 0.8 else self.earlier)
        request = self._any_request(org, by)
        note(f"late: {caller}")
        if not by.live:
            self._call(org, by, request, "*", caller=caller)
            return
        expected = request.rights(by) or request.state(by)
        answer = outcome(lambda: request.work(self._change_request(caller, request.action)))
        if isinstance(answer, RolecallError):
            assert expected or answer.reason in ("PERMISSION_MISSING", "ROLE_BEYOND_CALLER", "INVALID_FIELD"), answer
        else:
            assert not expected, f"{request.action} succeeded"
            self._done(org, by, request, answer)

    def try_other_organization(self) -> None:
        """Name a thing of the other organization: the answer is that of one that doesn't exist."""
        org, by = self._choose_caller(*MANAGING)
        other = self.orgs[1 - self.orgs.index(org)]
        person = self.random.choice(other.people)
        answers = []
        kind = self.random.choice(["person", "remove", "resend", "withdraw", "token"])
        for missing in (False, True):
            made_up = "0" * 22
            match kind:
                case "person" | "remove":
                    name = made_up if missing else person.id
                    request = self.requests.change_role(org, name, self.role_rules.roles[-1], "")
                    request = self.requests.remove(org, name, "") if kind == "remove" else request
                case "resend" | "withdraw":
                    if not other.invites:
                        return
                    name = made_up if missing else self.random.choice(other.invites).id
                    make = self.requests.resend if kind == "resend" else self.requests.withdraw
                    request = make(org, name, "")
                case _:
                    name = made_up if missing else self.random.choice(other.creds).id
                    request = self.requests.delete(org, name, "")
            expected = request.rights(by)
            assert expected
            error = self._call(org, by, request, expected)
            answers.append((type(error), str(error).replace(name, "ID")))
        assert answers[0] == answers[1]

    def compare_lists(self) -> None:
        """List members and invitations, and call WhoAmI."""
        org, by = self._choose_caller(("members", "view"))
        self._list_members(org, by)
        self._list_invitations(org, by)
        identity = self.site.sessions.who_am_i(self._caller(by))
        holder = identity.holder
        assert holder.role == by.role
        assert identity.organization.organization.revision == org.revision
        owners = sum(person.role in self.role_rules.owners for person in org.present)
        assert len(identity.organization.warnings) == (1 if owners == 1 else 0)
        patterns = [(item.resource, item.action) for item in identity.permissions]
        assert self.role_rules.union(patterns) == self.role_rules.held(by)

    # What holds after each of these.

    @invariant()
    def rows_equal_the_model(self) -> None:
        """The database holds what the model says; an organization that nobody acted in is as it was."""
        self.site.storage.read(self._hold_rows)
        self.changes_made.clear()

    @invariant()
    def credentials_equal_the_model(self) -> None:
        """Every credential that there ever was works while it should, with its holder's present role, and no longer."""
        for org in self.orgs:
            for cred in org.creds:
                caller = self.site.authenticator.authenticate(cred.text)
                if not cred.live:
                    assert caller is None, cred
                    continue
                assert caller is not None, cred
                assert (caller.organization, caller.actor, caller.role) == (org.name, cred.actor, cred.role)
                assert caller.credential_id == cred.id
                assert caller.restriction == permissions(cred.restriction)
                if self.random.random() < 0.03:
                    self.earlier.append((org, cred, caller))

    @invariant()
    def decisions_equal_the_model(self) -> None:
        """Check says of every live credential and its holder what the model says: the one may only what the other may.

        So it does of some people, and of credentials that are dead or foreign.
        """
        for org, other in (self.orgs, self.orgs[::-1]):
            asked = QuestionBatch(self.role_rules, org)
            for cred in org.live:
                # To which a yes would be more than its holder may.
                self._ask(asked, cred, self.role_rules.bound(cred.restriction) & ~self.role_rules.of_role[cred.role])
            for cred in self._sample(org.live, 4):
                self._ask(asked, cred, self.role_rules.held(cred))
            dead = [cred for cred in org.creds if not cred.live]
            for cred in [*self._sample(dead, 2), *self._sample(other.creds, 1)]:
                asked.of_credential(cred, self.random.choice(MANAGING))
            for person in [*self._sample(org.people, 1), *self._sample(other.people, 1)]:
                asked.of_person(person, self.random.choice(self.role_rules.universe))
            asked.check(self.site.authorizer)

    def _ask(self, asked: QuestionBatch, cred: ModelCredential, points: int) -> None:
        """Add a question about a credential and one of these points."""
        if among := self.role_rules.among(points):
            asked.of_credential(cred, self.random.choice(among))

    def _hold_rows(self, tx: Transaction) -> None:
        for org in self.orgs:
            rows = rows_of(tx, org)
            assert requests_of(tx, org) == org.requests
            if org in self.changes_made:
                compare(tx, self.site.log, self.role_rules, org)
            else:
                assert rows == self.before[org]
            self.before[org] = rows

    def teardown(self) -> None:
        """Try every mailed secret once more, and verify every log."""
        if sys.exc_info()[0] is not None or not self.orgs:
            return
        self._send_mails()
        for org in self.orgs:
            for invite in org.invites:
                for text in invite.texts[:-1] if invite.shown == "pending" else invite.texts:
                    self._accept(text)
            for link in org.links:
                if link.used or link.late or not link.person or not link.person.present:
                    self._sign_in(link.text)
        self.rows_equal_the_model()
        self.finished_runs.append(self.orgs[0].name)

    # Comparison with the model.

    def _list_members(self, org: ModelOrganization, by: ModelCredential) -> None:
        role = self.random.choice(["", "", *self.role_rules.roles])
        text = self.random.choice(["", "", "A", "bob", "@acme"])
        order = self.random.choice(list(MemberOrder))
        size = self.random.choice([1, 2, 3, 50])
        caller = self._caller(by)

        def page(token: str) -> tuple[Sequence[Any], str]:
            found = self.site.members.list(caller, role, text, order, Page(size, token))
            return found.members, found.next_page_token

        expected = self.role_rules.needs(by, "members", "view")
        found = self._joined(page, expected)
        if found is None:
            return
        # Display names are the beginnings of addresses, or `Somebody`, which contains only the text `b`.
        keys = sorted(p.key for p in org.present if role in ("", p.role) and text.lower() in p.key)
        shown = [member.email.lower() for member in found]
        assert (shown if order is MemberOrder.EMAIL else sorted(shown)) == keys

    def _list_invitations(self, org: ModelOrganization, by: ModelCredential) -> None:
        state = self.random.choice([None, None, *InvitationState])
        show_deleted = self.random.choice([False, True])
        role = self.random.choice(["", "", "", *self.role_rules.roles])
        size = self.random.choice([1, 2, 3, 50])
        caller = self._caller(by)

        def page(token: str) -> tuple[Sequence[Any], str]:
            found = self.site.invitations.list(caller, state, role, "", Page(size, token), show_deleted=show_deleted)
            return found.invitations, found.next_page_token

        expected = self.role_rules.needs(by, "members", "invite")
        found = self._joined(page, expected)
        if found is None:
            return
        wanted = [
            invite
            for invite in org.invites
            if (invite.shown == state.value if state else show_deleted or invite.shown not in ("accepted", "deleted"))
            and role in ("", invite.role)
        ]
        wanted.sort(key=lambda invite: (invite.create_time, invite.id), reverse=True)
        at = now()
        assert [(item.id, item.state(at).value, item.email) for item in found] == [
            (invite.id, invite.shown, invite.email) for invite in wanted
        ]
        for item, invite in zip(found, wanted, strict=True):
            # The model doesn't know the result of this acceptance.
            assert invite.state == "accepted" or item.etag == invite.etag

    def _joined(self, page: Callable[[str], tuple[Sequence[Any], str]], expected: str) -> list[Any] | None:
        found: list[Any] = []
        token = ""
        while True:
            part = outcome(partial(page, token))
            if isinstance(part, RolecallError):
                assert part.reason == expected
                return None
            items, token = part
            found += items
            if not token:
                break
        assert not expected
        return found


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("database_url", "policy", "runs"),
    [pytest.param(*shard, id=f"{shard[0]}-{shard[1]}-{number}") for number, shard in enumerate(SHARDS)],
    indirect=["database_url"],
)
def test_people_behave_as_the_model(
    request: pytest.FixtureRequest,
    database_url: str,
    policy: str,
    runs: int,
    tmp_path: Path,
) -> None:
    """People join, manage and leave in any order as the requirements say, in their own organization alone."""
    folder = POLICIES[policy]
    site, rules = PeopleSite(database_url, folder, tmp_path), Rules(folder / "policy.csv")
    finished_runs: list[str] = []
    try:
        for number in range(-(-runs // BATCH)):
            batch = f"{request.node.name} {number}"
            run_machine(
                cast("type[PeopleMachine]", partial(PeopleMachine, site, rules, batch, finished_runs)),
                settings=hypothesis_settings(
                    max_examples=min(BATCH, runs - number * BATCH),
                    # The beginning is a step too.
                    stateful_step_count=STEPS + 1,
                    deadline=None,
                    # Else each shard would make the same runs.
                    derandomize=False,
                    suppress_health_check=list(HealthCheck),
                    # What a seed leads to gets no plainer by being made smaller, and that takes very long.
                    phases=[Phase.generate],
                ),
            )
    finally:
        site.storage.close()

    assert len(finished_runs) >= runs
