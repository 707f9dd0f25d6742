"""What the parts of the fast lane know of each other."""

from typing import TYPE_CHECKING, Any, Protocol

from google.rpc import status_pb2

from rolecall.server.calls import Call, Metadata, Method
from rolecall.server.threads import Threads
from rolecall.server.unheard import Unheard
from rolecall.server.waiting import Waiting

if TYPE_CHECKING:
    from rolecall.server.fastcall import FastCall

__all__ = ["Answering", "Lane", "Tag"]


class Answering(Protocol):
    """What answers calls, as `Calls` does."""

    def read(self, metadata: Metadata) -> tuple[str, str]:
        """A call's id, and the credential that is presented."""
        ...

    def admit(self, method: Method, call: Call) -> status_pb2.Status | None:
        """Why the call isn't let in; None where it is."""
        ...

    def answer(self, method: Method, call: Call) -> bytes | status_pb2.Status:
        """The answer to a call that was let in."""
        ...

    def remember(self, lacking: list[Any]) -> None:
        """Read at once what several calls lacked."""
        raise NotImplementedError

    def fail(self, method: Method, call: Call, error: Exception) -> status_pb2.Status:
        """What the client is told where that failed."""
        raise NotImplementedError


class Lane(Protocol):
    """What calls know of their lane."""

    calls: Answering
    threads: Threads
    waiting: Waiting
    unheard: Unheard
    sent: "Tag"

    def work_off(self, event: Any) -> tuple[object, tuple[()]]:
        """Do what belongs to the event, and to all that are there besides."""
        ...

    def give_back(self, calls: "list[FastCall]") -> bool:
        """Have the polling thread answer calls of which nothing is lacking any more; False where it is asleep."""
        ...

    def is_due(self, call: "FastCall") -> None:
        """Have the call answered with others, soon."""
        ...


class Tag:
    """What an event leads to. grpc calls it with the first event, and finds all that are there worked off."""

    __slots__ = ()

    lane: Lane

    def __call__(self, event: Any) -> tuple[object, tuple[()]]:
        return self.lane.work_off(event)

    def happen(self, event: Any) -> None:
        """Do what belongs to the event. Raises nothing."""
        raise NotImplementedError
