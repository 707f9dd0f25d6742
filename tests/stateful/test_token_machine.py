"""Credentials, members and requests in any order against a plain model, through a real server on both databases."""

import copy
import csv
import itertools
import re
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar, cast

import grpc
import pytest
from conftest import CI, ROOT, MakeSite, Site
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, Phase, note
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from leaks import Written, letters, windows, written_to
from sqlalchemy import delete, inspect, select, text, update

from rolecall import callers, credentials, directory, keys, organizations
from rolecall.audit import OPERATOR, AuditLog, Event
from rolecall.domain import CredentialKind, Member, now
from rolecall.storage import Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import tables as t
from rolecall.storage.changes import record_change
from rolecall.storage.credentials import NewCredential
from rolecall.v1 import audit_pb2, authorization_pb2, organization_pb2, session_pb2, shared_pb2, token_pb2

STEPS = 40
# How many runs each test makes, and how many tests share the runs on one kind of database.
SHARDS = [("sqlite", 75)] * 4 + [("postgresql", 30)] * 2 if CI else [("sqlite", 6), ("postgresql", 3)]

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR

SERVICES: dict[str, Any] = {
    "BatchCheck": authorization_pb2,
    "Check": authorization_pb2,
    "CreatePersonalToken": token_pb2,
    "CreateOrganizationToken": token_pb2,
    "ListTokens": token_pb2,
    "RotateToken": token_pb2,
    "DeleteToken": token_pb2,
    "WhoAmI": session_pb2,
    "SignOut": session_pb2,
    "GetOrganization": organization_pb2,
    "UpdateOrganization": organization_pb2,
    "ListAuditEntries": audit_pb2,
    "VerifyAuditLog": audit_pb2,
}
STATUSES = {
    "UNAUTHENTICATED_CREDENTIAL": grpc.StatusCode.UNAUTHENTICATED,
    "PERMISSION_MISSING": grpc.StatusCode.PERMISSION_DENIED,
    "ROLE_BEYOND_CALLER": grpc.StatusCode.PERMISSION_DENIED,
    "PERSON_ONLY": grpc.StatusCode.PERMISSION_DENIED,
    "ORGANIZATION_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "TOKEN_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "INVALID_FIELD": grpc.StatusCode.INVALID_ARGUMENT,
    "UNKNOWN_ROLE_NAME": grpc.StatusCode.INVALID_ARGUMENT,
    "REQUEST_ID_REUSED": grpc.StatusCode.INVALID_ARGUMENT,
    "ETAG_MISMATCH": grpc.StatusCode.ABORTED,
}
DENIALS = {reason for reason, code in STATUSES.items() if code is grpc.StatusCode.PERMISSION_DENIED}
ROTATED = "PresentRotatedSecret"

TOKEN = re.compile(r"rc[pos]_[0-9A-Za-z]{22}_[0-9A-Za-z]{49}")
BUSINESS = (t.organizations, t.members, t.credentials, t.retired_secrets, t.changes)

Pattern = tuple[str, str]
T = TypeVar("T")


# What roles may, by a plain reading of the file: for each role the set of points, of a universe of concrete questions
# that tells every pattern used here from every other, as the bits of a number.


def covers(pattern: str, resource: str) -> bool:
    """Whether a resource pattern covers a resource."""
    if pattern.endswith("*"):
        return resource.startswith(pattern[:-1])
    return resource == pattern or resource.startswith(f"{pattern}/")


def read_policy(file: Path) -> tuple[dict[str, set[Pattern]], list[Pattern]]:
    """For each role all that it may, what it inherits included; and every permission in the file."""
    own: dict[str, set[Pattern]] = {}
    parents: list[tuple[str, str]] = []
    for row in csv.reader(file.read_text().splitlines(), skipinitialspace=True):
        match row:
            case ["p", role, resource, action, "allow"]:
                own.setdefault(role, set()).add((resource, action))
            case ["g", child, parent]:
                parents.append((child, parent))
            case [] | [str()]:
                pass
            case _ if not row[0].startswith("#"):
                raise AssertionError(f"the model does not know how to read {row}")
    for _ in parents:
        for child, parent in parents:
            own.setdefault(child, set()).update(own.setdefault(parent, set()))
    return own, sorted(set().union(*own.values()))


MAY, PERMISSIONS = read_policy(ROOT / "policies" / "policy.csv")
TYPES = sorted({resource for resource, _ in PERMISSIONS})
ACTIONS = sorted({action for _, action in PERMISSIONS})
STRANGE = ["secrets/billing/db", "secrets/bills", "secretszzz", "zzz", "zzz/billing"]
POINTS = [
    (resource, action)
    for resource in [*TYPES, *(f"{kind}/billing" for kind in TYPES), *STRANGE]
    for action in [*ACTIONS, "zzz"]
]
ROLES = sorted(MAY)
OWNERS = {role for role, held in MAY.items() if ("owners", "update") in held}
TOP = next(iter(OWNERS))


@cache
def mask(patterns: frozenset[Pattern]) -> int:
    """The points that the patterns cover."""
    return sum(
        1 << number
        for number, (resource, action) in enumerate(POINTS)
        if any(verb in (action, "*") and covers(pattern, resource) for pattern, verb in patterns)
    )


ROLE_MASKS = {role: mask(frozenset(held)) for role, held in MAY.items()}
EVERYTHING = (1 << len(POINTS)) - 1


def has(points: int, resource: str, action: str) -> bool:
    """Whether the concrete question is among the points."""
    return bool(points >> POINTS.index((resource, action)) & 1)


def is_named(pattern: Pattern) -> bool:
    """Whether the policy speaks of such a thing at all."""
    kind = pattern[0].partition("/")[0]
    return any(covers(kind, known) for known in TYPES) and (pattern[1] == "*" or pattern[1] in ACTIONS)


@dataclass(eq=False)
class Person:
    """A member, or one who was."""

    user_id: str
    email: str
    role: str
    present: bool = True


@dataclass(eq=False)
class Cred:
    """A credential that was once made."""

    id: str
    kind: CredentialKind
    person: Person | None
    own_role: str
    name: str
    restriction: tuple[Pattern, ...] | None
    created_by: str
    create_time: int
    expire_time: int
    etag: str | None
    deleted: bool = False
    secrets: "list[Secret]" = field(default_factory=list)

    @property
    def role(self) -> str:
        """The role that it acts with."""
        return self.person.role if self.person else self.own_role

    @property
    def actor(self) -> str:
        """Who acts with it."""
        return f"user:{self.person.user_id}" if self.person else f"token:{self.id}"

    @property
    def gone(self) -> bool:
        """Whether its row went with its holder's."""
        return self.person is not None and not self.person.present

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expire_time <= now()

    @property
    def live(self) -> bool:
        """Whether it works."""
        return not (self.deleted or self.expired or self.gone)

    @property
    def bound(self) -> int:
        """The points that its restriction leaves."""
        return EVERYTHING if self.restriction is None else mask(frozenset(self.restriction))

    @property
    def may(self) -> int:
        """The points that it may."""
        return ROLE_MASKS[self.role] & self.bound

    @property
    def state(self) -> str:
        """As the API calls it."""
        return "DELETED" if self.deleted else "EXPIRED" if self.expired else "LIVE"


