"""Work that no caller waits for: refusals and uses of credentials are written down soon after, old rows go."""

import threading
from collections.abc import Callable

import structlog

from rolecall.errors import RolecallError

__all__ = ["Background"]

EVERY_SECONDS = 0.25
# After a failure, as during an outage of the database.
PAUSE_SECONDS = 2.0

_log = structlog.get_logger("rolecall.background")


class Background:
    """Does each of its tasks again and again, in a thread of its own."""

    def __init__(self, *tasks: Callable[[], None]) -> None:
        self._tasks = tasks
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="background", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End soon; work that is under way has a second."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def _work(self) -> None:
        pause = EVERY_SECONDS
        while not self._stopped.wait(pause):
            pause = EVERY_SECONDS
            for task in self._tasks:
                try:
                    task()
                except RolecallError as error:
                    _log.debug("background work put off", error=error.message)
                    pause = PAUSE_SECONDS
                except Exception:  # noqa: BLE001 - it outlives any defect, and tries again
                    _log.exception("background work failed")
                    pause = PAUSE_SECONDS
