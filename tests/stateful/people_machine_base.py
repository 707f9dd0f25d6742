"""Base of the state machine of people: chooses requests in two organizations, and compares results with the model."""

import hashlib
import itertools
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine
from sqlalchemy import select

from rolecall.audit import OPERATOR
from rolecall.domain import Caller, CredentialKind, LinkKind
from rolecall.errors import RolecallError
from rolecall.services import operator_tokens
from rolecall.services.sessions import OpenedSession
from rolecall.services.unit_of_work import ChangeRequest, UnauthenticatedCall
from rolecall.storage import tables as t
from stateful.credential_model import ExpectedEntry, Pattern, Person
from stateful.people_model import ModelCredential, ModelOrganization, ModelSignIn, Rules
from stateful.people_requests import ModelRequest, ModelRequests
from stateful.people_site import PeopleSite

__all__ = ["ADDRESSES", "PeopleMachineBase", "outcome"]

ADDRESSES = [
    f"{name}@acme.io" for name in ("ann", "bob", "eve", "ida", "kim", "lea", "max", "ned", "pia", "sam", "tim", "zoe")
]
T = TypeVar("T")


def outcome(work: Callable[[], T]) -> T | RolecallError:
    """The answer, or the error."""
    try:
        return work()
    except RolecallError as error:
        return error