@dataclass(eq=False)
class Secret:
    """One text of a credential. `until`: when a rotation ends it."""

    cred: Cred
    text: str
    until: int | None = None
    presented_dead: bool = False

    @property
    def rotated(self) -> bool:
        """Whether a rotation ended it."""
        return self.until is not None and self.until <= now()

    @property
    def live(self) -> bool:
        """Whether it works."""
        return self.cred.live and not self.rotated

    @property
    def end(self) -> int:
        """When it stops working, if nothing else happens; nothing that it makes outlives that."""
        return min(self.cred.expire_time, self.until or self.cred.expire_time)


@dataclass(frozen=True)
class Entry:
    """What an audit entry must say."""

    actor: str
    action: str
    object: str
    reason: str
    credential_id: str
    count: int | None = None


class Spent:
    """What a test has left behind, over all its runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.secrets: set[str] = set()


def dump(tx: Transaction) -> str:
    """All rows of all tables as text; bytes as letters and in hexadecimal."""
    lines = []
    for name in inspect(tx.connection).get_table_names():
        for row in tx.connection.execute(text(f'SELECT * FROM "{name}"')):
            for value in row:
                raw = bytes(value) if isinstance(value, bytes | memoryview) else None
                lines.append(str(value) if raw is None else f"{raw.decode('latin-1')}\n{raw.hex()}")
    return "\n".join(lines)


def failure_of(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, str]:
    """The code and the reason of a failed call, and all the text that came with it."""
    call = cast("grpc.Call", error)
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(call)
    for detail in status.details if status else ():
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    return call.code(), info.reason, f"{call.details()} {status} {call.trailing_metadata()}"


def micros(moment: Timestamp) -> int:
    """A message's time in microseconds."""
    return moment.seconds * SECOND + moment.nanos // 1000


