"""Build a policy in a child process and take it over in pieces, between which the other threads here go on running."""

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
from rolecall.policy.compiled import Policy
from rolecall.policy.source import POLICY_FILE, Finding

__all__ = ["build_aside", "send"]

# A folder that takes longer is refused: 100,000 rules take a few seconds.
MAX_SECONDS = 60.0

# Entries a piece: unpickling one holds the interpreter for about a millisecond.
PIECE = 1000


def build_aside(folder: Path, oracle_seconds: float) -> Build:
    """`build` in a child process. Never raises: a child that dies or hangs is a finding."""
    command = [sys.executable, "-m", "rolecall.policy", str(folder), str(oracle_seconds)]
    try:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:  # noqa: S603 - ours
            watchdog = threading.Timer(MAX_SECONDS, child.kill)
            watchdog.daemon = True
            watchdog.start()
            try:
                assert child.stdout is not None  # noqa: S101 - for the type checker: stdout=PIPE
                return _receive(child.stdout)
            finally:
                child.kill()
                watchdog.cancel()
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        message = f"The policy could not be built: the building process ended early or ran out of time ({error})."
        fix = "See what it wrote to the standard error output; then save the file again."
        return Build(None, (Finding(POLICY_FILE, 0, 0, message, fix),), "")


def send(result: Build, stream: IO[bytes]) -> None:
    """Write `result` as a series of pickles: the findings first, then the policy's attributes by pieces."""
    pickle.dump((replace(result, policy=None), result.policy is not None), stream)
    if result.policy is not None:
        for name, value in vars(result.policy).items():
            for piece in _pieces(value):
                pickle.dump((name, piece), stream)
        pickle.dump(None, stream)


def _receive(stream: IO[bytes]) -> Build:
    """Read what `send` wrote. Only ever from our own child."""
    result: Build
    result, has_policy = pickle.load(stream)  # noqa: S301 - our own child wrote it
    if not has_policy:
        return result
    state: dict[str, Any] = {}
    while (item := pickle.load(stream)) is not None:  # noqa: S301 - as above
        name, piece = item
        if name not in state:
            state[name] = piece
        elif isinstance(piece, dict):
            state[name].update(piece)
        else:
            state[name] += piece
    policy = object.__new__(Policy)
    vars(policy).update(state)
    return replace(result, policy=policy)


def _pieces(value: object) -> Iterator[object]:
    """`value` itself, or where it is a long dict, list or tuple, short ones that add up to it."""
    if not isinstance(value, dict | list | tuple) or len(value) <= PIECE:
        yield value
        return
    entries = iter(value.items() if isinstance(value, dict) else value)
    while chunk := list(islice(entries, PIECE)):
        yield type(value)(chunk)
