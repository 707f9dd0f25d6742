"""One call on the fast lane: its caller, its message, its answer. Its tags happen in the thread that polls.

What an event leads to catches everything: an exception that escapes would end that thread, and all calls with it.
"""

import time
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from typing import Any

import grpc
import structlog
from google.rpc import status_pb2
from grpc_status import rpc_status

from rolecall.errors import RateLimited
from rolecall.server import native
from rolecall.server.calls import REQUEST_ID, Call, GivenUp, Method, peer_of
from rolecall.server.lane import Lane, Tag
from rolecall.server.status import status_of
from rolecall.storage import WouldWait

__all__ = ["FastCall", "cut_off", "tell", "tell_failure"]

# What is larger takes long to parse.
MAX_AT_ONCE_BYTES = 64 * 1024

_TOO_MANY = "Too many calls are waiting: try again in a moment."
_log = structlog.get_logger("rolecall.fastlane")


class FastCall(Call, Tag):
    """One call; the tag of its message."""

    __slots__ = (
        "_answer",
        "_call",
        "_details",
        "_gone",
        "_is_parked",
        "_message",
        "_method",
        "_threads",
        "lacking",
        "lane",
    )

    def __init__(self, lane: Lane, method: Method, threads: futures.Executor, event: Any) -> None:
        """`threads` do what must wait."""
        # Not by `super`, which takes as long again.
        self.action = method.action
        self.request_id, self.authorization = lane.calls.read(event.invocation_metadata)
        self.lane = lane
        self._method = method
        self._threads = threads
        self._call = event.call
        self._details = event.call_details
        self._message: bytes | None = None
        self._answer: bytes | status_pb2.Status | None = None
        self._gone = False
        self._is_parked = False
        # What it needs that isn't in memory, if that may be read together with what others need.
        self.lacking: Any = None

    def message(self) -> bytes | None:
        return self._message

    def peer(self) -> str:
        return peer_of(self._call.peer().decode())

    def confirm(self) -> None:
        if self._is_given_up():
            raise GivenUp

    def cancel(self) -> None:
        """Cut it off."""
        cut_off(self._call)

    def begin(self) -> None:
        """Ask for its message, once its sender is known. Raises whatever fails."""
        try:
            refused = self.lane.calls.admit(self._method, self)
        except WouldWait:
            self._hand_over(self._introduce)
            return
        if refused:
            self._send(refused)
        else:
            self._receive()

    def happen(self, event: Any) -> None:
        """The message is there, or none is to come."""
        lane = self.lane
        try:
            lane.unheard.discard(self)
            if event.success:
                self._message = event.batch_operations[0].message()
            if self._method.at_once and len(self._message or b"") <= MAX_AT_ONCE_BYTES:
                lane.is_due(self)
            else:
                self._hand_over_whole()
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._fail(error)

    def prepare(self) -> bool:
        """Reckon the answer, if that takes no waiting. Answers whether the call is to be finished. Raises nothing."""
        try:
            if self._is_parked:
                self._answer = self._given_up() or self.lane.calls.admit(self._method, self)
            if self._answer is None:
                self._answer = self.lane.calls.answer(self._method, self)
        except WouldWait as waiting:
            # What was read for it once isn't read like this again and again.
            self.lacking = None if self._is_parked else waiting.lacking
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._fail(error)
            return False
        return True

    def finish(self) -> bool:
        """Send the answer that was prepared, or have it waited for; False where it lacks what others may too.

        Raises nothing.
        """
        try:
            if self._answer is not None:
                if self._is_parked:
                    self.lane.waiting.let_go(self)
                self._send(self._answer)
            elif self.lacking is None:
                self._hand_over_whole()
            else:
                return False
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._fail(error)
        return True

    def _receive(self) -> None:
        self.lane.unheard.add(self)
        native.take_message(self._call, self)

    def _hand_over_whole(self) -> None:
        # It is told when the client gives up.
        native.watch(self._call, _End(self))
        self._hand_over(self.work)

    def park(self) -> bool:
        """Have it wait for `do`, `drop` or `prepare`; False where it isn't to be done any more. Raises nothing.

        That takes no longer than to be told of a client that gives up.
        """
        try:
            self._is_parked = True
            return self._is_taken_in()
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._fail(error)
            return False

    def drop(self, error: Exception) -> None:
        """Give it up after it was parked."""
        self._fail(error)

    def end(self, event: Any) -> None:
        """Note that it is over, and whether its client gave up."""
        self._gone = bool(event.batch_operations[0].cancelled())

    def _hand_over(self, work: Callable[[], None]) -> None:
        """Have it done by a thread that may wait, if there is room."""
        if not self._is_taken_in():
            return
        try:
            self._threads.submit(self.do, work)
        except BaseException:
            self.lane.waiting.let_go(self)
            raise

    def _is_taken_in(self) -> bool:
        """Whether there is room for it to wait; it is told so where there isn't."""
        waiting = self.lane.waiting
        if waiting.take_in(self, len(self._message or b"")):
            return True
        # It may have been, before.
        waiting.let_go(self)
        self._send(status_of(RateLimited(_TOO_MANY), self.request_id))
        return False

    def do(self, work: Callable[[], None]) -> None:
        """Do it, unless the client has given up. Raises nothing."""
        try:
            # Before its message comes, as it may wait for a thread once more then.
            self.lane.waiting.let_go(self)
            if given_up := self._given_up():
                self._send(given_up)
            else:
                work()
        except Exception as error:  # noqa: BLE001 - nobody looks after a thread's work
            self._fail(error)

    def _introduce(self) -> None:
        """Learn who calls, and ask for the message then."""
        if refused := self.lane.calls.admit(self._method, self):
            self._send(refused)
        else:
            self._receive()

    def refuse(self, error: Exception) -> None:
        """Say that something failed which it needs."""
        self._send(self.lane.calls.fail(self._method, self, error))

    def work(self) -> None:
        """Answer it, however long that takes."""
        calls, method = self.lane.calls, self._method
        # It may have waited for a thread while its caller was removed.
        self._send(calls.admit(method, self) or calls.answer(method, self))

    def _send(self, answer: bytes | status_pb2.Status) -> None:
        request_id = (REQUEST_ID, self.request_id)
        if isinstance(answer, bytes):
            native.send_answer(self._call, answer, (request_id,), self.lane.sent)
            return
        status = rpc_status.to_status(answer)
        trailers = (*status.trailing_metadata, request_id)
        native.send_status(self._call, status.code.value[0], status.details.encode(), trailers, self.lane.sent)

    def _given_up(self) -> status_pb2.Status | None:
        """What a client is told that gave up while the call waited for a thread; None where it didn't."""
        if not self._is_given_up():
            return None
        code = grpc.StatusCode.DEADLINE_EXCEEDED if self._is_late() else grpc.StatusCode.CANCELLED
        return status_pb2.Status(code=code.value[0])

    def _is_given_up(self) -> bool:
        return self._gone or self._is_late()

    def _is_late(self) -> bool:
        return bool(self._details.deadline < time.time())

    def _fail(self, error: Exception) -> None:
        self.cancel()
        tell("a call failed", self._method, error, self.request_id)
        with suppress(Exception):
            self.lane.waiting.let_go(self)


class _End(Tag):
    """The tag of a call's end."""

    __slots__ = ("_call", "lane")

    def __init__(self, call: FastCall) -> None:
        self.lane = call.lane
        self._call = call

    def happen(self, event: Any) -> None:
        try:
            self._call.end(event)
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            with suppress(Exception):
                _log.error("a call's end was lost", request_id=self._call.request_id, exc_info=error)


def cut_off(call: Any) -> None:
    """Cancel grpc's `call`, if it isn't over."""
    try:
        call.cancel()
    except Exception:  # noqa: BLE001 - it may be over
        with suppress(Exception):
            _log.debug("a call was over already")


def tell(what: str, method: Method, error: Exception, request_id: str = "") -> None:
    """Log it. The thread that polls goes on where even that fails."""
    tell_failure(what, error, method=method.name, request_id=request_id)


def tell_failure(what: str, error: Exception, **told: str) -> None:
    """The same of what belongs to no one call."""
    with suppress(Exception):
        _log.error(what, **told, exc_info=error)
