"""Two organizations and what is done in them: how it is chosen, tried and held against the model."""

import hashlib
import itertools
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine
from people_deeds import Deed, Deeds
from people_model import Cred, Entry, Link, Org, Pattern, Person, Rules
from people_site import PeopleSite
from sqlalchemy import select

from rolecall import operator
from rolecall.audit import OPERATOR
from rolecall.domain import Caller, CredentialKind, LinkKind
from rolecall.errors import RolecallError
from rolecall.mutations import Arrival, Attempt
from rolecall.sessions import Entrance
from rolecall.storage import tables as t

__all__ = ["ADDRESSES", "Scene", "outcome"]

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


class Scene(RuleBasedStateMachine):
    """Two organizations with the same addresses, and all that was ever made in them."""

    def __init__(self, site: PeopleSite, rules: Rules, batch: str, spent: list[str]) -> None:
        super().__init__()
        self.site = site
        self.law = rules
        self.deeds = Deeds(site, rules)
        self.random = Random(0)
        self.batch = batch
        self.spent = spent
        self.seen = Counter[bytes]()
        self.numbers = itertools.count(1)
        self.orgs: list[Org] = []
        # What each organization's rows were after the last step, and in which of them this step may write.
        self.before: dict[Org, list[str]] = {}
        self.touched: set[Org] = set()
        # Callers as they once were.
        self.earlier: list[tuple[Org, Cred, Caller]] = []
        self.repeatable: list[tuple[Org, str, Deed, str, bytes, Any]] = []

    # What is chosen.

    def _turn(self, seed: bytes) -> None:
        """Begin to choose anew: in another way for a seed that Hypothesis gives twice, as it likes to."""
        self.seen[seed] += 1
        self.random = Random(f"{self.batch} {seed.hex()} {self.seen[seed]}")

    def _scene(self, *wanted: Pattern) -> tuple[Org, Cred]:
        """An organization, and a caller there: mostly one who may one of these. There is always one of an owner's."""
        org = self.orgs[self.random.random() < 0.25]
        owners = [person for person in org.present if person.role in self.law.owners]
        if not any(cred.person in owners and cred.restriction is None for cred in org.live):
            self._issue(org, self.random.choice(owners))
        able = [cred for cred in org.live if any(self.law.can(cred, *point) for point in wanted)]
        restricted = [cred for cred in able if cred.restriction or cred.person is None]
        chance = self.random.random()
        pool = restricted if chance < 0.3 else able if chance < 0.8 else org.live
        return org, self.random.choice(pool or able or org.live)

    def _some_person(self, org: Org, by: Cred) -> Person:
        """A member, or sometimes one who is gone or somewhere else."""
        chance = self.random.random()
        if chance < 0.1:
            return self.random.choice([person for org in self.orgs for person in org.people])
        if chance < 0.2 and by.person:
            return by.person
        vouching = [invite.voucher for invite in org.invites if invite.shown == "pending"]
        people = [one for one in vouching if isinstance(one, Person) and one.present]
        return self.random.choice(people if people and chance < 0.45 else org.present)

    def _some_invite(self, org: Org) -> str:
        pending = [invite for invite in org.invites if invite.shown == "pending"]
        chance = self.random.random()
        pool = pending if chance < 0.7 else org.invites if chance < 0.95 else [i for o in self.orgs for i in o.invites]
        return self.random.choice(pool).id if pool else "0" * 22

    def _some_token(self, org: Org, by: Cred) -> str:
        own = [cred for cred in org.live if cred.person and cred.person is by.person]
        chance = self.random.random()
        pool = own if own and chance < 0.3 else org.live if chance < 0.85 else [c for o in self.orgs for c in o.creds]
        return self.random.choice(pool).id

    def _role(self, by: Cred, chance: float = 0.7) -> str:
        """A role; mostly one that the caller may hand on."""
        within = [role for role in self.law.roles if not self.law.handles(self.law.held(by), "invite", role)]
        if within and self.random.random() < chance:
            return self.random.choice(within)
        return self.random.choice([*self.law.roles, *self.law.roles, "JESTER"])

    def _named(self) -> str:
        """Where a secret must lead, if anywhere."""
        return self.random.choice([*[""] * 8, self.orgs[0].name, self.orgs[1].name])

    def _program_role(self, by: Cred) -> str:
        within = [role for role in self.law.roles if not self.law.gives(by, role)]
        return self.random.choice(within if within and self.random.random() < 0.75 else [*self.law.roles, "JESTER"])

    def _restriction(self, by: Cred, role: str | None) -> tuple[Pattern, ...] | None:
        """What a token shall be cut down to: mostly such as may be had."""
        rules = self.law
        chance = self.random.random()
        if chance < 0.35 and by.restriction is None:
            return None
        may = rules.held(by) & rules.of_role.get(role or by.role, -1)
        good = [one for one in rules.permissions if not rules.points(one) & ~may]
        if chance < 0.75:
            # All that some role may, and some of what it takes to manage people.
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

    # What somebody may try.

    def _change_role(self, org: Org, by: Cred) -> Deed:
        target = self._some_person(org, by)
        good = [role for role in self.law.roles if not self.law.handles(self.law.held(by), "update", role)]
        role = self.random.choice(good if good and self.random.random() < 0.6 else [*self.law.roles, "JESTER"])
        role = target.role if self.random.random() < 0.1 else role
        return self.deeds.change_role(org, target.id, role, self._etag(target.etag))

    def _remove(self, org: Org, by: Cred) -> Deed:
        target = self._some_person(org, by)
        return self.deeds.remove(org, target.id, self._etag(target.etag))

    def _invite(self, org: Org, by: Cred) -> Deed:
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
        return self.deeds.invite(org, entries, checked=self.random.random() < 0.15)

    def _renew(self, org: Org, make: Callable[[Org, str, str], Deed]) -> Deed:
        invitation_id = self._some_invite(org)
        known = org.invite(invitation_id)
        return make(org, invitation_id, self._etag(known.etag if known else ""))

    def _create(self, org: Org, by: Cred, role: str | None) -> Deed:
        return self.deeds.create(org, role, self._restriction(by, role), f"token {next(self.numbers)}")

    def _delete(self, org: Org, by: Cred) -> Deed:
        token_id = self._some_token(org, by)
        known = org.token(token_id)
        return self.deeds.delete(org, token_id, self._etag(known.etag if known else ""))

    def _any_deed(self, org: Org, by: Cred) -> Deed:
        makers: list[Callable[[], Deed]] = [
            lambda: self._change_role(org, by),
            lambda: self._remove(org, by),
            lambda: self.deeds.leave(org),
            lambda: self._invite(org, by),
            lambda: self._renew(org, self.deeds.resend),
            lambda: self._renew(org, self.deeds.withdraw),
            lambda: self._create(org, by, None),
            lambda: self._create(org, by, self._program_role(by)),
            lambda: self._delete(org, by),
            self.deeds.sign_out,
        ]
        return self.random.choice(makers)()

    # How they are done, and what the model says of it.

    def _attempt(self, org: Org, by: Cred, deed: Deed) -> None:
        """Have the caller try; see that it comes out as the model says."""
        request_id = str(uuid.UUID(int=self.random.getrandbits(128))) if self.random.random() < 0.5 else ""
        body = deed.about.encode()
        expected = deed.rights(by) or deed.state(by)
        found = self._call(org, by, deed, expected, request_id, body)
        if expected:
            if deed.problems:
                assert isinstance(found, RolecallError)
                told = sorted((error.field, error.reason) for error in found.all or (found,))
                if expected != "BATCH_SIZE" and deed.problems(by)[0][0]:
                    assert told == sorted(deed.problems(by))
            return
        if request_id and not deed.checked:
            # That nothing was left to do is remembered too.
            self.repeatable.append((org, by.actor, deed, request_id, body, found))
            org.requests.add((by.actor, deed.action, request_id))
        if deed.idle():
            assert found.revision == org.revision
        else:
            self._done(org, by, deed, found)

    def _call(
        self,
        org: Org,
        by: Cred,
        deed: Deed,
        expected: str,
        request_id: str = "",
        body: bytes = b"",
        caller: Caller | None = None,
    ) -> Any:
        """The answer, or the error, which has the reason that was expected; `*` is any."""
        note(f"{org.name[0]} {by.actor} ({by.role}, {by.restriction}) {deed.action} {deed.about} -> {expected}")
        answer = outcome(lambda: deed.work(self._attempt_of(caller or self._caller(by), deed.action, request_id, body)))
        if isinstance(answer, RolecallError):
            assert expected in (answer.reason, "*"), f"{answer.reason}: {answer}"
        else:
            assert not expected, f"{deed.action} succeeded"
        return answer

    def _done(self, org: Org, by: Cred, deed: Deed, answer: Any) -> None:
        if deed.idle():
            return
        target, actor = deed.done(by, answer), by.actor
        self._changed(org, Entry(actor, deed.action, target, by.id))
        assert (answer if isinstance(answer, int) else answer.revision) == org.revision

    def _changed(self, org: Org, entry: Entry) -> None:
        org.revision += 1
        org.entries.append(entry)
        self.touched.add(org)

    def _attempt_of(self, caller: Caller, action: str, request_id: str = "", body: bytes = b"") -> Attempt:
        return Attempt(caller, action, f"call-{next(self.numbers)}", request_id, hashlib.sha256(body).digest())

    def _caller(self, by: Cred) -> Caller:
        caller = self.site.directory.caller(by.text)
        assert caller is not None
        return caller

    def _enter(self, action: str, work: Callable[[Arrival], Entrance], expected: str) -> Entrance | None:
        note(f"{action} -> {expected}")
        entrance = outcome(lambda: work(Arrival(action, f"call-{next(self.numbers)}", "peer")))
        if isinstance(entrance, RolecallError):
            assert entrance.reason == expected, f"{entrance.reason}: {entrance}"
            return None
        assert not expected, f"{action} succeeded"
        return entrance

    def _accept(self, text: str) -> None:
        named = self._named()
        found = [(org, invite) for org in self.orgs for invite in org.invites if invite.texts[-1] == text]
        org, invite = found[0] if found else (None, None)
        if org is None or invite is None or named not in ("", org.name) or invite.state in ("accepted", "deleted"):
            expected = "INVITATION_NOT_FOUND"
        elif invite.shown == "expired":
            expected = "INVITATION_EXPIRED"
        else:
            expected = "" if self.law.vouches(invite) else "INVITER_LOST_RIGHT"
        name = self.random.choice(["", "Somebody"])
        entrance = self._enter(
            "AcceptInvitation", lambda arrival: self.site.acceptance.accept(arrival, named, text, name), expected
        )
        if entrance is None:
            return
        assert org is not None
        assert invite is not None
        member = entrance.member
        assert (member.organization, member.role, member.email) == (org.name, invite.role, invite.email)
        assert member.display_name == (name or invite.email.partition("@")[0])
        assert org.member(invite.key) is None
        person = Person(member.user_id, invite.key, invite.role, member.etag)
        assert all(person.id != other.id for other in org.people)
        org.people.append(person)
        invite.state, invite.joined = "accepted", person
        self._entered(org, person, entrance, "AcceptInvitation", f"invitation:{invite.id}")

    def _sign_in(self, text: str) -> None:
        named = self._named()
        found = [(org, link) for org in self.orgs for link in org.links if link.text == text]
        org, link = found[0] if found else (None, None)
        works = link and link.person and link.person.present and not link.used and not link.late
        expected = "" if org and works and named in ("", org.name) else "UNAUTHENTICATED_CREDENTIAL"
        entrance = self._enter("SignIn", lambda arrival: self.site.sessions.sign_in(arrival, named, text), expected)
        if entrance is None:
            return
        assert org is not None
        assert link is not None
        assert link.person is not None
        assert entrance.member.user_id == link.person.id
        link.used = True
        self._entered(org, link.person, entrance, "SignIn", f"user:{link.person.id}")

    def _entered(self, org: Org, person: Person, entrance: Entrance, action: str, target: str) -> None:
        session = entrance.session
        until = entrance.expire_time
        kind = CredentialKind.SESSION
        for cred in org.creds:
            # Whoever comes in leaves no ended sessions behind.
            cred.cleared |= cred.kind is kind and cred.person is person and cred.expired
        org.creds.append(Cred(session.id, kind, session.text, person, "", None, person.id, until, ""))
        self._changed(org, Entry(f"user:{person.id}", action, target, session.id))
        assert entrance.revision == org.revision

    def _request_sign_in(self, org: Org, key: str) -> Link:
        note(f"RequestSignIn {key}")
        email = key.title() if self.random.random() < 0.2 else key
        self.site.sessions.request_sign_in(Arrival("RequestSignIn", "call", "peer"), org.name, email)
        for other in self.orgs:
            for link in other.links:
                # Those whose time is over go with the next request.
                if link.late and not link.used and not link.pruned:
                    link.pruned = True
                    other.mails.pop((link.id, 1), None)
                    self.touched.add(other)
        known = {link.id for link in org.links}
        asked = select(t.sign_ins.c.id).where(t.sign_ins.c.organization == org.name)
        [new] = set(self.site.storage.read(lambda tx: list(tx.connection.scalars(asked)))) - known
        link = Link(new, key, self.site.links.secret(LinkKind.SIGN_IN, new, 1))
        org.links.append(link)
        org.mails[new, 1] = "queued"
        self.touched.add(org)
        return link

    def _send_mails(self) -> None:
        self.site.postman.taken.clear()
        while self.site.sender.send_due():
            pass
        expected = []
        for org in self.orgs:
            for (about, generation), state in list(org.mails.items()):
                if state != "queued":
                    continue
                self.touched.add(org)
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
        assert sorted(self.site.postman.taken) == sorted(expected)

    def _issue(self, org: Org, person: Person) -> Cred:
        minted = operator.issue(self.site.storage, self.site.log, org.name, person.key)
        self._changed(org, Entry(OPERATOR, "IssueToken", f"token:{minted.id}", ""))
        return self._made_by_operator(org, person, minted.id, minted.text)

    def _made_by_operator(self, org: Org, person: Person, token_id: str, text: str) -> Cred:
        expires = select(t.credentials.c.expire_time).where(t.credentials.c.id == token_id)
        until = self.site.storage.read(lambda tx: tx.connection.scalars(expires).one())
        kind = CredentialKind.PERSONAL
        made = Cred(token_id, kind, text, person, "", None, OPERATOR, until, f"{org.revision:x}")
        org.creds.append(made)
        return made
