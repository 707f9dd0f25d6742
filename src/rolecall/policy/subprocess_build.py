"""Build of a policy in a child process. The result arrives in pieces, between which other threads can run."""

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rolecall.policy.build import Build
from rolecall.policy.index import Policy
from rolecall.policy.parsed import POLICY_FILE, Finding, PolicyFiles

__all__ = ["build_in_subprocess", "send"]

# Maximum seconds of a build; a folder that takes longer is refused. 100,000 rules take a few seconds.
MAX_SECONDS = 60.0

# Entries per piece: unpickling one piece holds the interpreter lock for about a millisecond.
PIECE = 1000


def build_in_subprocess(
    source: Path | PolicyFiles, casbin_seconds: float, known_key: str = "", max_seconds: float = MAX_SECONDS
) -> Build:
    """Run `build` in a child process. Never raises: a child that dies, or takes `max_seconds`, becomes a finding."""
    # -P: the child must not import modules from the working directory of the server.
    folder = str(source) if isinstance(source, Path) else ""
    command = [sys.executable, "-P", "-m", "rolecall.policy", folder, str(casbin_seconds), known_key]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:  # noqa: S603 - ours
            watchdog = threading.Timer(max_seconds, child.kill)
            watchdog.daemon = True
            watchdog.start()
            try:
                assert child.stdin is not None and child.stdout is not None  # noqa: S101, PT018 - for the type checker
                with child.stdin as texts:
                    if not folder:
                        pickle.dump(tuple(source), texts)  # type: ignore[arg-type]
                result = _receive(child.stdout)
                child.wait()
            finally:
                child.kill()
                watchdog.cancel()
            return result
    except Exception as error:  # noqa: BLE001 - any failure of the child is a refused policy
        import structlog  # noqa: PLC0415 - the child would import it for nothing, which delays every reload

        structlog.get_logger("rolecall.policy").warning("policy build failed", error=str(error))
        message = "The policy could not be built: the building process ended early or ran out of time."
        fix = "Read the server's log; then save the file again."
        return Build(None, (Finding(POLICY_FILE, 0, 0, message, fix),))


def send(result: Build, stream: IO[bytes]) -> None:
    """Write `result` as a series of pickles: the findings first, then the policy's attributes in pieces."""
    pickle.dump((replace(result, policy=None), result.policy is not None), stream)
    if result.policy is not None:
        for name, value in vars(result.policy).items():
            for piece in _pieces((name,), value):
                pickle.dump(piece, stream)
        pickle.dump(None, stream)


def _receive(stream: IO[bytes]) -> Build:
    """Read the output of `send`. Used only for our own child process: pickles of others could run code."""
    result: Build
    result, has_policy = pickle.load(stream)  # noqa: S301 - our own child wrote it
    if not has_policy:
        return result
    state: dict[Any, Any] = {}
    while (item := pickle.load(stream)) is not None:  # noqa: S301 - as above
        path, piece = item
        place = state
        for key in path[:-1]:
            place = place.setdefault(key, {})
        if path[-1] not in place:
            place[path[-1]] = piece
        elif isinstance(piece, dict):
            place[path[-1]].update(piece)
        else:
            place[path[-1]] += piece
    policy = object.__new__(Policy)
    vars(policy).update(state)
    policy.share_masks()
    return replace(result, policy=policy)


def _pieces(path: tuple[str, ...], value: object) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield `value` with the keys that lead to it; a large one as several short ones that add up to it."""
    if isinstance(value, dict) and value and all(isinstance(inner, dict) for inner in value.values()):
        for key, inner in value.items():
            yield from _pieces((*path, key), inner)
        return
    if not isinstance(value, dict | list | tuple) or len(value) <= PIECE:
        yield path, value
        return
    entries = iter(value.items() if isinstance(value, dict) else value)
    while chunk := list(islice(entries, PIECE)):
        yield path, type(value)(chunk)
