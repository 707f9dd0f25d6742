"""How every change through the API is made: authorized, at most once, recorded, wholly or not at all."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from rolecall.audit import AuditLog, Event
from rolecall.directory import Directory
from rolecall.domain import Caller, now
from rolecall.errors import EtagMismatch, RequestIdReused, RolecallError
from rolecall.live_policy import LivePolicy
from rolecall.policy import Policy
from rolecall.rights import require
from rolecall.storage import Storage, Transaction
from rolecall.storage import requests as request_rows
from rolecall.storage.requests import Request

__all__ = ["Arrival", "Attempt", "Done", "Entered", "Forgettable", "Moment", "Mutations", "Unchanged", "require_etag"]

T = TypeVar("T")
S = TypeVar("S")

# Design, section 3: how long a request may be repeated.
REPEAT_MICROSECONDS = 24 * 60 * 60 * 1_000_000


@dataclass(frozen=True, slots=True)
class Attempt:
    """A caller's attempt at a change: the RPC, the id of the call, and what tells a repeated request from another one.

    `body` is the SHA-256 of the request. `confirm` raises where the caller has given up waiting.
    """

    caller: Caller
    action: str
    call_id: str
    request_id: str = ""
    body: bytes = b""
    confirm: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Arrival:
    """A stranger's call, without a credential: the RPC, the id of the call, whom its address stands for.

    `confirm` raises where the stranger has given up waiting.
    """

    action: str
    call_id: str
    peer: str
    confirm: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Moment:
    """The caller, the policy and the rows as they are together within one transaction."""

    tx: Transaction
    policy: Policy
    caller: Caller
    at: int

    def require(self, action: str, resource: str) -> None:
        """Raise `PermissionMissing` unless the caller may do `action` on `resource`."""
        require(self.policy, self.caller, action, resource)


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """A change that was written: the answer, what it was done to, and the details for the audit log."""

    answer: T
    object: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entered(Done[T]):
    """What somebody did who came without a credential: the person whom they proved to be, and their new session."""

    user_id: str = ""
    session_id: str = ""


class Unchanged(Exception, Generic[T]):
    """Raised where nothing is to be changed, as all is as the caller wants it already: `answer` is given."""

    def __init__(self, answer: T) -> None:
        super().__init__("nothing to do")
        self.answer = answer


class Forgettable(Unchanged[T]):
    """Raised where it was only asked what would be: the request's id may stand for the change itself then."""


class _Repeated(Unchanged[T]):
    """The request is a repeated one, and this was its first answer."""


class Mutations:
    """Makes changes. Threads may share it."""

    def __init__(self, storage: Storage, directory: Directory, live: LivePolicy, log: AuditLog) -> None:
        self._storage = storage
        self._directory = directory
        self._live = live
        self._log = log

    def run(
        self,
        attempt: Attempt,
        kind: type[T],
        authorize: Callable[[Moment], S],
        effect: Callable[[Moment, S], Done[T]],
        *,
        kept: Callable[[T], T] = lambda answer: answer,
    ) -> T:
        """The answer, of the type `kind`, after the change is committed with its audit entry.

        `authorize` raises where the caller may not, and answers what it found out. It runs twice: before anything is
        locked, so that who is refused holds nobody up, and again in the transaction of the change. `effect` writes.
        Either may run again. Of the answer, `kept` is what a repeated request gets: without its secret.
        Raises what they raise, `UnauthenticatedCredential`, `RequestIdReused`, `WriteConflict`, `StorageUnavailable`.
        """
        # For the type checker, a type isn't hashable.
        answers: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]
        caller = attempt.caller
        request = Request(caller.organization, caller.actor, attempt.action, attempt.request_id, attempt.body)

        def authorized(moment: Moment) -> S:
            try:
                return authorize(moment)
            except RolecallError as error:
                # What the first of repeated requests did may be what is in its way now.
                if request.request_id and error.status in ("NOT_FOUND", "ALREADY_EXISTS"):
                    _require_new(moment.tx, request, moment.at, answers)
                raise

        def work(tx: Transaction) -> T:
            present = self._directory.again(tx, caller)
            moment = Moment(tx, self._live.in_force.policy, present, now())
            found = authorized(moment)
            if request.request_id:
                _require_new(tx, request, moment.at, answers)
            done = effect(moment, found)
            event = Event(
                caller.organization,
                caller.actor,
                attempt.action,
                done.object,
                done.details,
                caller.credential_id,
                attempt.call_id,
            )
            self._log.record(tx, event)
            keep(tx, done.answer, moment.at)
            attempt.confirm()
            return done.answer

        def keep(tx: Transaction, answer: T, at: int) -> None:
            if request.request_id:
                text = answers.dump_json(kept(answer)).decode()
                request_rows.add(tx, request, text, at, at - REPEAT_MICROSECONDS)

        def keep_unchanged(tx: Transaction, answer: T) -> None:
            # Another request may have come by the same id meanwhile.
            _require_new(tx, request, now(), answers)
            keep(tx, answer, now())

        try:
            # What a repeated request gets is for the transaction to say, which reads the caller anew.
            with suppress(Unchanged):
                self._storage.read(lambda tx: authorized(Moment(tx, self._live.in_force.policy, caller, now())))
            try:
                return self._storage.mutate(caller.organization, work)
            except Unchanged as unchanged:
                answer: T = unchanged.answer
                if request.request_id and not isinstance(unchanged, _Repeated | Forgettable):
                    self._storage.write(lambda tx: keep_unchanged(tx, answer))
                return answer
        except _Repeated as repeated:
            first: T = repeated.answer
            return first

    def enter(self, arrival: Arrival, organization: str, effect: Callable[[Transaction, Policy, int], Entered[T]]) -> T:
        """The answer after a stranger's change is committed with its audit entry.

        `effect` is told the transaction, the policy and the moment, finds out who it is, and writes; it may run again.
        Raises what it raises, `OrganizationNotFound`, `WriteConflict`, `StorageUnavailable`.
        """

        def work(tx: Transaction) -> T:
            entered = effect(tx, self._live.in_force.policy, now())
            event = Event(
                organization,
                f"user:{entered.user_id}",
                arrival.action,
                entered.object,
                entered.details,
                entered.session_id,
                arrival.call_id,
            )
            self._log.record(tx, event)
            arrival.confirm()
            return entered.answer

        return self._storage.mutate(organization, work)


@lru_cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """Writes answers of this type as JSON, and reads them; takes a millisecond to make."""
    return TypeAdapter(kind)


def require_etag(given: str, present: str) -> None:
    """Raise `EtagMismatch` where an etag is given that isn't the present one."""
    if given and given != present:
        raise EtagMismatch(
            f"It has changed since the etag `{given[:32]}` was read: read it again, and see if you still want this.",
            field="etag",
            etag=present,
        )


def _require_new(tx: Transaction, request: Request, at: int, answers: TypeAdapter[T]) -> None:
    """Raise `_Repeated` with its first answer where the request is a repeated one."""
    first = request_rows.answer_to(tx, request, at - REPEAT_MICROSECONDS)
    if first is None:
        return
    body, answer = first
    if body != request.body:
        raise RequestIdReused(
            f"The request_id {request.request_id} stands for another {request.action} already: make a new UUID.",
            field="request_id",
        )
    raise _Repeated(answers.validate_json(answer))
