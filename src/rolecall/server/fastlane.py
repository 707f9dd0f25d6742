"""The fast lane: unary calls are received in the thread that polls grpc's queue, and answered there where they can be.

grpc's public server hands every call to a thread and back, which costs more than a Check does. For an event that isn't
its own, its polling thread calls the event's tag: so methods can be served inside the standard server, without its
threads. What would have to wait goes to them all the same (`WouldWait`). A call without a message holds no thread.

Under load the calls that are there are answered together: Python's part of one takes a third as long when it comes
right behind another's, as what grpc and the kernel do between two calls pushes it out of the processor's caches.

Watched health, reflection, streams, TLS and shutdown stay the standard server's.
"""

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import structlog

from rolecall.server.calls import Method
from rolecall.server.fastcall import FastCall, cut_off, tell
from rolecall.server.lane import Answering, Tag
from rolecall.server.native import NOTHING, Queue
from rolecall.server.threads import Threads
from rolecall.server.together import Together
from rolecall.server.unheard import Unheard
from rolecall.server.waiting import Waiting

__all__ = ["FastLane"]

# So many calls of each method may come in at once; more wait in grpc.
READY = 32
# So many calls are answered together, and none waits for others once so many looks in a row found nothing: grpc reads
# one socket at each, and not all bring a call.
TOGETHER = 32
LOOKS = 3
# Nor does the thread go to sleep before so many did, which takes some 20 µs: a processor that must be woken for the
# next call takes longer, and as much of its time (one call in flight: p50 89 to 56 µs, CPU 68 to 62 µs a call).
IDLE_LOOKS = 16
# The polling thread is stuck where it does one thing for so long.
STUCK_SECONDS = 30.0
WATCH_SECONDS = 0.5

_log = structlog.get_logger("rolecall.fastlane")


