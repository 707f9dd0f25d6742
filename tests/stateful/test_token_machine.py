"""Credentials, members and requests in any order against a plain model, through a real server on both databases."""

import copy
import itertools
import re
import sys
import uuid
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar, cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, note
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from sqlalchemy import delete, select, update

from rolecall.audit import OPERATOR, AuditLog, Event
from rolecall.credentials import server_key, token_format
from rolecall.domain import CredentialKind, Member, now
from rolecall.services import organizations
from rolecall.storage import Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import tables as t
from rolecall.storage.changes import record_change
from rolecall.storage.credentials import NewCredential
from rolecall.v1 import audit_pb2, authorization_pb2, organization_pb2, session_pb2, shared_pb2, token_pb2
from stateful.credential_model import SHIPPED, CredentialRules, ExpectedEntry, Pattern, Person
from stateful.database_writes import DatabaseWrites, find_secrets, secret_part, writes_to
from stateful.token_messages import dump, micros, refusal_of, restriction_message, restriction_of, timestamp
from stateful.token_model import DAY, HOUR, SECOND, ModelCredential, Secret
from support.environment import CI
from support.sites import QUICK_LIMITS, MakeSite, Site, without_rates

STEPS = 40
# How many runs each test makes, and how many tests share the runs on one kind of database.
SHARDS = [("sqlite", 75)] * 4 + [("postgresql", 30)] * 2 if CI else [("sqlite", 6), ("postgresql", 3)]

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
RULES = CredentialRules(SHIPPED)
DENIALS = {reason for reason, code in STATUSES.items() if code is grpc.StatusCode.PERMISSION_DENIED}

TOKEN = re.compile(r"rc[pos]_[0-9A-Za-z]{22}_[0-9A-Za-z]{49}")
BUSINESS = (t.organizations, t.members, t.credentials, t.retired_secrets, t.changes)

T = TypeVar("T")


