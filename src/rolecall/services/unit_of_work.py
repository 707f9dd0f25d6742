"""Unit of work: a change is authorized, made at most once, audited, and committed as a whole or not at all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Generic, TypeAlias, TypeVar

from pydantic import TypeAdapter

from rolecall.audit import AuditLog, Event
from rolecall.domain import Caller, now
from rolecall.errors import EtagMismatch, RequestIdReused, RolecallError, StorageUnavailable
from rolecall.identity.authentication import Authenticator
from rolecall.policy import Policy
from rolecall.policy.reload import LivePolicy, PolicyChanged
from rolecall.services.caller_permissions import require
from rolecall.storage import Rollback, Storage, Transaction
from rolecall.storage import idempotency as request_rows
from rolecall.storage.idempotency import Request

__all__ = [
    "Answer",
    "ChangeContext",
    "ChangeRequest",
    "DryRun",
    "Outcome",
    "SignedIn",
    "UnauthenticatedCall",
    "Unchanged",
    "UnitOfWork",
    "Written",
    "require_etag",
]

# docs/concepts.md, API conventions: a request may be repeated for 24 hours.
REPEAT_MICROSECONDS = 24 * 60 * 60 * 1_000_000
# Policies under which one change is tried, where they are replaced meanwhile.
MAX_POLICIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Answer to a change. `revision`, the organization's, is set by `UnitOfWork`; effects leave it out."""

    revision: int = 0


A = TypeVar("A", bound=Answer)
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """Request of an authenticated caller for a change: the RPC, the id of the call, and what identifies a repetition.

    `request_id` is the client's UUID, empty for none. `body` is the SHA-256 of the request. `confirm` raises if the
    client has cancelled the call.
    """

    caller: Caller
    action: str
    call_id: str
    request_id: str = ""
    body: bytes = b""
    confirm: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class UnauthenticatedCall:
    """Call without a credential: the RPC, the id of the call, and the peer (the client's address or IPv6 network).

    `confirm` raises if the client has cancelled the call.
    """

    action: str
    call_id: str
    peer: str
    confirm: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class ChangeContext:
    """Transaction of a change, with the policy, the caller and the time (`at`) that hold within it."""

    tx: Transaction
    policy: Policy
    caller: Caller
    at: int

    def require(self, action: str, resource: str) -> None:
        """Raise `PermissionMissing` unless the caller may do `action` on `resource`."""
        require(self.policy, self.caller, action, resource)


@dataclass(frozen=True, slots=True)
class _Result(Generic[A]):
    """Result of a transaction, with the answer for the caller."""

    answer: A


@dataclass(frozen=True, slots=True)
class Written(_Result[A]):
    """Outcome of an effect that wrote: it is committed. `object` and `details` go into the audit log."""

    object: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SignedIn(Written[A]):
    """Outcome of an unauthenticated caller's effect: the member whom a mailed secret identified, and their session."""

    user_id: str = ""
    session_id: str = ""


@dataclass(frozen=True, slots=True)
class Unchanged(_Result[A]):
    """Outcome of an effect that found everything as requested already: it is rolled back, and its answer stored."""


@dataclass(frozen=True, slots=True)
class DryRun(_Result[A]):
    """Outcome of an effect that only validates: it is rolled back, and its answer is not stored.

    The same `request_id` can stand for the change itself afterwards.
    """


@dataclass(frozen=True, slots=True)
class _Repeated(_Result[A]):
    """First answer to a request that is repeated now: the transaction is rolled back."""


Outcome: TypeAlias = Written[A] | Unchanged[A] | DryRun[A]