def timestamp(at: int) -> Timestamp:
    """A time as a message."""
    return Timestamp(seconds=at // SECOND, nanos=at % SECOND * 1000)


def restriction_message(patterns: Iterable[Pattern]) -> shared_pb2.Restriction:
    """A restriction as a message."""
    return shared_pb2.Restriction(
        permissions=[shared_pb2.Permission(resource=resource, action=action) for resource, action in patterns]
    )


def restriction_of(message: Any) -> tuple[Pattern, ...] | None:
    """The restriction of a token or a request."""
    if not message.HasField("restriction"):
        return None
    return tuple(dict.fromkeys((item.resource, item.action) for item in message.restriction.permissions))


MINTING = [("personal-tokens", "create"), ("organization-tokens", "create"), ("authorization", "check")]
BENEATH = [("secrets/billing", "view"), ("secrets/bill*", "view"), ("secrets/billing/db", "view")]
ODD = [
    ("secrets", "*"),
    ("*", "*"),
    ("zzz", "view"),
    ("secrets", "zzz"),
    ("personal-tokens", "*"),
    ("account", "manage"),
]
# From now, in microseconds; None for the usual.
LIVES = [*[None] * 12, DAY, DAY, 20 * DAY, 20 * DAY, 80 * DAY, 100 * DAY, 364 * DAY, 366 * DAY, 0, -DAY]
OVERLAPS = [0, 0, 0, 0, HOUR, HOUR, 24 * HOUR, 25 * HOUR, -SECOND]
# What a rule chooses, it chooses with a generator of its own: even from the first choice to the last.
SEEDS = st.integers(0, 2**32 - 1)


class TokenMachine(RuleBasedStateMachine):
    """One organization, its people, and every credential that was ever made there."""

    def __init__(self, site: Site, log: AuditLog, channel: grpc.Channel, written: Written, spent: Spent) -> None:
        super().__init__()
        self.site = site
        self.storage = site.server.storage
        self.log = log
        self.channel = channel
        self.written = written
        self.spent = spent
        self.organization = f"run-{uuid.uuid4().hex}"
        self.people: list[Person] = []
        self.creds: list[Cred] = []
        self.secrets: list[Secret] = []
        self.known: set[str] = set()
        self.entries: list[Entry] = []
        self.denied: dict[tuple[str, str, str], Entry] = {}
        # Who may, and who must, be recorded for presenting an old secret.
        self.may_have_presented: set[str] = set()
        self.must_have_presented: set[str] = set()
        self.answers: dict[tuple[str, str, str], tuple[bytes, Message]] = {}
        self.repeatable: list[tuple[Cred, str, Message]] = []
        self.request_ids = [str(uuid.uuid4()) for _ in range(6)]
        self.revision = 1
        self.display_name = self.organization
        self.numbers = itertools.count(1)
        self.random = Random(0)
        # What was presented just before something happened to it.
        self.warm: set[Secret] = set()

    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        """Found the organization, with a member for each role, sessions for all of them, and tokens of many kinds."""
        self.random = Random(seed)
        policy = self.site.server.live.in_force.policy
        made = organizations.found(self.storage, self.log, policy, self.organization, "ann@acme.io", demo=True)
        self.people = [Person(member.user_id, member.email, member.role) for member in (made.owner, *made.others)]
        self.entries.append(Entry(OPERATOR, "CreateOrganization", f"organization:{self.organization}", "", ""))
        first = Cred(made.token.id, made.token.kind, self.people[0], "", "first owner", None, OPERATOR, 0, 2**60, "")
        self.watcher = self._made(first, made.token.text)
        [shown] = self.ask(self.watcher, "ListTokens", token_pb2.ListTokensRequest()).tokens
        first.create_time, first.expire_time = micros(shown.create_time), micros(shown.expire_time)
        first.etag = shown.etag
        self.organization_etag = self._own_organization().etag
        for person in self.people:
            self._open_session(person)
        for _ in range(4):
            self._create_personal()
            self._create_organization_token()

    # What people do.

    @rule(seed=SEEDS)
    def create_personal(self, seed: int) -> None:
        """Somebody creates a token for themselves."""
        self.random = Random(seed)
        self._create_personal()

    @rule(seed=SEEDS)
    def create_organization_token(self, seed: int) -> None:
        """Somebody creates a token for a program."""
        self.random = Random(seed)
        self._create_organization_token()

    @rule(seed=SEEDS)
    def rotate(self, seed: int) -> None:
        """Somebody asks for a token's new secret."""
        self.random = Random(seed)
        by = self._caller()
        cred = self._target(by)
        overlap = self.random.choice(OVERLAPS)
        message = token_pb2.RotateTokenRequest(id=cred.id, etag=self._etag(cred.etag), request_id=self._request_id())
        if overlap:
            message.overlap.CopyFrom(Duration(seconds=overlap // SECOND))
        self._warm(cred)
        self.attempt(by, "RotateToken", message)

    @rule(seed=SEEDS)
    def delete(self, seed: int) -> None:
        """Somebody deletes a token."""
        self.random = Random(seed)
        by = self._caller()
        deleted = [cred for cred in self.creds if cred.deleted and not cred.gone]
        cred = self.random.choice(deleted) if deleted and self.random.random() < 0.25 else self._target(by)
        message = token_pb2.DeleteTokenRequest(id=cred.id, etag=self._etag(cred.etag), request_id=self._request_id())
        self._warm(cred)
        self.attempt(by, "DeleteToken", message)

    @rule(seed=SEEDS)
    def sign_out(self, seed: int) -> None:
        """Somebody ends the credential that they present."""
        self.random = Random(seed)
        by = self._caller()
        if by.cred is not self.watcher.cred:
            self._warm(by.cred)
            self.attempt(by, "SignOut", session_pb2.SignOutRequest())

    @rule(seed=SEEDS)
    def rename(self, seed: int) -> None:
        """Somebody gives the organization another name."""
        self.random = Random(seed)
        message = organization_pb2.UpdateOrganizationRequest(
            display_name=f"Name {next(self.numbers)}",
            etag=self._etag(self.organization_etag),
            request_id=self._request_id(),
        )
        self.attempt(self._caller(), "UpdateOrganization", message)

    @precondition(lambda self: self.repeatable)
    @rule(seed=SEEDS)
    def repeat(self, seed: int) -> None:
        """Somebody repeats a request, as it was or with another body."""
        self.random = Random(seed)
        first, method, message = self.random.choice(self.repeatable)
        callers = [secret for secret in self._live() if secret.cred.actor == first.actor]
        by = self.random.choice(callers) if callers and self.random.random() < 0.85 else self._caller()
        again = copy.deepcopy(cast("Any", message))
        if self.random.random() < 0.4:
            match method:
                case "UpdateOrganization":
                    again.display_name += "!"
                case "DeleteToken":
                    again.etag = "0"
                case "RotateToken":
                    again.overlap.CopyFrom(Duration(seconds=7))
                case _:
                    again.name += "!"
        self.attempt(by, method, again)

    @precondition(lambda self: self._dead())
    @rule(seed=SEEDS)
    def try_with_a_dead_secret(self, seed: int) -> None:
        """Somebody presents what no longer works."""
        self.random = Random(seed)
        method = self.random.choice(["RotateToken", "DeleteToken", "CreatePersonalToken", "SignOut"])
        message: Message = session_pb2.SignOutRequest()
        if method == "CreatePersonalToken":
            message = token_pb2.CreatePersonalTokenRequest(name="undead")
        elif method != "SignOut":
            message = getattr(token_pb2, f"{method}Request")(id=self._target(None).id)
        self.attempt(self.random.choice(self._dead()), method, message)

    @rule(seed=SEEDS)
    def try_elsewhere(self, seed: int) -> None:
        """Somebody names another organization, a token of one, or a token that there is not."""
        self.random = Random(seed)
        theirs = self.site.tokens[TOP].split("_")[1]
        method = self.random.choice(["RotateToken", "DeleteToken"])
        request = getattr(token_pb2, f"{method}Request")
        by = self._caller()
        self.attempt(by, method, request(organization="acme", id=theirs))
        named = self.random.choice([theirs, by.cred.id[::-1]])
        self.attempt(by, method, request(organization=self.organization, id=named))

    # What happens to them.

    @rule(seed=SEEDS)
    def open_session(self, seed: int) -> None:
        """A member signs in."""
        self.random = Random(seed)
        self._open_session(self.random.choice([person for person in self.people if person.present]))

    @precondition(lambda self: self._others())
    @rule(seed=SEEDS)
    def change_role(self, seed: int) -> None:
        """A member other than the first owner gets another role."""
        self.random = Random(seed)
        member, role = self.random.choice(self._others()), self.random.choice(ROLES)
        where = (t.members.c.organization == self.organization) & (t.members.c.user_id == member.user_id)

        def work(tx: Transaction) -> None:
            tx.connection.execute(update(t.members).where(where).values(role=role, update_time=now()))
            record_change(tx, self.organization, "member", member.user_id)

        self._warm(*self._held_by(member))
        self._by_operator("ChangeMemberRole", f"user:{member.user_id}", work)
        member.role = role

    @precondition(lambda self: self._others())
    @rule(seed=SEEDS)
    def remove(self, seed: int) -> None:
        """A member other than the first owner is removed."""
        self.random = Random(seed)
        member = self.random.choice(self._others())
        where = (t.members.c.organization == self.organization) & (t.members.c.user_id == member.user_id)

        def work(tx: Transaction) -> None:
            tx.connection.execute(delete(t.members).where(where))
            record_change(tx, self.organization, "member", member.user_id)

        self._warm(*self._held_by(member))
        self._by_operator("RemoveMember", f"user:{member.user_id}", work)
        member.present = False

    @precondition(lambda self: self._addresses_left())
    @rule(seed=SEEDS)
    def come_back(self, seed: int) -> None:
        """A removed member's address joins again, as a new person."""
        self.random = Random(seed)
        email, role, at = self.random.choice(self._addresses_left()), self.random.choice(ROLES), now()
        member = Member(self.organization, credentials.new_id(), email, email.partition("@")[0], role, at, at)
        self._by_operator("AddMember", f"user:{member.user_id}", lambda tx: member_rows.add(tx, member, email.lower()))
        self.people.append(Person(member.user_id, email, role))
        if self.random.random() < 0.7:
            self._open_session(self.people[-1])

    @precondition(lambda self: self._live_but_the_watcher())
    @rule(seed=SEEDS)
    def expire(self, seed: int) -> None:
        """A credential's time runs out."""
        self.random = Random(seed)
        cred, at = self.random.choice(self._live_but_the_watcher()).cred, now() - SECOND

        def work(tx: Transaction) -> None:
            tx.connection.execute(update(t.credentials).where(t.credentials.c.id == cred.id).values(expire_time=at))
            record_change(tx, self.organization, "credential", cred.id)

        self._warm(cred)
        self._by_operator("ExpireCredential", f"token:{cred.id}", work)
        cred.expire_time = at

    @precondition(lambda self: any(secret.live and secret.until for secret in self.secrets))
    @rule(seed=SEEDS)
    def end_overlap(self, seed: int) -> None:
        """The time in which an old secret works beside the new one runs out."""
        self.random = Random(seed)
        old = self.random.choice([secret for secret in self.secrets if secret.live and secret.until])
        parsed, at = credentials.parse(old.text), now() - SECOND
        assert parsed is not None
        where = t.retired_secrets.c.digest == parsed.digest

        def work(tx: Transaction) -> None:
            tx.connection.execute(update(t.retired_secrets).where(where).values(expire_time=at))
            record_change(tx, self.organization, "credential", old.cred.id)

        self._warm(old.cred)
        self._by_operator("EndOverlap", f"token:{old.cred.id}", work)
        old.until = at

    @rule()
    def write_down(self) -> None:
        """The server records the refusals so far, and which credentials were used."""
        self.site.server._core.directory.uses.flush()
        self.site.server._core.denials.flush(closing=True)
        expected = Counter(self.denied.values())
        found = Counter[Entry]()
        presented = []
        wanted = len(self.denied) + len(self.may_have_presented)
        new: list[Entry] = []
        if wanted:
            request = audit_pb2.ListAuditEntriesRequest(page_size=wanted)
            page = self.ask(self.watcher, "ListAuditEntries", request).entries
            new = [self._entry(item) for item in reversed(page) if item.sequence > len(self.entries)]
        for entry in new:
            if entry.action == ROTATED:
                presented.append(entry.actor)
                assert entry.reason == "UNAUTHENTICATED_CREDENTIAL"
                assert entry.object == f"token:{entry.credential_id}"
            else:
                found[entry] += 1

        assert found == expected
        assert len(presented) == len(set(presented))
        assert self.must_have_presented <= set(presented) <= self.may_have_presented
        self.entries += new
        self.denied.clear()
        self.may_have_presented.clear()
        self.must_have_presented.clear()

    # What holds after each of these.

    @invariant()
    def decisions_agree(self) -> None:
        """Check says of every live secret, and of its holder, what the model says; and that some dead ones are dead."""
        live, dead = self._live(), self._dead()
        affected = [secret for secret in live if secret in self.warm]
        self._compare_decisions(live + [secret for secret in dead if secret in self.warm] + self._sample(dead, 4), 3)
        for secret in {*self._sample(affected, 2), self.random.choice(live)}:
            self._compare_own_view(secret)

    @invariant()
    def the_dead_stay_dead(self) -> None:
        """What ended is refused: what worked a moment ago, and some of what is dead for longer."""
        dead = self._dead()
        for secret in {secret for secret in dead if secret in self.warm}.union(self._sample(dead, 1)):
            self._expect(secret, "WhoAmI", session_pb2.WhoAmIRequest(), "UNAUTHENTICATED_CREDENTIAL")
        self.warm.clear()

    @invariant()
    def the_log_is_whole(self) -> None:
        """One entry for each change, without gaps; the revision counts the changes."""
        verdict = self.ask(self.watcher, "VerifyAuditLog", audit_pb2.VerifyAuditLogRequest())
        newest = self.ask(self.watcher, "ListAuditEntries", audit_pb2.ListAuditEntriesRequest(page_size=3)).entries

        assert verdict.verdict == audit_pb2.AUDIT_VERDICT_WHOLE, verdict.problem
        assert verdict.entry_count == verdict.head.sequence == len(self.entries)
        assert [self._entry(item) for item in reversed(newest)] == self.entries[-3:]
        assert self.revision == sum(1 for entry in self.entries if not entry.reason)

    @invariant()
    def secrets_are_nowhere(self) -> None:
        """No secret that was ever handed out stands in what was written to the database."""
        assert not windows(self.written.since_last_time(self.organization), self.known)

    @invariant()
    def pages_joined_are_the_list(self) -> None:
        """Somebody's pages of tokens, and now and then those of the log, joined are all that they may see."""
        by = self.random.choice(self._live())
        kind = self.random.choice(["", "", "PERSONAL_TOKEN", "ORGANIZATION_TOKEN"])
        user_id = self.random.choice(["", "", self.random.choice(self.people).user_id])
        self._compare_list(by, kind, user_id, self.random.choice(["", "", "LIVE", "EXPIRED", "DELETED"]))
        if self.random.random() < 0.15:
            self._compare_log(by)

    def teardown(self) -> None:
        """Hold everything that ever was against the model once more."""
        if sys.exc_info()[0] is not None or not self.secrets:
            return
        self.write_down()
        self._compare_decisions(self.secrets, 10)
        for secret in self.secrets:
            if secret.live:
                self._compare_own_view(secret)
            else:
                self._expect(secret, "WhoAmI", session_pb2.WhoAmIRequest(), "UNAUTHENTICATED_CREDENTIAL")
        self._compare_list(self.watcher, "", "", "")
        self._compare_log(self.watcher)
        self.write_down()
        self.the_log_is_whole()
        shown = self._own_organization()
        owners = sum(person.present and person.role in OWNERS for person in self.people)
        assert (shown.display_name, shown.revision, shown.etag) == (
            self.display_name,
            self.revision,
            self.organization_etag,
        )
        assert len(shown.warnings) == (1 if owners == 1 else 0)
        rows = self.storage.read(partial(self._rows, tables=t.metadata.sorted_tables))
        assert not windows("\n".join(rows), self.known)
        self.spent.secrets |= self.known
        self.spent.runs += 1

    # How a call is made, and what the model says of it.

    def attempt(self, by: Secret, method: str, request: Any) -> None:
        """Make a call that may change something; see that it does what the model says, and nothing else."""
        note(f"{by.cred.actor} ({by.cred.role}, {by.cred.restriction}) {method} {request}")
        key = (by.cred.actor, method, getattr(request, "request_id", ""))
        first = self.answers.get(key) if key[2] else None
        body = request.SerializeToString(deterministic=True)
        if key[2]:
            self.repeatable.append((by.cred, method, request))
        expected = self._verdict(by, method, request)
        if first is not None and expected in ("", "TOKEN_NOT_FOUND"):
            # What the first one was answered comes before what has become of the token since.
            expected = "" if first[0] == body else "REQUEST_ID_REUSED"
        elif not expected:
            expected = self._late_verdict(by.cred, method, request)
        idle = not expected and not first and method == "DeleteToken" and self._find(request.id).deleted
        unchanged = bool(expected or first or idle)
        before = self.storage.read(self._state) if unchanged else ([], set())

        answer = self._expect(by, method, request, expected)

        if unchanged:
            rows, remembered = self.storage.read(self._state)
            assert rows == before[0]
            # That nothing was left to do is remembered too, and is no change.
            assert remembered >= before[1]
            assert len(remembered) - len(before[1]) == bool(idle and key[2])
        if answer is None:
            return
        if first is not None:
            assert answer == first[1]
            return
        if idle:
            assert (answer.revision, answer.token.id) == (self.revision, request.id)
        else:
            self._done(by, method, request, answer)
        if key[2]:
            kept = copy.deepcopy(answer)
            if method in ("CreatePersonalToken", "CreateOrganizationToken", "RotateToken"):
                kept.secret, kept.secret_lost = "", True
            self.answers[key] = (body, kept)

    def ask(self, by: Secret, method: str, request: Message) -> Any:
        """The answer to a call that must succeed."""
        return self._expect(by, method, request, "")

    def _expect(self, by: Secret, method: str, request: Any, expected: str) -> Any:
        """The answer, or None where the call failed for the reason that was expected."""
        if not by.live and by.cred.live and by.rotated:
            self.may_have_presented.add(by.cred.actor)
            if not by.presented_dead:
                self.must_have_presented.add(by.cred.actor)
                by.presented_dead = True
        file = SERVICES[method].DESCRIPTOR
        [service] = file.services_by_name.values()
        call: Any = self.channel.unary_unary(f"/{service.full_name}/{method}", response_deserializer=bytes)
        metadata = (("authorization", f"Bearer {by.text}"),)
        try:
            raw = call(request.SerializeToString(), timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            code, reason, everything = failure_of(error)
            assert not windows(everything, self.known)
            assert (code, reason) == (STATUSES.get(expected), expected), (method, everything)
            if expected in DENIALS:
                self._note_denial(by.cred, method, expected, getattr(request, "id", ""))
            return None
        assert not expected, f"{method} succeeded"
        answer = getattr(SERVICES[method], f"{method}Response").FromString(raw)
        # A new secret is not known yet.
        assert not windows(raw.decode("latin-1"), self.known)
        shown = TOKEN.findall(raw.decode("latin-1"))
        assert shown == ([answer.secret] if getattr(answer, "secret", "") else [])
        return answer

    def _note_denial(self, cred: Cred, method: str, reason: str, token_id: str) -> None:
        key = (cred.actor, method, reason)
        first = self.denied.get(key)
        count = (first.count or 0) + 1 if first else 1
        about = f"token:{token_id}" if token_id else ""
        about, shown = (first.object, first.credential_id) if first else (about, cred.id)
        self.denied[key] = Entry(cred.actor, method, about, reason, shown, count)

    def _verdict(self, by: Secret, method: str, request: Any) -> str:
        """The reason why the caller may not, by the requirements; empty where they may."""
        self.presenting = by
        if not by.live:
            return "UNAUTHENTICATED_CREDENTIAL"
        if request.organization not in ("", self.organization):
            return "ORGANIZATION_NOT_FOUND"
        match method:
            case "CreatePersonalToken":
                return self._may_create_personal(by.cred, request)
            case "CreateOrganizationToken":
                return self._may_create_for_program(by.cred, request)
            case "RotateToken":
                return self._may_rotate(by.cred, request)
            case "DeleteToken":
                return self._may_delete(by.cred, request)
            case "UpdateOrganization":
                return "" if has(by.cred.may, "account", "manage") else "PERMISSION_MISSING"
            case _:
                return ""

    def _late_verdict(self, by: Cred, method: str, request: Any) -> str:
        """Why somebody who may can't, as things are; of no matter to a repeated request."""
        if method == "UpdateOrganization":
            return "ETAG_MISMATCH" if request.etag not in ("", self.organization_etag) else ""
        if method in ("CreatePersonalToken", "CreateOrganizationToken"):
            return "INVALID_FIELD" if self._is_out_of_time(by, request) else ""
        if method not in ("RotateToken", "DeleteToken"):
            return ""
        cred = self._find(request.id)
        if method == "RotateToken" and not cred.live:
            return "TOKEN_NOT_FOUND"
        if request.etag in ("", cred.etag) or cred.deleted:
            return ""
        return "ETAG_MISMATCH"

    def _may_create_personal(self, cred: Cred, request: Any) -> str:
        if self._is_ill_formed(request):
            return "INVALID_FIELD"
        if cred.person is None:
            return "PERSON_ONLY"
        if not has(cred.may, "personal-tokens", "create"):
            return "PERMISSION_MISSING"
        return self._may_restrict(cred, request, cred.role)

    def _may_create_for_program(self, cred: Cred, request: Any) -> str:
        if self._is_ill_formed(request):
            return "INVALID_FIELD"
        return self._may_give(cred, request.role) or self._may_restrict(cred, request, request.role)

    def _may_give(self, cred: Cred, role: str) -> str:
        """Rule 4: whether an organization's token of this role may be made."""
        if cred.person is None:
            return "PERSON_ONLY"
        if not has(cred.may, "organization-tokens", "create"):
            return "PERMISSION_MISSING"
        if role not in MAY:
            return "UNKNOWN_ROLE_NAME"
        return "ROLE_BEYOND_CALLER" if role in OWNERS or ROLE_MASKS[role] & ~cred.may else ""

    def _may_restrict(self, cred: Cred, request: Any, role: str) -> str:
        """Rule 3: what is made lies within what makes it."""
        wanted = restriction_of(request)
        if wanted is None:
            return "" if cred.restriction is None else "ROLE_BEYOND_CALLER"
        for pattern in wanted:
            points = mask(frozenset([pattern]))
            if not is_named(pattern):
                return "INVALID_FIELD"
            if points & ~cred.may:
                return "ROLE_BEYOND_CALLER"
            if points & ~ROLE_MASKS[role]:
                return "INVALID_FIELD"
        return ""

    def _may_rotate(self, cred: Cred, request: Any) -> str:
        if not 0 <= request.overlap.seconds <= 24 * 3600:
            return "INVALID_FIELD"
        token = self._find(request.id)
        if token.gone or cred.person is None or token.person is not cred.person:
            if cred.person is None:
                return "PERSON_ONLY"
            if not has(cred.may, "organization-tokens", "create"):
                return "PERMISSION_MISSING"
            if token.gone or token.person is not None:
                return "TOKEN_NOT_FOUND"
            if problem := self._may_give(cred, token.role):
                return problem
        longer = cred.kind is not CredentialKind.SESSION and token.expire_time > self.presenting.end
        return "ROLE_BEYOND_CALLER" if token.bound & ~cred.bound or longer else ""

    def _may_delete(self, cred: Cred, request: Any) -> str:
        token = self._find(request.id)
        if not token.gone and (token is cred or (token.person is not None and token.person is cred.person)):
            return "ROLE_BEYOND_CALLER" if token.bound & ~cred.bound else ""
        others, programs = has(cred.may, "member-tokens", "delete"), has(cred.may, "organization-tokens", "delete")
        if not others and not programs:
            return "PERMISSION_MISSING"
        if token.gone or not (others if token.person else programs):
            return "TOKEN_NOT_FOUND"
        beyond = token.role in OWNERS or ROLE_MASKS[token.role] & ~cred.may
        if token.person and beyond and not has(cred.may, "owners", "update"):
            return "PERMISSION_MISSING"
        return ""

    def _is_ill_formed(self, request: Any) -> bool:
        return bool(request.HasField("restriction") and not request.restriction.permissions)

    def _is_out_of_time(self, cred: Cred, request: Any) -> bool:
        """Whether the expiry that is asked for is none that may be had."""
        which = request.WhichOneof("expiry")
        if which is None:
            return False
        at = now()
        until = at + request.ttl.seconds * SECOND if which == "ttl" else micros(request.expire_time)
        beyond = cred.kind is not CredentialKind.SESSION and until > self.presenting.end
        return not at < until <= at + 365 * DAY or beyond

    def _done(self, by: Secret, method: str, request: Any, answer: Any) -> None:
        """Have the model do what the server did, and compare what it answers."""
        self.presenting = by
        self.revision += 1
        target = f"organization:{self.organization}"
        match method:
            case "CreatePersonalToken" | "CreateOrganizationToken":
                cred = self._new_token(by.cred, method, request, answer)
                self._compare_token(answer.token, cred)
                target = f"token:{cred.id}"
            case "RotateToken":
                cred = self._find(request.id)
                until = now() + request.overlap.seconds * SECOND
                for secret in cred.secrets:
                    secret.until = until if secret.until is None else min(secret.until, until)
                self._made(cred, answer.secret)
                cred.etag = answer.token.etag
                self._compare_token(answer.token, cred)
                target = f"token:{cred.id}"
            case "DeleteToken":
                cred = self._find(request.id)
                cred.deleted, cred.etag = True, answer.token.etag
                self._compare_token(answer.token, cred)
                target = f"token:{cred.id}"
            case "SignOut":
                by.cred.deleted, by.cred.etag = True, None
                target = f"token:{by.cred.id}"
            case _:
                self.display_name, self.organization_etag = request.display_name, answer.organization.etag
                assert answer.organization.display_name == request.display_name
        assert answer.revision == self.revision
        self.entries.append(Entry(by.cred.actor, method, target, "", by.cred.id))

    def _new_token(self, maker: Cred, method: str, request: Any, answer: Any) -> Cred:
        shown = answer.token
        created, expires = micros(shown.create_time), micros(shown.expire_time)
        bound = None if maker.kind is CredentialKind.SESSION else self.presenting.end
        match request.WhichOneof("expiry"):
            case "ttl":
                asked = created + request.ttl.seconds * SECOND
            case "expire_time":
                asked = micros(request.expire_time)
            case _:
                asked = min(created + 90 * DAY, bound or created + 90 * DAY)
        # The expiry is reckoned a moment before the row is made.
        assert asked - 20 * SECOND < expires <= asked
        assert bound is None or expires <= bound
        assert maker.person is not None
        personal = method == "CreatePersonalToken"
        kind = CredentialKind.PERSONAL if personal else CredentialKind.ORGANIZATION
        assert answer.secret.startswith(f"{kind}_{shown.id}_")
        assert not answer.secret_lost
        person, role = (maker.person, "") if personal else (None, request.role)
        restriction = restriction_of(request)
        maker_id = maker.person.user_id
        cred = Cred(shown.id, kind, person, role, request.name, restriction, maker_id, created, expires, shown.etag)
        self._made(cred, answer.secret)
        return cred

    # What the server shows, held against the model.

    def _compare_decisions(self, secrets: Sequence[Secret], questions: int) -> None:
        items, expected = [], []
        persons = [person for person in self.people if self.random.random() < 0.3]
        for secret in secrets:
            points = self.random.sample(POINTS, questions - 1) if questions > 3 else []
            points += [self.random.choice(PERMISSIONS), self.random.choice(sorted(MAY[secret.cred.role]))]
            if secret.cred.restriction:
                points += [p for p in (self.random.choice(secret.cred.restriction),) if p in POINTS]
            for resource, action in points:
                asked = {"action": action, "resource": resource}
                items.append(authorization_pb2.BatchCheckItem(subject_token=secret.text, **asked))
                if secret.cred.live and secret.rotated:
                    self.may_have_presented.add(secret.cred.actor)
                expected.append(self._reason(secret.cred if secret.live else None, resource, action))
                items.append(authorization_pb2.BatchCheckItem(subject=f"token:{secret.cred.id}", **asked))
                expected.append(self._reason(secret.cred if secret.cred.live else None, resource, action))
                if secret.cred.person:
                    items.append(authorization_pb2.BatchCheckItem(subject=secret.cred.actor, **asked))
                    expected.append(self._person_reason(secret.cred.person, resource, action))
        for person in persons:
            resource, action = self.random.choice(PERMISSIONS)
            asked = {"action": action, "resource": resource}
            items.append(authorization_pb2.BatchCheckItem(subject=f"user:{person.user_id}", **asked))
            expected.append(self._person_reason(person, resource, action))
        theirs = {"action": "view", "resource": "members"}
        items.append(authorization_pb2.BatchCheckItem(subject_token=self.site.tokens[TOP], **theirs))
        expected.append("TOKEN_INVALID")
        for start in range(0, len(items), 1000):
            request = authorization_pb2.BatchCheckRequest(
                checks=items[start : start + 1000], at_least_revision=self.revision
            )
            answer = self.ask(self.watcher, "BatchCheck", request)
            assert answer.revision == self.revision
            for item, result, reason in zip(request.checks, answer.results, expected[start:], strict=False):
                found = authorization_pb2.Reason.Name(result.reason).removeprefix("REASON_")
                allowed = result.decision == authorization_pb2.DECISION_ALLOW
                assert (allowed, found) == (reason == "GRANTED", reason), item

    def _reason(self, cred: Cred | None, resource: str, action: str) -> str:
        if cred is None:
            return "TOKEN_INVALID"
        reason = self._role_reason(cred.role, resource, action)
        return "TOKEN_SCOPE" if reason == "GRANTED" and not has(cred.may, resource, action) else reason

    def _person_reason(self, person: Person, resource: str, action: str) -> str:
        return self._role_reason(person.role, resource, action) if person.present else "NOT_A_MEMBER"

    def _role_reason(self, role: str, resource: str, action: str) -> str:
        if has(ROLE_MASKS[role], resource, action):
            return "GRANTED"
        if resource.partition("/")[0] not in TYPES:
            return "UNKNOWN_RESOURCE"
        return "NOT_GRANTED" if action in ACTIONS else "UNKNOWN_ACTION"

    def _compare_own_view(self, secret: Secret) -> None:
        """The credential itself finds that it may what the model says, and no more than its holder."""
        cred = secret.cred
        view = self.ask(secret, "WhoAmI", session_pb2.WhoAmIRequest())
        held = mask(frozenset((item.resource, item.action) for item in view.permissions))
        kind = f"CREDENTIAL_KIND_{cred.kind.name}{'' if cred.kind is CredentialKind.SESSION else '_TOKEN'}"

        assert view.role == cred.role
        assert held == cred.may
        assert not held & ~ROLE_MASKS[cred.role]
        assert view.credential.id == cred.id
        # The server reckoned a rotation's end a moment before the model did.
        assert secret.end - 20 * SECOND < micros(view.credential.expire_time) <= secret.end
        assert shared_pb2.CredentialKind.Name(view.credential.kind) == kind
        resource, action = self.random.choice(PERMISSIONS)
        request = authorization_pb2.CheckRequest(subject=f"token:{cred.id}", resource=resource, action=action)
        own = self.ask(secret, "Check", request)
        assert (own.decision == authorization_pb2.DECISION_ALLOW) == has(cred.may, resource, action)
        if cred.person and not has(cred.may, "authorization", "check"):
            other = self.people[0] if cred.person is not self.people[0] else self.people[1]
            request.subject = f"user:{other.user_id}"
            # A question is no management: it goes into no log.
            self._expect_question_refused(secret, request)

    def _expect_question_refused(self, secret: Secret, request: Message) -> None:
        denied = dict(self.denied)
        self._expect(secret, "Check", request, "PERMISSION_MISSING")
        self.denied = denied

    def _compare_token(self, shown: Any, cred: Cred) -> None:
        assert shown.id == cred.id
        assert shared_pb2.CredentialKind.Name(shown.kind) == f"CREDENTIAL_KIND_{cred.kind.name}_TOKEN"
        assert (shown.name, shown.user_id) == (cred.name, cred.person.user_id if cred.person else "")
        assert (shown.created_by, shown.role) == (cred.created_by, cred.role)
        assert restriction_of(shown) == cred.restriction
        assert (shown.prefix, shown.last_four) == (cred.kind, cred.secrets[-1].text[-4:])
        assert (micros(shown.create_time), micros(shown.expire_time)) == (cred.create_time, cred.expire_time)
        assert token_pb2.TokenState.Name(shown.state) == f"TOKEN_STATE_{cred.state}"
        assert cred.etag in (None, shown.etag)

    def _compare_list(self, by: Secret, kind: str, user_id: str, state: str) -> None:
        request = token_pb2.ListTokensRequest(user_id=user_id, page_size=self.random.choice([1, 2, 3, 5, 8, 50, 1000]))
        if kind:
            request.kind = shared_pb2.CredentialKind.Value(f"CREDENTIAL_KIND_{kind}")
        if state:
            request.state = token_pb2.TokenState.Value(f"TOKEN_STATE_{state}")
        may = by.cred.may
        programs, others = has(may, "organization-tokens", "view"), has(may, "member-tokens", "view")
        own = by.cred.person.user_id if by.cred.person else ""
        if kind == "ORGANIZATION_TOKEN":
            refusal = "INVALID_FIELD" if user_id else "" if programs else "PERMISSION_MISSING"
        else:
            refusal = "PERMISSION_MISSING" if user_id not in ("", own) and not others else ""
        if refusal:
            self._expect(by, "ListTokens", request, refusal)
            return
        wanted = [
            cred
            for cred in self.creds
            if cred.kind is not CredentialKind.SESSION
            and not cred.gone
            and kind in ("", f"{cred.kind.name}_TOKEN")
            and state in ("", cred.state)
            and (
                (others or cred.person.user_id == own) and user_id in ("", cred.person.user_id)
                if cred.person
                else not user_id and (programs or (cred is by.cred and not kind))
            )
        ]
        wanted.sort(key=lambda cred: (cred.create_time, cred.id), reverse=True)
        found = self._joined(by, "ListTokens", request, "tokens", len(wanted))
        assert [shown.id for shown in found] == [cred.id for cred in wanted]
        for shown, cred in zip(found, wanted, strict=True):
            self._compare_token(shown, cred)

    def _compare_log(self, by: Secret) -> None:
        request = audit_pb2.ListAuditEntriesRequest(page_size=self.random.choice([3, 5, 7, 20, 1000]))
        if not has(by.cred.may, "audit-logs", "view"):
            self._expect(by, "ListAuditEntries", request, "PERMISSION_MISSING")
            return
        found = self._joined(by, "ListAuditEntries", request, "entries", len(self.entries))[::-1]

        assert [item.sequence for item in found] == list(range(1, len(self.entries) + 1))
        assert [self._entry(item) for item in found] == self.entries

    def _joined(self, by: Secret, method: str, request: Any, items: str, expected: int) -> list[Any]:
        """The items of all pages."""
        found: list[Any] = []
        for page in itertools.count(1):
            answer = self.ask(by, method, request)
            found += getattr(answer, items)
            if not answer.next_page_token:
                assert page == max(1, -(-expected // request.page_size))
                return found
            assert len(getattr(answer, items)) == request.page_size
            assert page * request.page_size < expected
            request.page_token = answer.next_page_token
        raise AssertionError("counting never ends")

    def _entry(self, item: Any) -> Entry:
        count = None
        if item.outcome == audit_pb2.AUDIT_OUTCOME_DENIED and item.action != ROTATED:
            count = int(item.details["count"])
        assert bool(item.reason) == (item.outcome == audit_pb2.AUDIT_OUTCOME_DENIED)
        return Entry(item.actor, item.action, item.object, item.reason, item.credential_id, count)

    def _own_organization(self) -> Any:
        request = organization_pb2.GetOrganizationRequest()
        return self.ask(self.watcher, "GetOrganization", request).organization

    # Small things.

    def _state(self, tx: Transaction) -> tuple[list[str], set[str]]:
        """What only a change may alter, and what is remembered of requests."""
        return self._rows(tx, BUSINESS), set(self._rows(tx, [t.requests]))

    def _rows(self, tx: Transaction, tables: Sequence[Any]) -> list[str]:
        """The organization's rows as text. That a credential was used is no change."""
        lines = []
        for table in tables:
            where = table.c.id if table is t.organizations else table.c.organization
            columns = [column for column in table.c if column.name != "last_used_time"]
            lines += sorted(map(repr, tx.connection.execute(select(*columns).where(where == self.organization))))
        return lines

    def _by_operator(self, action: str, target: str, work: Any) -> None:
        """Change rows as an RPC would, with an entry in the log."""

        note(f"{action} {target}")

        def recorded(tx: Transaction) -> None:
            work(tx)
            self.log.record(tx, Event(self.organization, OPERATOR, action, target))

        self.storage.mutate(self.organization, recorded)
        self.revision += 1
        self.entries.append(Entry(OPERATOR, action, target, "", ""))

    def _open_session(self, person: Person) -> None:
        minted, at = credentials.mint(CredentialKind.SESSION), now()
        new = NewCredential(
            minted, self.organization, person.user_id, None, "", None, person.user_id, at, at + 12 * HOUR
        )
        self._by_operator("SignIn", f"token:{minted.id}", lambda tx: credential_rows.add(tx, new))
        kind = CredentialKind.SESSION
        cred = Cred(minted.id, kind, person, "", "", None, person.user_id, at, at + 12 * HOUR, None)
        self._made(cred, minted.text)

    def _made(self, cred: Cred, secret: str) -> Secret:
        if not cred.secrets:
            self.creds.append(cred)
        made = Secret(cred, secret)
        cred.secrets.append(made)
        self.secrets.append(made)
        assert letters(secret) not in self.known
        self.known.add(letters(secret))
        return made

    def _find(self, token_id: str) -> Cred:
        """The token of this id; one that is gone where there is none, or it is a session."""
        nobody = Person("", "", ROLES[0], present=False)
        nothing = Cred(token_id, CredentialKind.PERSONAL, nobody, "", "", None, "", 0, 0, "")
        found = next((cred for cred in self.creds if cred.id == token_id), nothing)
        return nothing if found.kind is CredentialKind.SESSION else found

    def _create_personal(self) -> None:
        by = self._minter()
        message = token_pb2.CreatePersonalTokenRequest(name=f"token {next(self.numbers)}")
        self._wish(message, by.cred, ROLE_MASKS[by.cred.role])
        self.attempt(by, "CreatePersonalToken", message)

    def _create_organization_token(self) -> None:
        by = self._minter()
        within = [role for role in ROLES if not ROLE_MASKS[role] & ~by.cred.may and role not in OWNERS]
        role = self.random.choice(within) if within and self.random.random() < 0.7 else self.random.choice(ROLES)
        role = "JESTER" if self.random.random() < 0.03 else role
        message = token_pb2.CreateOrganizationTokenRequest(name=f"program {next(self.numbers)}", role=role)
        self._wish(message, by.cred, ROLE_MASKS.get(role, 0))
        self.attempt(by, "CreateOrganizationToken", message)

    def _wish(self, message: Any, by: Cred, bound: int) -> None:
        """Fill in expiry, restriction and request_id: mostly such as may be had."""
        chance = self.random.random()
        wanted: list[Pattern] | None = None
        if chance < 0.45:
            good = [one for one in PERMISSIONS + BENEATH if not mask(frozenset([one])) & ~(by.may & bound)]
            wanted = self._sample(good, self.random.choice([1, 2, 5, 100]))
            wanted += [one for one in MINTING if one in good and one not in wanted and self.random.random() < 0.6]
        elif chance < 0.6 or (by.restriction is not None and chance < 0.9):
            role = self.random.choice(ROLES)
            common = MAY[role] & set(by.restriction or MAY[role])
            wanted = sorted(one for one in common if not mask(frozenset([one])) & ~bound)
        elif chance < 0.7:
            wanted = self._sample(PERMISSIONS + BENEATH + ODD, self.random.choice([0, 1, 3]))
        if wanted is not None:
            message.restriction.CopyFrom(restriction_message(wanted))
        life = self.random.choice(LIVES)
        if life is not None and self.random.random() < 0.5:
            message.expire_time.CopyFrom(timestamp(now() + life))
        elif life is not None:
            message.ttl.CopyFrom(Duration(seconds=life // SECOND))
        message.request_id = self._request_id()

    def _request_id(self) -> str:
        return self.random.choice(self.request_ids) if self.random.random() < 0.5 else ""

    def _etag(self, present: str | None) -> str:
        return self.random.choice(["", "", "", present or "", present or "", "0"])

    def _sample(self, items: Sequence[T], number: int) -> list[T]:
        return self.random.sample(items, min(len(items), number))

    def _warm(self, *creds: Cred) -> None:
        """Have the server remember the credentials, that it may forget them in time."""
        live = [secret for cred in creds for secret in cred.secrets if secret.live]
        for secret in self._sample(live, 3):
            self._compare_own_view(secret)
            self.warm.add(secret)

    def _live(self) -> list[Secret]:
        return [secret for secret in self.secrets if secret.live]

    def _dead(self) -> list[Secret]:
        return [secret for secret in self.secrets if not secret.live]

    def _live_but_the_watcher(self) -> list[Secret]:
        return [secret for secret in self._live() if secret.cred is not self.watcher.cred]

    def _held_by(self, person: Person) -> list[Cred]:
        return [cred for cred in self.creds if cred.person is person]

    def _others(self) -> list[Person]:
        """The members other than the first owner."""
        return [person for person in self.people[1:] if person.present]

    def _addresses_left(self) -> list[str]:
        """The addresses of those who were removed and are not back."""
        present = {person.email for person in self.people if person.present}
        return list(dict.fromkeys(person.email for person in self.people if person.email not in present))

    def _caller(self) -> Secret:
        return self.random.choice(self._live())

    def _minter(self) -> Secret:
        """Mostly one who may make tokens."""
        able = [one for one in self._live() if has(one.cred.may, "personal-tokens", "create") and one.cred.person]
        return self.random.choice(able) if self.random.random() < 0.8 else self._caller()

    def _target(self, by: Secret | None) -> Cred:
        """A credential other than the watcher's: one of the caller's own, one that lives, or any."""
        others = [cred for cred in self.creds if cred is not self.watcher.cred]
        own = [
            cred for cred in others if by and cred.actor == by.cred.actor and cred.kind is not CredentialKind.SESSION
        ]
        chance = self.random.random()
        if own and chance < 0.4:
            return self.random.choice(own)
        live = [cred for cred in others if cred.live and cred.kind is not CredentialKind.SESSION]
        return self.random.choice(live if live and chance < 0.85 else others)


def everywhere(site: Site) -> str:
    """All that the database holds, and for SQLite the bytes of its files too."""
    content = site.server.storage.read(dump)
    if site.settings.database.startswith("sqlite"):
        file = Path(site.settings.database.removeprefix("sqlite:///"))
        content += "".join(path.read_bytes().decode("latin-1") for path in file.parent.glob(f"{file.name}*"))
    return content


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("database_url", "runs"),
    [pytest.param(kind, runs, id=f"{kind}-{number}") for number, (kind, runs) in enumerate(SHARDS)],
    indirect=["database_url"],
)
def test_credentials_do_what_the_model_says(
    make_site: MakeSite, database_url: str, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order, credentials may what the policy says, the dead stay dead, and all is recorded."""
    monkeypatch.setattr(callers, "FAILURES_AT_ONCE", 10**9)
    monkeypatch.setattr(directory, "GUESSES_AT_ONCE", 10**9)
    site = make_site(database_url, connection_seconds=86_400)
    # Refusals are written down when the machine says so.
    site.server._core.background.stop()
    log, channel, spent = AuditLog(keys.read(site.settings.key_file)), site.channel(), Spent()
    written = written_to(site.storage, database_url)

    run_machine(
        cast("type[TokenMachine]", lambda: TokenMachine(site, log, channel, written, spent)),
        settings=hypothesis_settings(
            max_examples=runs,
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

    assert spent.runs >= runs
    content = everywhere(site)
    assert not TOKEN.findall(content)
    assert not windows(content, spent.secrets)