class FastLane:
    """Serves unary methods of a server that isn't started yet."""

    def __init__(
        self,
        server: grpc.Server,
        methods: Iterable[Method],
        calls: Answering,
        threads: Threads,
        on_poller: Callable[[int], None] = lambda _ident: None,
    ) -> None:
        """`calls` raise nothing but `WouldWait`, and that only in the thread whose id `on_poller` is told.

        What must wait runs in `threads`, which the lane doesn't close.
        """
        self.queue = Queue(server)
        self.calls = calls
        self.waiting = Waiting()
        self.threads = threads
        self.sent: Tag = _Sent(self)
        self.unheard = Unheard()
        # What should be ready for one more call: is to be, and failed to be.
        self.spent: list[_Reception] = []
        self.missing: list[_Reception] = []
        self._on_poller = on_poller
        self._poller: threading.Thread | None = None
        # The calls that are to be answered together, and whether one came already since nothing was to be done.
        self._due: list[FastCall] = []
        self._is_busy = False
        # How much the polling thread did, and whether it is at it.
        self._done = 0
        self._is_working = False
        # What threads have read for, and give back to it, and whether it will come to that.
        self._takes_back = False
        self._given_back: list[FastCall] = []
        self._guard = threading.Lock()
        self._together = Together(self)
        self._receptions = [_Reception(self, method) for method in methods]
        for reception in self._receptions:
            self.queue.register(reception.method.name)
        self._stopped = threading.Event()
        self._watch = threading.Thread(target=self._look_after, name="fastlane", daemon=True)

    def start(self) -> None:
        """Receive calls, once the server is started."""
        for reception in self._receptions:
            for _ in range(READY):
                reception.be_ready()
        self._watch.start()

    def stop(self) -> None:
        """Look after nothing any more; the server is to be stopped by its own means."""
        self._stopped.set()

    def work_off(self, event: Any) -> tuple[object, tuple[()]]:
        """Do what belongs to an event, and to all that are there besides. grpc's polling thread calls it.

        What was done for an event must be let go of before the next look: grpc's own loop says why.
        """
        if self._poller is None:
            self.meet_poller()
        self._is_working = self._takes_back = True
        self._is_busy = False
        answer: tuple[object, tuple[()]] = NOTHING
        while event is not None:
            self._done += 1
            if not isinstance(event.tag, Tag):
                # It may be the last one.
                while self._due or not self._fall_asleep():
                    self._answer_due()
                self.be_ready()
                answer = self.queue.pass_on(event)
                break
            event.tag.happen(event)
            event = None
            event = self._next()
        self._is_working = False
        return answer

    def give_back(self, calls: list[FastCall]) -> bool:
        """Have the polling thread answer calls of which nothing is lacking any more; False where it is asleep."""
        with self._guard:
            if self._takes_back:
                self._given_back += calls
            return self._takes_back

    def _fall_asleep(self) -> bool:
        """Be given nothing back any more; False where something was."""
        with self._guard:
            self._takes_back = bool(self._given_back)
            return not self._takes_back

    def is_due(self, call: FastCall) -> None:
        """Have a call answered: at once where it comes alone, else with those that are there besides."""
        if self._is_busy:
            self._due.append(call)
        else:
            self._is_busy = True
            if call.prepare() and not call.finish():
                self._together.add([call])

    def be_ready(self) -> None:
        """Be ready for as many calls as came in."""
        while self.spent:
            self.spent.pop().be_ready()

    def meet_poller(self) -> None:
        """Remember the thread that polls, which is the present one."""
        self._poller = threading.current_thread()
        self._on_poller(threading.get_ident())

    def _next(self) -> Any:
        """The next event; None once there is none, and no call is due."""
        if len(self._due) + len(self._given_back) >= TOGETHER:
            self._answer_due()
        poll = self.queue.poll
        looks = 0
        while (event := poll()) is None:
            looks += 1
            if self._due or self._given_back:
                if looks >= LOOKS:
                    self._answer_due()
                    looks = 0
            elif looks == 1:
                self.be_ready()
            elif looks > IDLE_LOOKS and self._fall_asleep():
                return None
        return event

    def _answer_due(self) -> None:
        """Answer the calls that came, and some that were given back: whoever comes next waits for no more."""
        due, self._due = self._due, []
        if self._given_back:
            with self._guard:
                due += self._given_back[:TOGETHER]
                del self._given_back[:TOGETHER]
        prepared = [call for call in due if call.prepare()]
        if lacking := [call for call in prepared if not call.finish()]:
            self._together.add(lacking)
        self._done += 1
        self.be_ready()

    def _look_after(self) -> None:
        """Cut off what waits for its message too long; end the process where the polling thread is dead or stuck.

        Every method would hang then while the port still accepts: whoever supervises us starts anew.
        """
        done, idle_looks = 0, 0
        while not self._stopped.wait(WATCH_SECONDS):
            self._request_missing()
            self._together.end_overdue()
            self.unheard.cancel_overdue()
            # Looks are counted instead of seconds: a process that was halted for a while did none.
            idle_looks = idle_looks + 1 if self._is_working and self._done == done else 0
            done = self._done
            stuck = idle_looks * WATCH_SECONDS > STUCK_SECONDS
            dead = self._poller is not None and not self._poller.is_alive()
            if (dead or stuck) and not self._stopped.is_set():
                try:
                    _log.critical("the polling thread is stuck or dead: the process ends", dead=dead)
                finally:
                    os._exit(70)

    def _request_missing(self) -> None:
        for _ in range(len(self.missing)):
            self.missing.pop().be_ready()


class _Reception(Tag):
    """Receives the calls of one method; the tag of their arrival."""

    def __init__(self, lane: FastLane, method: Method) -> None:
        self.lane: FastLane = lane
        self.method = method
        # Strangers hold up strangers only.
        self._threads = lane.threads.apart(method.name) if method.open else lane.threads.callers

    def be_ready(self) -> None:
        """Be ready for one more call. Where that fails it is tried again. Raises nothing."""
        try:
            self.lane.queue.request(self.method.name, self)
        except ValueError:
            # The server shuts down.
            pass
        except Exception as error:  # noqa: BLE001 - it would end the thread that polls for all
            self.lane.missing.append(self)
            tell("a call can't be received", self.method, error)

    def happen(self, event: Any) -> None:
        """A call comes in, or none will any more."""
        if not event.success:
            return
        # Nobody's answer waits for that.
        self.lane.spent.append(self)
        if len(self.lane.spent) > READY // 2:
            self.lane.be_ready()
        try:
            FastCall(self.lane, self.method, self._threads, event).begin()
        except Exception as error:  # noqa: BLE001 - as above
            cut_off(event.call)
            tell("a call failed as it came", self.method, error)


class _Sent(Tag):
    """The tag of answers that are sent."""

    def __init__(self, lane: FastLane) -> None:
        self.lane = lane

    def happen(self, event: Any) -> None:
        """Nothing is left to do."""