class UnitOfWork:
    """Runs changes in transactions. Thread-safe."""

    def __init__(self, storage: Storage, authenticator: Authenticator, live: LivePolicy, log: AuditLog) -> None:
        self._storage = storage
        self._authenticator = authenticator
        self._live = live
        self._log = log

    def run(
        self,
        request: ChangeRequest,
        kind: type[A],
        authorize: Callable[[ChangeContext], S],
        effect: Callable[[ChangeContext, S], Outcome[A]],
        *,
        stored_as: Callable[[A], A] = lambda answer: answer,
    ) -> A:
        """Run a change; return its answer, of the type `kind`, after it is committed with its audit entry.

        `authorize` raises unless the caller may make the change, and returns what it read for the effect. It runs
        twice: before anything is locked, so that refused callers delay nobody, and again in the transaction of the
        change. `effect` writes, and its outcome decides between commit and rollback. Either function may be retried.
        `stored_as` returns the answer without its secret, as it is stored for repetitions of the request.
        Raises what both functions raise, `UnauthenticatedCredential`, `RequestIdReused`, `WriteConflict`,
        `StorageUnavailable`.
        """
        caller = request.caller
        stored = _StoredAnswer(request, kind, stored_as)

        def authorized(context: ChangeContext) -> S | _Repeated[A]:
            try:
                return authorize(context)
            except RolecallError as error:
                # The repeated request may fail just because the first one had its effect.
                if error.status in ("NOT_FOUND", "ALREADY_EXISTS") and (first := stored.find(context.tx, context.at)):
                    return first
                raise

        def outcome_in(context: ChangeContext) -> Outcome[A] | _Repeated[A]:
            found = authorized(context)
            if isinstance(found, _Repeated):
                return found
            return stored.find(context.tx, context.at) or effect(context, found)

        def work(tx: Transaction) -> _Result[A] | Rollback[_Result[A]]:
            policy = self._live.policy_in(tx)
            present = self._authenticator.reload(tx, caller)
            context = ChangeContext(tx, policy, present, now())
            outcome = outcome_in(context)
            match outcome:
                case Written():
                    return self._complete(
                        tx,
                        request,
                        outcome,
                        organization=caller.organization,
                        actor=caller.actor,
                        credential_id=caller.credential_id,
                        store=lambda answer: stored.add(tx, answer, context.at),
                    )
                case Unchanged() | DryRun():
                    answer = replace(outcome.answer, revision=tx.previous_revision)
                    return Rollback(replace(outcome, answer=answer))
                case _Repeated():
                    return Rollback(outcome)

        # The transaction answers repeated requests, as it reads the caller again.
        self._with_policy_in_force(
            lambda: self._storage.read(
                lambda tx: authorized(ChangeContext(tx, self._live.policy_in(tx), caller, now())),
            )
        )
        result = self._with_policy_in_force(lambda: self._storage.mutate(caller.organization, work))
        if isinstance(result, Unchanged):
            return stored.add_after_rollback(self._storage, result.answer)
        return result.answer

    def run_unauthenticated(
        self, call: UnauthenticatedCall, organization: str, effect: Callable[[Transaction, Policy, int], SignedIn[A]]
    ) -> A:
        """Run the change of a caller without a credential; return its answer after it is committed and audited.

        `effect` gets the transaction, the policy and the time, identifies the caller, and writes; it may be retried.
        Raises what it raises, `OrganizationNotFound`, `WriteConflict`, `StorageUnavailable`.
        """

        def work(tx: Transaction) -> Written[A]:
            signed_in = effect(tx, self._live.policy_in(tx), now())
            return self._complete(
                tx,
                call,
                signed_in,
                organization=organization,
                actor=f"user:{signed_in.user_id}",
                credential_id=signed_in.session_id,
            )

        return self._with_policy_in_force(lambda: self._storage.mutate(organization, work)).answer

    def _with_policy_in_force(self, transaction: Callable[[], S]) -> S:
        """Run a transaction again where the policy in force in it is another one. Raises what it raises."""
        for _ in range(MAX_POLICIES):
            try:
                return transaction()
            except PolicyChanged:
                self._live.catch_up()
        raise StorageUnavailable("The policy is being replaced again and again: try again in a second.")

    def _complete(
        self,
        tx: Transaction,
        call: ChangeRequest | UnauthenticatedCall,
        written: Written[A],
        *,
        organization: str,
        actor: str,
        credential_id: str,
        store: Callable[[A], None] = lambda _: None,
    ) -> Written[A]:
        """Add the audit entry and the stored answer to the transaction, and set the revision that it makes."""
        answer = replace(written.answer, revision=tx.revision)
        event = Event(
            organization, actor, call.action, written.object, written.details, credential_id, call_id=call.call_id
        )
        self._log.record(tx, event)
        store(answer)
        call.confirm()
        return replace(written, answer=answer)


class _StoredAnswer(Generic[A]):
    """Stored answer to one request, which its repetitions get; none for a request without a `request_id`."""

    def __init__(self, request: ChangeRequest, kind: type[A], stored_as: Callable[[A], A]) -> None:
        caller = request.caller
        self._request = Request(caller.organization, caller.actor, request.action, request.request_id, request.body)
        # For the type checker, a type isn't hashable.
        self._adapter: TypeAdapter[A] = _adapter(kind)  # type: ignore[arg-type]
        self._stored_as = stored_as

    def find(self, tx: Transaction, at: int) -> _Repeated[A] | None:
        """Find the first answer to the request; None where it is new. Raises `RequestIdReused` for another body."""
        request = self._request
        first = request_rows.answer_to(tx, request, at - REPEAT_MICROSECONDS) if request.request_id else None
        if first is None:
            return None
        body, answer = first
        if body != request.body:
            raise RequestIdReused(
                f"The request_id {request.request_id} was used for another {request.action}: create a new UUID.",
                field="request_id",
            )
        return _Repeated(self._adapter.validate_json(answer))

    def add(self, tx: Transaction, answer: A, at: int) -> None:
        """Store the answer, in the transaction of the change."""
        if self._request.request_id:
            text = self._adapter.dump_json(self._stored_as(answer)).decode()
            request_rows.add(tx, self._request, text, at, at - REPEAT_MICROSECONDS)

    def add_after_rollback(self, storage: Storage, answer: A) -> A:
        """Store the answer in a transaction of its own, and return the one that is stored in the end."""

        def work(tx: Transaction) -> A:
            at = now()
            # Another call may have used the request_id since the rollback.
            if first := self.find(tx, at):
                return first.answer
            self.add(tx, answer, at)
            return answer

        return storage.write(work) if self._request.request_id else answer


@lru_cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """JSON reader and writer for answers of this type; building one takes a millisecond."""
    return TypeAdapter(kind)


def require_etag(given: str, present: str, field: str = "etag") -> None:
    """Raise `EtagMismatch` for `field` where an etag is given that differs from the present one."""
    if given and given != present:
        raise EtagMismatch(
            f"The resource has changed since the etag `{given[:32]}` was read: read it again before the next attempt.",
            field=field,
            etag=present,
        )
