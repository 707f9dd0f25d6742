"""Failed authentications, logged coalesced, so that nobody can fill the log by presenting credentials."""

import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from rolecall.domain import Refusal
from rolecall.limits import DEFAULT_LIMITS, Limits

__all__ = ["FailedAuthentications"]

OTHERS = "others"

_log = structlog.get_logger("rolecall.authentication")


class _Kind(NamedTuple):
    """Failures that share a line of the log."""

    peer: str
    cause: str
    credential_id: str


@dataclass(slots=True)
class _Pending:
    """Number of failures of one kind that are not logged yet, and until when the next line waits."""

    count: int = 0
    quiet_until: float = 0.0


class FailedAuthentications:
    """Counts failures in memory; `flush`, called periodically, logs them. Threads may share it.

    A kind is logged at once, and then once in `failure_seconds` with the number of its failures. One peer has at most
    `failure_kinds_per_peer` lines in this time, and all peers `failure_kinds`; further failures share lines.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._pending: dict[_Kind, _Pending] = {}
        self._kinds: Counter[str] = Counter()

    def note(self, peer: str, cause: Refusal, credential_id: str = "") -> None:
        """Count a failure. `peer`: the network that the call came from; `credential_id` is empty for none."""
        kind = _Kind(peer, cause.value, credential_id)
        with self._lock:
            if kind not in self._pending and self._kinds[peer] >= self._limits.failure_kinds_per_peer:
                kind = _Kind(peer, OTHERS, "")
            if kind not in self._pending and len(self._pending) >= self._limits.failure_kinds:
                kind = _Kind(OTHERS, OTHERS, "")
            pending = self._pending.get(kind)
            if pending is None:
                pending = self._pending[kind] = _Pending()
                self._kinds[kind.peer] += 1
            pending.count += 1

    def flush(self, *, closing: bool = False) -> None:
        """Log the failures whose time is over; when closing, all."""
        at = time.monotonic()
        due: list[tuple[_Kind, int]] = []
        with self._lock:
            for kind, pending in list(self._pending.items()):
                if pending.quiet_until > at and not closing:
                    continue
                if pending.count:
                    due.append((kind, pending.count))
                    pending.count, pending.quiet_until = 0, at + self._limits.failure_seconds
                    continue
                # The time passed without a further failure.
                del self._pending[kind]
                self._kinds[kind.peer] -= 1
                if not self._kinds[kind.peer]:
                    del self._kinds[kind.peer]
        for kind, count in due:
            named = {"credential_id": kind.credential_id} if kind.credential_id else {}
            _log.info("authentication failed", peer=kind.peer, cause=kind.cause, **named, count=count)