class IssuedSecrets:
    """All secrets that a test has issued, over all its runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.secrets: set[str] = set()


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
    """State machine of one organization, its people, and every credential that was ever created there."""

    def __init__(
        self, site: Site, log: AuditLog, channel: grpc.Channel, written: DatabaseWrites, issued: IssuedSecrets
    ) -> None:
        super().__init__()
        self.site = site
        self.storage = site.server.storage
        self.log = log
        self.channel = channel
        self.written = written
        self.issued = issued
        self.organization = f"run-{uuid.uuid4().hex}"
        self.people: list[Person] = []
        self.creds: list[ModelCredential] = []
        self.secrets: list[Secret] = []
        self.known: set[str] = set()
        self.entries: list[ExpectedEntry] = []
        self.denied: dict[tuple[str, str, str], ExpectedEntry] = {}
        # Presented secrets of deleted tokens, and from before rotations, by token and action.
        self.misused: dict[tuple[str, str], ExpectedEntry] = {}
        self.answers: dict[tuple[str, str, str], tuple[bytes, Message]] = {}
        self.repeatable: list[tuple[ModelCredential, str, Message]] = []
        self.request_ids = [str(uuid.uuid4()) for _ in range(6)]
        self.revision = 1
        self.display_name = self.organization
        self.numbers = itertools.count(1)
        self.random = Random(0)
        # Secrets that were presented just before an event changed them.
        self.warm: set[Secret] = set()

    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        """Create the organization, with a member for each role, sessions for all of them, and tokens of many kinds."""
        self.random = Random(seed)
        policy = self.site.server.live.in_force.policy
        made = organizations.create(self.storage, self.log, policy, self.organization, "ann@acme.io", demo=True)
        self.people = [Person(member.user_id, member.email, member.role) for member in (made.owner, *made.others)]
        self.entries.append(ExpectedEntry(OPERATOR, "CreateOrganization", f"organization:{self.organization}", ""))
        first = ModelCredential(
            made.token.id,
            made.token.kind,
            self.people[0],
            "",
            None,
            OPERATOR,
            2**60,
            "",
            name="first owner",
            create_time=0,
        )
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
        """Create a personal token."""
        self.random = Random(seed)
        self._create_personal()

    @rule(seed=SEEDS)
    def create_organization_token(self, seed: int) -> None:
        """Create an organization's token."""
        self.random = Random(seed)
        self._create_organization_token()

    @rule(seed=SEEDS)
    def rotate(self, seed: int) -> None:
        """Rotate a token's secret."""
        self.random = Random(seed)
        by = self._caller()
        cred = self._target(by)
        overlap = self.random.choice(OVERLAPS)
        message = token_pb2.RotateTokenRequest(id=cred.id, etag=self._etag(cred.etag), request_id=self._request_id())
        if overlap:
            message.overlap.CopyFrom(Duration(seconds=overlap // SECOND))
        self._cache(cred)
        self.attempt(by, "RotateToken", message)

    @rule(seed=SEEDS)
    def delete(self, seed: int) -> None:
        """Delete a token."""
        self.random = Random(seed)
        by = self._caller()
        deleted = [cred for cred in self.creds if cred.deleted and not cred.gone]
        cred = self.random.choice(deleted) if deleted and self.random.random() < 0.25 else self._target(by)
        message = token_pb2.DeleteTokenRequest(id=cred.id, etag=self._etag(cred.etag), request_id=self._request_id())
        self._cache(cred)
        self.attempt(by, "DeleteToken", message)

    @rule(seed=SEEDS)
    def sign_out(self, seed: int) -> None:
        """Sign the presented credential out."""
        self.random = Random(seed)
        by = self._caller()
        if by.cred is not self.watcher.cred:
            self._cache(by.cred)
            self.attempt(by, "SignOut", session_pb2.SignOutRequest())

    @rule(seed=SEEDS)
    def rename(self, seed: int) -> None:
        """Give the organization another name."""
        self.random = Random(seed)
        message = organization_pb2.UpdateOrganizationRequest(
            organization=organization_pb2.Organization(
                display_name=f"Name {next(self.numbers)}", etag=self._etag(self.organization_etag)
            ),
            request_id=self._request_id(),
        )
        self.attempt(self._caller(), "UpdateOrganization", message)

    @precondition(lambda self: self.repeatable)
    @rule(seed=SEEDS)
    def repeat(self, seed: int) -> None:
        """Repeat a request, as it was or with another body."""
        self.random = Random(seed)
        first, method, message = self.random.choice(self.repeatable)
        callers = [secret for secret in self._live() if secret.cred.actor == first.actor]
        by = self.random.choice(callers) if callers and self.random.random() < 0.85 else self._caller()
        again = copy.deepcopy(cast("Any", message))
        if self.random.random() < 0.4:
            match method:
                case "UpdateOrganization":
                    again.organization.display_name += "!"
                case "DeleteToken":
                    again.etag = "0"
                case "RotateToken":
                    again.overlap.CopyFrom(Duration(seconds=7))
                case _:
                    again.display_name += "!"
        self.attempt(by, method, again)

    @precondition(lambda self: self._dead())
    @rule(seed=SEEDS)
    def try_dead_secret(self, seed: int) -> None:
        """Present a secret that no longer works."""
        self.random = Random(seed)
        method = self.random.choice(["RotateToken", "DeleteToken", "CreatePersonalToken", "SignOut"])
        message: Message = session_pb2.SignOutRequest()
        if method == "CreatePersonalToken":
            message = token_pb2.CreatePersonalTokenRequest(display_name="undead")
        elif method != "SignOut":
            message = getattr(token_pb2, f"{method}Request")(id=self._target(None).id)
        self.attempt(self.random.choice(self._dead()), method, message)

    @rule(seed=SEEDS)
    def try_other_organization(self, seed: int) -> None:
        """Name another organization, a token of one, or a token that doesn't exist."""
        self.random = Random(seed)
        theirs = self.site.tokens[RULES.owners[0]].split("_")[1]
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
        member, role = self.random.choice(self._others()), self.random.choice(RULES.roles)
        where = (t.members.c.organization == self.organization) & (t.members.c.user_id == member.id)

        def work(tx: Transaction) -> None:
            tx.connection.execute(update(t.members).where(where).values(role=role, update_time=now()))
            record_change(tx, self.organization, "member", member.id)

        self._cache(*self._held_by(member))
        self._by_operator("ChangeMemberRole", f"user:{member.id}", work)
        member.role = role

    @precondition(lambda self: self._others())
    @rule(seed=SEEDS)
    def remove(self, seed: int) -> None:
        """A member other than the first owner is removed."""
        self.random = Random(seed)
        member = self.random.choice(self._others())
        where = (t.members.c.organization == self.organization) & (t.members.c.user_id == member.id)

        def work(tx: Transaction) -> None:
            tx.connection.execute(delete(t.members).where(where))
            record_change(tx, self.organization, "member", member.id)

        self._cache(*self._held_by(member))
        self._by_operator("RemoveMember", f"user:{member.id}", work)
        member.present = False

    @precondition(lambda self: self._addresses_left())
    @rule(seed=SEEDS)
    def join_again(self, seed: int) -> None:
        """A removed member's address joins again, as a new person."""
        self.random = Random(seed)
        email, role, at = self.random.choice(self._addresses_left()), self.random.choice(RULES.roles), now()
        member = Member(self.organization, token_format.new_id(), email, email.partition("@")[0], role, at, at)
        self._by_operator("AddMember", f"user:{member.user_id}", lambda tx: member_rows.add(tx, member, email.lower()))
        self.people.append(Person(member.user_id, email, role))
        if self.random.random() < 0.7:
            self._open_session(self.people[-1])

    @precondition(lambda self: self._live_except_the_watcher())
    @rule(seed=SEEDS)
    def expire(self, seed: int) -> None:
        """Let a credential expire."""
        self.random = Random(seed)
        cred, at = self.random.choice(self._live_except_the_watcher()).cred, now() - SECOND

        def work(tx: Transaction) -> None:
            tx.connection.execute(update(t.credentials).where(t.credentials.c.id == cred.id).values(expire_time=at))
            record_change(tx, self.organization, "credential", cred.id)

        self._cache(cred)
        self._by_operator("ExpireCredential", f"token:{cred.id}", work)
        cred.expire_time = at

    @precondition(lambda self: any(secret.live and secret.until for secret in self.secrets))
    @rule(seed=SEEDS)
    def end_overlap(self, seed: int) -> None:
        """End the overlap of an old and a new secret."""
        self.random = Random(seed)
        old = self.random.choice([secret for secret in self.secrets if secret.live and secret.until])
        parsed, at = token_format.parse(old.text), now() - SECOND
        assert parsed is not None
        where = t.retired_secrets.c.digest == parsed.digest

        def work(tx: Transaction) -> None:
            tx.connection.execute(update(t.retired_secrets).where(where).values(expire_time=at))
            record_change(tx, self.organization, "credential", old.cred.id)

        self._cache(old.cred)
        self._by_operator("EndOverlap", f"token:{old.cred.id}", work)
        old.until = at

    @rule()
    def flush_background_writes(self) -> None:
        """Have the server write the refusals so far, and the last uses of credentials."""
        self.site.core.authenticator.last_used.flush()
        self.site.core.denials.flush(closing=True)
        self.site.core.misuses.flush(closing=True)
        expected = Counter([*self.denied.values(), *self.misused.values()])
        wanted = len(self.denied) + len(self.misused)
        new: list[ExpectedEntry] = []
        if wanted:
            request = audit_pb2.ListAuditEntriesRequest(page_size=wanted)
            page = self.ask(self.watcher, "ListAuditEntries", request).entries
            new = [self._entry(item) for item in reversed(page) if item.sequence > len(self.entries)]

        assert Counter(new) == expected
        self.entries += new
        self.denied.clear()
        self.misused.clear()

    # What holds after each of these.

    @invariant()
    def decisions_equal_the_model(self) -> None:
        """Check agrees with the model on every live secret and its holder, and denies some dead ones."""
        live, dead = self._live(), self._dead()
        affected = [secret for secret in live if secret in self.warm]
        self._compare_decisions(live + [secret for secret in dead if secret in self.warm] + self._sample(dead, 4), 3)
        for secret in {*self._sample(affected, 2), self.random.choice(live)}:
            self._compare_own_view(secret)

    @invariant()
    def dead_secrets_are_refused(self) -> None:
        """Dead secrets are refused: those that worked before the last event, and some older ones."""
        dead = self._dead()
        for secret in {secret for secret in dead if secret in self.warm}.union(self._sample(dead, 1)):
            self._expect(secret, "WhoAmI", session_pb2.WhoAmIRequest(), "UNAUTHENTICATED_CREDENTIAL")
        self.warm.clear()

    @invariant()
    def the_log_is_intact(self) -> None:
        """One entry for each change, without gaps; the revision counts the changes."""
        verdict = self.ask(self.watcher, "VerifyAuditLog", audit_pb2.VerifyAuditLogRequest())
        newest = self.ask(self.watcher, "ListAuditEntries", audit_pb2.ListAuditEntriesRequest(page_size=3)).entries

        assert verdict.verdict == audit_pb2.AUDIT_VERDICT_INTACT, verdict.problem
        assert verdict.entry_count == verdict.head.sequence == len(self.entries)
        assert [self._entry(item) for item in reversed(newest)] == self.entries[-3:]
        assert self.revision == sum(1 for entry in self.entries if not entry.reason)

    @invariant()
    def no_secret_is_written(self) -> None:
        """No secret that was ever returned is in the data written to the database."""
        assert not find_secrets(self.written.since_last_time(self.organization), self.known)

    @invariant()
    def joined_pages_are_complete(self) -> None:
        """A caller's pages of tokens, and in 15 % of the steps those of the log, joined are all that it may see."""
        by = self.random.choice(self._live())
        kind = self.random.choice(["", "", "PERSONAL_TOKEN", "ORGANIZATION_TOKEN"])
        user_id = self.random.choice(["", "", self.random.choice(self.people).id])
        self._compare_list(by, kind, user_id, self.random.choice(["", "", "ACTIVE", "EXPIRED", "DELETED"]))
        if self.random.random() < 0.15:
            self._compare_log(by)

    def teardown(self) -> None:
        """Compare all secrets and entries with the model once more."""
        if sys.exc_info()[0] is not None or not self.secrets:
            return
        self.flush_background_writes()
        self._compare_decisions(self.secrets, 10)
        for secret in self.secrets:
            if secret.live:
                self._compare_own_view(secret)
            else:
                self._expect(secret, "WhoAmI", session_pb2.WhoAmIRequest(), "UNAUTHENTICATED_CREDENTIAL")
        self._compare_list(self.watcher, "", "", "")
        self._compare_log(self.watcher)
        self.flush_background_writes()
        self.the_log_is_intact()
        shown = self._own_organization()
        owners = sum(person.present and person.role in RULES.owners for person in self.people)
        assert (shown.display_name, shown.revision, shown.etag) == (
            self.display_name,
            self.revision,
            self.organization_etag,
        )
        assert len(shown.warnings) == (1 if owners == 1 else 0)
        tables = [table for table in t.metadata.sorted_tables if table is t.organizations or "organization" in table.c]
        rows = self.storage.read(partial(self._rows, tables=tables))
        assert not find_secrets("\n".join(rows), self.known)
        self.issued.secrets |= self.known
        self.issued.runs += 1

    # How a call is made, and what the model says of it.

    def attempt(self, by: Secret, method: str, request: Any) -> None:
        """Make a call that may change rows; compare its answer and all rows with the model."""
        note(f"{by.cred.actor} ({by.cred.role}, {by.cred.restriction}) {method} {request}")
        key = (by.cred.actor, method, getattr(request, "request_id", ""))
        first = self.answers.get(key) if key[2] else None
        body = request.SerializeToString(deterministic=True)
        if key[2]:
            self.repeatable.append((by.cred, method, request))
        expected = self._refusal(by, method, request)
        if first is not None and expected in ("", "TOKEN_NOT_FOUND"):
            # A repetition gets the first answer, even where the token has changed since.
            expected = "" if first[0] == body else "REQUEST_ID_REUSED"
        elif not expected:
            expected = self._state_refusal(by.cred, method, request)
        idle = not expected and not first and method == "DeleteToken" and self._token(request.id).deleted
        unchanged = bool(expected or first or idle)
        before = self.storage.read(self._state) if unchanged else ([], set())

        answer = self._expect(by, method, request, expected)

        if unchanged:
            rows, remembered = self.storage.read(self._state)
            assert rows == before[0]
            # The answer that nothing had to be changed is stored too, and is no change.
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
        """Make a call that must succeed; return the answer."""
        return self._expect(by, method, request, "")

    def _expect(self, by: Secret, method: str, request: Any, expected: str) -> Any:
        """Make a call; return the answer, None where it failed for the expected reason."""
        self._note_misuse(by)
        file = SERVICES[method].DESCRIPTOR
        [service] = file.services_by_name.values()
        call: Any = self.channel.unary_unary(f"/{service.full_name}/{method}", response_deserializer=bytes)
        metadata = (("authorization", f"Bearer {by.text}"),)
        try:
            raw = call(request.SerializeToString(), timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            code, reason, everything = refusal_of(error)
            assert not find_secrets(everything, self.known)
            assert (code, reason) == (STATUSES.get(expected), expected), (method, everything)
            if expected in DENIALS:
                self._note_denial(by.cred, method, expected, getattr(request, "id", ""))
            return None
        assert not expected, f"{method} succeeded"
        answer = getattr(SERVICES[method], f"{method}Response").FromString(raw)
        # A new secret is not known yet.
        assert not find_secrets(raw.decode("latin-1"), self.known)
        shown = TOKEN.findall(raw.decode("latin-1"))
        assert shown == ([answer.secret] if getattr(answer, "secret", "") else [])
        return answer

    def _note_denial(self, cred: ModelCredential, method: str, reason: str, token_id: str) -> None:
        key = (cred.actor, method, reason)
        first = self.denied.get(key)
        count = (first.count or 0) + 1 if first else 1
        about = f"token:{token_id}" if token_id else ""
        about, shown = (first.object, first.credential_id) if first else (about, cred.id)
        self.denied[key] = ExpectedEntry(cred.actor, method, about, shown, reason, count)

    def _note_misuse(self, secret: Secret) -> None:
        if action := secret.misuse:
            cred = secret.cred
            first = self.misused.get((cred.id, action))
            count = (first.count or 0) + 1 if first else 1
            entry = ExpectedEntry(cred.actor, action, f"token:{cred.id}", cred.id, "UNAUTHENTICATED_CREDENTIAL", count)
            self.misused[cred.id, action] = entry

    def _refusal(self, by: Secret, method: str, request: Any) -> str:
        """Return the expected reason for which the caller is refused, by the rules; empty where it may."""
        self.presenting = by
        if not by.live:
            return "UNAUTHENTICATED_CREDENTIAL"
        named = request.organization.id if method == "UpdateOrganization" else request.organization
        if named not in ("", self.organization):
            return "ORGANIZATION_NOT_FOUND"
        match method:
            case "CreatePersonalToken" | "CreateOrganizationToken" if self._is_ill_formed(request):
                return "INVALID_FIELD"
            case "CreatePersonalToken":
                return RULES.makes_personal(by.cred, restriction_of(request))
            case "CreateOrganizationToken":
                wanted = restriction_of(request)
                return RULES.gives(by.cred, request.role) or RULES.restricts(by.cred, wanted, request.role)
            case "RotateToken" if not 0 <= request.overlap.seconds <= 24 * 3600:
                return "INVALID_FIELD"
            case "RotateToken":
                return RULES.rotates(by.cred, self._find(request.id), by.end)
            case "DeleteToken":
                return RULES.deletes(by.cred, self._find(request.id))
            case "UpdateOrganization":
                return RULES.needs(by.cred, "account", "manage")
            case _:
                return ""

    def _state_refusal(self, by: ModelCredential, method: str, request: Any) -> str:
        """Return the expected reason in the present state; it doesn't apply to repeated requests."""
        if method == "UpdateOrganization":
            return "ETAG_MISMATCH" if request.organization.etag not in ("", self.organization_etag) else ""
        if method in ("CreatePersonalToken", "CreateOrganizationToken"):
            return "INVALID_FIELD" if self._has_invalid_expiry(by, request) else ""
        if method not in ("RotateToken", "DeleteToken"):
            return ""
        cred = self._token(request.id)
        if method == "RotateToken" and not cred.live:
            return "TOKEN_NOT_FOUND"
        if request.etag in ("", cred.etag) or cred.deleted:
            return ""
        return "ETAG_MISMATCH"

    def _is_ill_formed(self, request: Any) -> bool:
        return bool(request.HasField("restriction") and not request.restriction.permissions)

    def _has_invalid_expiry(self, cred: ModelCredential, request: Any) -> bool:
        """Whether the requested expiry is refused."""
        which = request.WhichOneof("expiry")
        if which is None:
            return False
        at = now()
        until = at + request.ttl.seconds * SECOND if which == "ttl" else micros(request.expire_time)
        beyond = not cred.is_session and until > self.presenting.end
        return not at < until <= at + 365 * DAY or beyond

    def _done(self, by: Secret, method: str, request: Any, answer: Any) -> None:
        """Apply the request to the model, and compare the answer with it."""
        self.presenting = by
        self.revision += 1
        target = f"organization:{self.organization}"
        match method:
            case "CreatePersonalToken" | "CreateOrganizationToken":
                cred = self._new_token(by.cred, method, request, answer)
                self._compare_token(answer.token, cred)
                target = f"token:{cred.id}"
            case "RotateToken":
                cred = self._token(request.id)
                until = now() + request.overlap.seconds * SECOND
                for secret in cred.secrets:
                    secret.until = until if secret.until is None else min(secret.until, until)
                self._made(cred, answer.secret)
                cred.etag = answer.token.etag
                self._compare_token(answer.token, cred)
                target = f"token:{cred.id}"
            case "DeleteToken":
                cred = self._token(request.id)
                cred.deleted, cred.etag = True, answer.token.etag
                self._compare_token(answer.token, cred)
                target = f"token:{cred.id}"
            case "SignOut":
                by.cred.deleted, by.cred.etag = True, ""
                target = f"token:{by.cred.id}"
            case _:
                self.display_name = request.organization.display_name
                self.organization_etag = answer.organization.etag
                assert answer.organization.display_name == self.display_name
        assert answer.revision == self.revision
        self.entries.append(ExpectedEntry(by.cred.actor, method, target, by.cred.id))

    def _new_token(self, maker: ModelCredential, method: str, request: Any, answer: Any) -> ModelCredential:
        shown = answer.token
        created, expires = micros(shown.create_time), micros(shown.expire_time)
        bound = None if maker.is_session else self.presenting.end
        match request.WhichOneof("expiry"):
            case "ttl":
                asked = created + request.ttl.seconds * SECOND
            case "expire_time":
                asked = micros(request.expire_time)
            case _:
                asked = min(created + 90 * DAY, bound or created + 90 * DAY)
        # The expiry is computed a moment before the row is made.
        assert asked - 20 * SECOND < expires <= asked
        assert bound is None or expires <= bound
        assert maker.person is not None
        personal = method == "CreatePersonalToken"
        kind = CredentialKind.PERSONAL if personal else CredentialKind.ORGANIZATION
        assert answer.secret.startswith(f"{kind}_{shown.id}_")
        assert not answer.secret_lost
        person, role = (maker.person, "") if personal else (None, request.role)
        restriction = restriction_of(request)
        maker_id = maker.person.id
        cred = ModelCredential(
            *(shown.id, kind, person, role, restriction, maker_id, expires, shown.etag),
            name=request.display_name,
            create_time=created,
        )
        self._made(cred, answer.secret)
        return cred

    # Comparison of the server's answers with the model.

    def _compare_decisions(self, secrets: Sequence[Secret], questions: int) -> None:
        items, expected = [], []
        persons = [person for person in self.people if self.random.random() < 0.3]
        for secret in secrets:
            points = self.random.sample(RULES.universe, questions - 1) if questions > 3 else []
            points += [self.random.choice(RULES.permissions), self.random.choice(sorted(RULES.may[secret.cred.role]))]
            if secret.cred.restriction:
                points += [p for p in (self.random.choice(secret.cred.restriction),) if p in RULES.universe]
            for resource, action in points:
                asked: dict[str, Any] = {"action": action, "resource": resource}
                items.append(authorization_pb2.BatchCheckItem(subject_token=secret.text, **asked))
                self._note_misuse(secret)
                expected.append(self._reason(secret.cred if secret.live else None, resource, action))
                items.append(authorization_pb2.BatchCheckItem(subject=f"token:{secret.cred.id}", **asked))
                expected.append(self._reason(secret.cred if secret.cred.live else None, resource, action))
                if secret.cred.person:
                    items.append(authorization_pb2.BatchCheckItem(subject=secret.cred.actor, **asked))
                    expected.append(self._person_reason(secret.cred.person, resource, action))
        for person in persons:
            resource, action = self.random.choice(RULES.permissions)
            asked = {"action": action, "resource": resource}
            items.append(authorization_pb2.BatchCheckItem(subject=f"user:{person.id}", **asked))
            expected.append(self._person_reason(person, resource, action))
        theirs: dict[str, Any] = {"action": "view", "resource": "members"}
        items.append(authorization_pb2.BatchCheckItem(subject_token=self.site.tokens[RULES.owners[0]], **theirs))
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

    def _reason(self, cred: ModelCredential | None, resource: str, action: str) -> str:
        if cred is None:
            return "TOKEN_INVALID"
        reason = self._role_reason(cred.role, resource, action)
        return "TOKEN_SCOPE" if reason == "GRANTED" and not RULES.can(cred, resource, action) else reason

    def _person_reason(self, person: Person, resource: str, action: str) -> str:
        return self._role_reason(person.role, resource, action) if person.present else "NOT_A_MEMBER"

    def _role_reason(self, role: str, resource: str, action: str) -> str:
        if RULES.has(RULES.of_role[role], resource, action):
            return "GRANTED"
        if resource.partition("/")[0] not in RULES.types:
            return "UNKNOWN_RESOURCE"
        return "NOT_GRANTED" if action in RULES.actions else "UNKNOWN_ACTION"

    def _compare_own_view(self, secret: Secret) -> None:
        """Compare WhoAmI and Checks of the credential itself with the model; it may no more than its holder."""
        cred = secret.cred
        view = self.ask(secret, "WhoAmI", session_pb2.WhoAmIRequest())
        held = RULES.union((item.resource, item.action) for item in view.permissions)
        kind = f"CREDENTIAL_KIND_{cred.kind.name}{'' if cred.kind is CredentialKind.SESSION else '_TOKEN'}"

        assert view.role == cred.role
        assert held == RULES.held(cred)
        assert not held & ~RULES.of_role[cred.role]
        assert view.credential.id == cred.id
        # The server computed the end of a rotation slightly earlier than the model.
        assert secret.end - 20 * SECOND < micros(view.credential.expire_time) <= secret.end
        assert shared_pb2.CredentialKind.Name(view.credential.kind) == kind
        resource, action = self.random.choice(RULES.permissions)
        request = authorization_pb2.CheckRequest(subject=f"token:{cred.id}", resource=resource, action=action)
        own = self.ask(secret, "Check", request)
        assert (own.decision == authorization_pb2.DECISION_ALLOW) == RULES.can(cred, resource, action)
        if cred.person and not RULES.can(cred, "authorization", "check"):
            other = self.people[0] if cred.person is not self.people[0] else self.people[1]
            request.subject = f"user:{other.id}"
            # A question is no management: it goes into no log.
            self._expect_question_refused(secret, request)

    def _expect_question_refused(self, secret: Secret, request: Message) -> None:
        denied = dict(self.denied)
        self._expect(secret, "Check", request, "PERMISSION_MISSING")
        self.denied = denied

    def _compare_token(self, shown: Any, cred: ModelCredential) -> None:
        assert shown.id == cred.id
        assert shared_pb2.CredentialKind.Name(shown.kind) == f"CREDENTIAL_KIND_{cred.kind.name}_TOKEN"
        assert (shown.display_name, shown.user_id) == (cred.name, cred.person.id if cred.person else "")
        assert (shown.creator, shown.role) == (cred.creator, cred.role)
        assert restriction_of(shown) == cred.restriction
        assert (shown.prefix, shown.last_four) == (cred.kind, cred.secrets[-1].text[-4:])
        assert (micros(shown.create_time), micros(shown.expire_time)) == (cred.create_time, cred.expire_time)
        assert token_pb2.TokenState.Name(shown.state) == f"TOKEN_STATE_{cred.state}"
        assert cred.etag in ("", shown.etag)

    def _compare_list(self, by: Secret, kind: str, user_id: str, state: str) -> None:
        request = token_pb2.ListTokensRequest(user_id=user_id, page_size=self.random.choice([1, 2, 3, 5, 8, 50, 1000]))
        if kind:
            request.kind = shared_pb2.CredentialKind.Value(f"CREDENTIAL_KIND_{kind}")
        if state:
            request.state = token_pb2.TokenState.Value(f"TOKEN_STATE_{state}")
        request.show_deleted = self.random.random() < 0.5
        may = RULES.held(by.cred)
        programs, others = RULES.has(may, "organization-tokens", "view"), RULES.has(may, "member-tokens", "view")
        own = by.cred.person.id if by.cred.person else ""
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
            if not cred.is_session
            and not cred.gone
            and kind in ("", f"{cred.kind.name}_TOKEN")
            and (cred.state == state if state else request.show_deleted or cred.state != "DELETED")
            and (
                (others or cred.person.id == own) and user_id in ("", cred.person.id)
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
        if not RULES.can(by.cred, "audit-logs", "view"):
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

    def _entry(self, item: Any) -> ExpectedEntry:
        count = None
        if item.outcome == audit_pb2.AUDIT_OUTCOME_DENIED:
            count = int(item.details["count"])
        assert bool(item.reason) == (item.outcome == audit_pb2.AUDIT_OUTCOME_DENIED)
        return ExpectedEntry(item.actor, item.action, item.object, item.credential_id, item.reason, count)

    def _own_organization(self) -> Any:
        request = organization_pb2.GetOrganizationRequest()
        return self.ask(self.watcher, "GetOrganization", request).organization

    # Small things.

    def _state(self, tx: Transaction) -> tuple[list[str], set[str]]:
        """The rows that only a change may alter, and the stored requests."""
        return self._rows(tx, BUSINESS), set(self._rows(tx, [t.requests]))

    def _rows(self, tx: Transaction, tables: Sequence[Any]) -> list[str]:
        """The organization's rows as text. That a credential was used is no change."""
        lines = []
        for table in tables:
            where = table.c.id if table is t.organizations else table.c.organization
            columns = [column for column in table.c if column.name != "last_use_time"]
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
        self.entries.append(ExpectedEntry(OPERATOR, action, target, ""))

    def _open_session(self, person: Person) -> None:
        minted, at = token_format.mint(CredentialKind.SESSION), now()
        new = NewCredential(minted, self.organization, person.id, None, "", None, person.id, at, at + 12 * HOUR)
        self._by_operator("SignIn", f"token:{minted.id}", lambda tx: credential_rows.add(tx, new))
        kind = CredentialKind.SESSION
        cred = ModelCredential(
            minted.id, kind, person, "", None, person.id, at + 12 * HOUR, "", name="", create_time=at
        )
        self._made(cred, minted.text)

    def _made(self, cred: ModelCredential, secret: str) -> Secret:
        if not cred.secrets:
            self.creds.append(cred)
        made = Secret(cred, secret)
        cred.secrets.append(made)
        self.secrets.append(made)
        assert secret_part(secret) not in self.known
        self.known.add(secret_part(secret))
        return made

    def _find(self, token_id: str) -> ModelCredential | None:
        """The token with this id, live or not; neither a session nor a removed person's."""
        found = (cred for cred in self.creds if cred.id == token_id)
        return next((cred for cred in found if not cred.is_session and not cred.gone), None)

    def _token(self, token_id: str) -> ModelCredential:
        """Return the token with this id, which must exist."""
        found = self._find(token_id)
        assert found is not None
        return found

    def _create_personal(self) -> None:
        by = self._token_creator()
        message = token_pb2.CreatePersonalTokenRequest(display_name=f"token {next(self.numbers)}")
        self._fill_request(message, by.cred, RULES.of_role[by.cred.role])
        self.attempt(by, "CreatePersonalToken", message)

    def _create_organization_token(self) -> None:
        by = self._token_creator()
        within = [
            role for role in RULES.roles if not RULES.of_role[role] & ~RULES.held(by.cred) and role not in RULES.owners
        ]
        role = self.random.choice(within) if within and self.random.random() < 0.7 else self.random.choice(RULES.roles)
        role = "JESTER" if self.random.random() < 0.03 else role
        message = token_pb2.CreateOrganizationTokenRequest(display_name=f"program {next(self.numbers)}", role=role)
        self._fill_request(message, by.cred, RULES.of_role.get(role, 0))
        self.attempt(by, "CreateOrganizationToken", message)

    def _fill_request(self, message: Any, by: ModelCredential, bound: int) -> None:
        """Fill in expiry, restriction and request_id, mostly valid ones."""
        chance = self.random.random()
        wanted: list[Pattern] | None = None
        if chance < 0.45:
            good = [one for one in RULES.permissions + BENEATH if not RULES.points(one) & ~(RULES.held(by) & bound)]
            wanted = self._sample(good, self.random.choice([1, 2, 5, 100]))
            wanted += [one for one in MINTING if one in good and one not in wanted and self.random.random() < 0.6]
        elif chance < 0.6 or (by.restriction is not None and chance < 0.9):
            role = self.random.choice(RULES.roles)
            common = RULES.may[role] & set(by.restriction or RULES.may[role])
            wanted = sorted(one for one in common if not RULES.points(one) & ~bound)
        elif chance < 0.7:
            wanted = self._sample(RULES.permissions + BENEATH + ODD, self.random.choice([0, 1, 3]))
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

    def _etag(self, present: str) -> str:
        return self.random.choice(["", "", "", present, present, "0"])

    def _sample(self, items: Sequence[T], number: int) -> list[T]:
        return self.random.sample(items, min(len(items), number))

    def _cache(self, *creds: ModelCredential) -> None:
        """Have the server cache the credentials, so that it must invalidate them in time."""
        live = [secret for cred in creds for secret in cred.secrets if secret.live]
        for secret in self._sample(live, 3):
            self._compare_own_view(secret)
            self.warm.add(secret)

    def _live(self) -> list[Secret]:
        return [secret for secret in self.secrets if secret.live]

    def _dead(self) -> list[Secret]:
        return [secret for secret in self.secrets if not secret.live]

    def _live_except_the_watcher(self) -> list[Secret]:
        return [secret for secret in self._live() if secret.cred is not self.watcher.cred]

    def _held_by(self, person: Person) -> list[ModelCredential]:
        return [cred for cred in self.creds if cred.person is person]

    def _others(self) -> list[Person]:
        """The members other than the first owner."""
        return [person for person in self.people[1:] if person.present]

    def _addresses_left(self) -> list[str]:
        """The addresses of removed members who have not joined again."""
        present = {person.key for person in self.people if person.present}
        return list(dict.fromkeys(person.key for person in self.people if person.key not in present))

    def _caller(self) -> Secret:
        return self.random.choice(self._live())

    def _token_creator(self) -> Secret:
        """Choose a caller, mostly one who may create tokens."""
        able = [one for one in self._live() if RULES.can(one.cred, "personal-tokens", "create") and one.cred.person]
        return self.random.choice(able) if self.random.random() < 0.8 else self._caller()

    def _target(self, by: Secret | None) -> ModelCredential:
        """A credential other than the watcher's: one of the caller's own, one that lives, or any."""
        others = [cred for cred in self.creds if cred is not self.watcher.cred]
        own = [cred for cred in others if by and cred.actor == by.cred.actor and not cred.is_session]
        chance = self.random.random()
        if own and chance < 0.4:
            return self.random.choice(own)
        live = [cred for cred in others if cred.live and not cred.is_session]
        return self.random.choice(live if live and chance < 0.85 else others)


def all_data(site: Site) -> str:
    """Return all rows of the database as text, and for SQLite the bytes of its files too."""
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
def test_credentials_behave_as_the_model(make_site: MakeSite, database_url: str, runs: int) -> None:
    """In any order of events, credentials may do what the policy says, dead ones stay dead, and all is audited."""
    site = make_site(database_url, limits=without_rates(QUICK_LIMITS), connection_seconds=86_400)
    # Denials are recorded when the machine flushes them.
    site.core.background.stop()
    log, channel, issued = AuditLog(server_key.read(site.settings.key_file)), site.channel(), IssuedSecrets()
    written = writes_to(site.storage, database_url)

    run_machine(
        cast("type[TokenMachine]", lambda: TokenMachine(site, log, channel, written, issued)),
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

    assert issued.runs >= runs
    content = all_data(site)
    assert not TOKEN.findall(content)
    assert not find_secrets(content, issued.secrets)