class PeopleMachineBase(RuleBasedStateMachine):
    """State machine over two organizations with the same addresses, and all that was ever created in them."""

    def __init__(self, site: PeopleSite, rules: Rules, batch: str, finished_runs: list[str]) -> None:
        super().__init__()
        self.site = site
        self.role_rules = rules
        self.requests = ModelRequests(site, rules)
        self.random = Random(0)
        self.batch = batch
        self.finished_runs = finished_runs
        self.seen = Counter[bytes]()
        self.numbers = itertools.count(1)
        self.orgs: list[ModelOrganization] = []
        # Rows of each organization after the last step, and the organizations in which this step may write.
        self.before: dict[ModelOrganization, list[str]] = {}
        self.changes_made: set[ModelOrganization] = set()
        # Callers as they were authenticated earlier.
        self.earlier: list[tuple[ModelOrganization, ModelCredential, Caller]] = []
        self.repeatable: list[tuple[ModelOrganization, str, ModelRequest, str, bytes, Any]] = []

    # Random choices.

    def _turn(self, seed: bytes) -> None:
        """Restart the random choices: differently for a seed that Hypothesis repeats, which is frequent."""
        self.seen[seed] += 1
        self.random = Random(f"{self.batch} {seed.hex()} {self.seen[seed]}")

    def _choose_caller(self, *wanted: Pattern) -> tuple[ModelOrganization, ModelCredential]:
        """Choose an organization and a caller, mostly with one of these permissions. An owner always has one."""
        org = self.orgs[self.random.random() < 0.25]
        owners = [person for person in org.present if person.role in self.role_rules.owners]
        if not any(cred.person in owners and cred.restriction is None for cred in org.live):
            self._issue(org, self.random.choice(owners))
        able = [cred for cred in org.live if any(self.role_rules.can(cred, *point) for point in wanted)]
        restricted = [cred for cred in able if cred.restriction or cred.person is None]
        chance = self.random.random()
        pool = restricted if chance < 0.3 else able if chance < 0.8 else org.live
        return org, self.random.choice(pool or able or org.live)

    def _some_person(self, org: ModelOrganization, by: ModelCredential) -> Person:
        """Choose a member, sometimes a former one or one of the other organization."""
        chance = self.random.random()
        if chance < 0.1:
            return self.random.choice([person for org in self.orgs for person in org.people])
        if chance < 0.2 and by.person:
            return by.person
        inviting = [invite.inviting_party for invite in org.invites if invite.shown == "pending"]
        people = [one for one in inviting if isinstance(one, Person) and one.present]
        return self.random.choice(people if people and chance < 0.45 else org.present)

    def _some_invite(self, org: ModelOrganization) -> str:
        pending = [invite for invite in org.invites if invite.shown == "pending"]
        chance = self.random.random()
        pool = pending if chance < 0.7 else org.invites if chance < 0.95 else [i for o in self.orgs for i in o.invites]
        return self.random.choice(pool).id if pool else "0" * 22

    def _some_token(self, org: ModelOrganization, by: ModelCredential) -> str:
        own = [cred for cred in org.live if cred.person and cred.person is by.person]
        chance = self.random.random()
        pool = own if own and chance < 0.3 else org.live if chance < 0.85 else [c for o in self.orgs for c in o.creds]
        return self.random.choice(pool).id

    def _role(self, by: ModelCredential, chance: float = 0.7) -> str:
        """Choose a role, mostly one that the caller may invite to."""
        within = [
            role
            for role in self.role_rules.roles
            if not self.role_rules.handles(self.role_rules.held(by), "invite", role)
        ]
        if within and self.random.random() < chance:
            return self.random.choice(within)
        return self.random.choice([*self.role_rules.roles, *self.role_rules.roles, "JESTER"])

    def _named(self) -> str:
        """Choose the organization that a request with a secret names, mostly none."""
        return self.random.choice([*[""] * 8, self.orgs[0].name, self.orgs[1].name])

    def _program_role(self, by: ModelCredential) -> str:
        within = [role for role in self.role_rules.roles if not self.role_rules.gives(by, role)]
        return self.random.choice(
            within if within and self.random.random() < 0.75 else [*self.role_rules.roles, "JESTER"]
        )

    def _restriction(self, by: ModelCredential, role: str | None) -> tuple[Pattern, ...] | None:
        """Choose a restriction for a token, mostly one that the caller may set."""
        rules = self.role_rules
        chance = self.random.random()
        if chance < 0.35 and by.restriction is None:
            return None
        may = rules.held(by) & rules.of_role.get(role or by.role, -1)
        good = [one for one in rules.permissions if not rules.points(one) & ~may]
        if chance < 0.75:
            # All permissions of some role, and some that managing people needs.
            common = rules.may[self.random.choice(rules.roles)]
            managing = [one for one in good if one[0] in ("members", "owners", "personal-tokens", "organization")]
            chosen = [one for one in good if one in common] + self._sample(managing, 3)
        elif chance < 0.9:
            chosen = self._sample(good, 4)
        else:
            odd = [("secrets/billing", "view"), ("zzz", "view"), ("*", "*"), ("members", "*"), ("owners", "*")]
            chosen = self._sample([*rules.permissions, *odd], 2)
        return tuple(dict.fromkeys(chosen)) or None

    def _etag(self, present: str) -> str:
        return self.random.choice(["", "", "", present, present, "0"])

    def _sample(self, items: Sequence[T], number: int) -> list[T]:
        return self.random.sample(items, min(len(items), number))

    # Requests.

    def _change_role(self, org: ModelOrganization, by: ModelCredential) -> ModelRequest:
        target = self._some_person(org, by)
        good = [
            role
            for role in self.role_rules.roles
            if not self.role_rules.handles(self.role_rules.held(by), "update", role)
        ]
        role = self.random.choice(good if good and self.random.random() < 0.6 else [*self.role_rules.roles, "JESTER"])
        role = target.role if self.random.random() < 0.1 else role
        return self.requests.change_role(org, target.id, role, self._etag(target.etag))

    def _remove(self, org: ModelOrganization, by: ModelCredential) -> ModelRequest:
        target = self._some_person(org, by)
        return self.requests.remove(org, target.id, self._etag(target.etag))

    def _invite(self, org: ModelOrganization, by: ModelCredential) -> ModelRequest:
        entries = []
        free = [key for key in ADDRESSES if not org.member(key) and not org.pending(key)]
        for _ in range(self.random.choice([1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 0])):
            usual = free and self.random.random() < 0.92
            email = self.random.choice(free if usual else ADDRESSES)
            if len(free) > 1 and email in free and self.random.random() < 0.95:
                free.remove(email)
            chance = self.random.random()
            if chance < 0.15:
                email = email.title() if chance > 0.03 else self.random.choice(["nobody", "", "@"])
            role = "" if self.random.random() < 0.02 else self._role(by, chance=0.93)
            entries.append((email, role))
        return self.requests.invite(org, entries, checked=self.random.random() < 0.15)

    def _on_some_invitation(
        self, org: ModelOrganization, make: Callable[[ModelOrganization, str, str], ModelRequest]
    ) -> ModelRequest:
        invitation_id = self._some_invite(org)
        known = org.invite(invitation_id)
        return make(org, invitation_id, self._etag(known.etag if known else ""))

    def _create(self, org: ModelOrganization, by: ModelCredential, role: str | None) -> ModelRequest:
        return self.requests.create(org, role, self._restriction(by, role), f"token {next(self.numbers)}")

    def _delete(self, org: ModelOrganization, by: ModelCredential) -> ModelRequest:
        token_id = self._some_token(org, by)
        known = org.token(token_id)
        return self.requests.delete(org, token_id, self._etag(known.etag if known else ""))

    def _any_request(self, org: ModelOrganization, by: ModelCredential) -> ModelRequest:
        makers: list[Callable[[], ModelRequest]] = [
            lambda: self._change_role(org, by),
            lambda: self._remove(org, by),
            lambda: self.requests.leave(org),
            lambda: self._invite(org, by),
            lambda: self._on_some_invitation(org, self.requests.resend),
            lambda: self._on_some_invitation(org, self.requests.withdraw),
            lambda: self._create(org, by, None),
            lambda: self._create(org, by, self._program_role(by)),
            lambda: self._delete(org, by),
            self.requests.sign_out,
        ]
        return self.random.choice(makers)()

    # Running requests, and comparing with the model.

    def _attempt(self, org: ModelOrganization, by: ModelCredential, request: ModelRequest) -> None:
        """Make the request as the caller; compare the result with the model."""
        request_id = str(uuid.UUID(int=self.random.getrandbits(128))) if self.random.random() < 0.5 else ""
        body = request.about.encode()
        expected = request.rights(by) or request.state(by)
        found = self._call(org, by, request, expected, request_id, body)
        if expected:
            if request.problems:
                assert isinstance(found, RolecallError)
                reported = sorted((error.field, error.reason) for error in found.all or (found,))
                if expected != "BATCH_SIZE" and request.problems(by)[0][0]:
                    assert reported == sorted(request.problems(by))
            return
        if request_id and not request.checked:
            # The answer that nothing had to be changed is stored too.
            self.repeatable.append((org, by.actor, request, request_id, body, found))
            org.requests.add((by.actor, request.action, request_id))
        if request.idle():
            assert found.revision == org.revision
        else:
            self._done(org, by, request, found)

    def _call(
        self,
        org: ModelOrganization,
        by: ModelCredential,
        request: ModelRequest,
        expected: str,
        request_id: str = "",
        body: bytes = b"",
        caller: Caller | None = None,
    ) -> Any:
        """Return the answer, or the error, whose reason must be `expected`; `*` is any."""
        note(f"{org.name[0]} {by.actor} ({by.role}, {by.restriction}) {request.action} {request.about} -> {expected}")
        answer = outcome(
            lambda: request.work(self._change_request(caller or self._caller(by), request.action, request_id, body))
        )
        if isinstance(answer, RolecallError):
            assert expected in (answer.reason, "*"), f"{answer.reason}: {answer}"
        else:
            assert not expected, f"{request.action} succeeded"
        return answer

    def _done(self, org: ModelOrganization, by: ModelCredential, request: ModelRequest, answer: Any) -> None:
        if request.idle():
            return
        target, actor = request.done(by, answer), by.actor
        self._changed(org, ExpectedEntry(actor, request.action, target, by.id))
        assert (answer if isinstance(answer, int) else answer.revision) == org.revision

    def _changed(self, org: ModelOrganization, entry: ExpectedEntry) -> None:
        org.revision += 1
        org.entries.append(entry)
        self.changes_made.add(org)

    def _change_request(self, caller: Caller, action: str, request_id: str = "", body: bytes = b"") -> ChangeRequest:
        return ChangeRequest(caller, action, f"call-{next(self.numbers)}", request_id, hashlib.sha256(body).digest())

    def _caller(self, by: ModelCredential) -> Caller:
        caller = self.site.authenticator.authenticate(by.text)
        assert caller is not None
        return caller

    def _open_session(
        self, action: str, work: Callable[[UnauthenticatedCall], OpenedSession], expected: str
    ) -> OpenedSession | None:
        note(f"{action} -> {expected}")
        opened = outcome(lambda: work(UnauthenticatedCall(action, f"call-{next(self.numbers)}", "peer")))
        if isinstance(opened, RolecallError):
            assert opened.reason == expected, f"{opened.reason}: {opened}"
            return None
        assert not expected, f"{action} succeeded"
        return opened

    def _accept(self, text: str) -> None:
        named = self._named()
        found = [(org, invite) for org in self.orgs for invite in org.invites if invite.texts[-1] == text]
        org, invite = found[0] if found else (None, None)
        if org is None or invite is None or named not in ("", org.name) or invite.state in ("accepted", "deleted"):
            expected = "INVITATION_NOT_FOUND"
        elif invite.shown == "expired":
            expected = "INVITATION_EXPIRED"
        else:
            expected = "" if self.role_rules.inviter_still_may(invite) else "INVITER_LOST_RIGHT"
        name = self.random.choice(["", "Somebody"])
        opened = self._open_session(
            "AcceptInvitation", lambda call: self.site.invitations.accept(call, named, text, name), expected
        )
        if opened is None:
            return
        assert org is not None
        assert invite is not None
        member = opened.member
        assert (member.organization, member.role, member.email) == (org.name, invite.role, invite.email)
        assert member.display_name == (name or invite.email.partition("@")[0])
        assert org.member(invite.key) is None
        person = Person(member.user_id, invite.key, invite.role, member.etag)
        assert all(person.id != other.id for other in org.people)
        org.people.append(person)
        invite.state, invite.joined = "accepted", person
        self._record_session(org, person, opened, "AcceptInvitation", f"invitation:{invite.id}")

    def _sign_in(self, text: str) -> None:
        named = self._named()
        found = [(org, link) for org in self.orgs for link in org.links if link.text == text]
        org, link = found[0] if found else (None, None)
        works = link and link.person and link.person.present and not link.used and not link.late
        expected = "" if org and works and named in ("", org.name) else "UNAUTHENTICATED_CREDENTIAL"
        opened = self._open_session("SignIn", lambda call: self.site.sessions.sign_in(call, named, text), expected)
        if opened is None:
            return
        assert org is not None
        assert link is not None
        assert link.person is not None
        assert opened.member.user_id == link.person.id
        link.used = True
        self._record_session(org, link.person, opened, "SignIn", f"user:{link.person.id}")

    def _record_session(
        self, org: ModelOrganization, person: Person, opened: OpenedSession, action: str, target: str
    ) -> None:
        session = opened.session
        until = opened.expire_time
        kind = CredentialKind.SESSION
        for cred in org.creds:
            # A new session deletes the expired ones of its holder.
            cred.cleared |= cred.kind is kind and cred.person is person and cred.expired
        org.creds.append(ModelCredential(session.id, kind, person, "", None, person.id, until, "", text=session.text))
        self._changed(org, ExpectedEntry(f"user:{person.id}", action, target, session.id))
        assert opened.revision == org.revision

    def _request_sign_in(self, org: ModelOrganization, key: str) -> ModelSignIn:
        note(f"RequestSignIn {key}")
        email = key.title() if self.random.random() < 0.2 else key
        self.site.sessions.request_sign_in(UnauthenticatedCall("RequestSignIn", "call", "peer"), org.name, email)
        for other in self.orgs:
            for link in other.links:
                # Expired requests are deleted with the next one.
                if link.late and not link.used and not link.pruned:
                    link.pruned = True
                    other.mails.pop((link.id, 1), None)
                    self.changes_made.add(other)
        known = {link.id for link in org.links}
        asked = select(t.sign_ins.c.id).where(t.sign_ins.c.organization == org.name)
        [new] = set(self.site.storage.read(lambda tx: list(tx.connection.scalars(asked)))) - known
        link = ModelSignIn(new, key, self.site.links.secret(LinkKind.SIGN_IN, new, 1))
        org.links.append(link)
        org.mails[new, 1] = "queued"
        self.changes_made.add(org)
        return link

    def _send_mails(self) -> None:
        self.site.collector.mails.clear()
        while self.site.sender.send_due():
            pass
        expected = []
        for org in self.orgs:
            for (about, generation), state in list(org.mails.items()):
                if state != "queued":
                    continue
                self.changes_made.add(org)
                invite = org.invite(about)
                if invite and invite.shown == "pending" and generation == len(invite.texts):
                    expected.append((invite.key, invite.texts[-1]))
                    org.mails[about, generation] = "sent"
                    continue
                del org.mails[about, generation]
                link = next((link for link in org.links if link.id == about), None)
                person = org.member(link.key) if link else None
                if link and person and not link.late:
                    link.person = person
                    expected.append((link.key, link.text))
        assert sorted(self.site.collector.mails) == sorted(expected)

    def _issue(self, org: ModelOrganization, person: Person) -> ModelCredential:
        minted = operator_tokens.issue(self.site.storage, self.site.log, org.name, person.key)
        self._changed(org, ExpectedEntry(OPERATOR, "IssueToken", f"token:{minted.id}", ""))
        return self._made_by_operator(org, person, minted.id, minted.text)

    def _made_by_operator(self, org: ModelOrganization, person: Person, token_id: str, text: str) -> ModelCredential:
        expires = select(t.credentials.c.expire_time).where(t.credentials.c.id == token_id)
        until = self.site.storage.read(lambda tx: tx.connection.scalars(expires).one())
        kind = CredentialKind.PERSONAL
        made = ModelCredential(token_id, kind, person, "", None, OPERATOR, until, f"{org.revision:x}", text=text)
        org.creds.append(made)
        return made
