"""A signal ends the server, in whatever state calls are."""

import signal
import time
from pathlib import Path

import pytest

from support.commands import Serving, Workspace, copy_policy
from support.environment import CI
from support.raw_calls import RawConnection

SIGN_IN = "/rolecall.v1.SessionService/SignIn"
# The signal reaches a thread that is not the main one in about every other of them.
ROUNDS = 4 if CI else 2


@pytest.mark.parametrize("workers", [1, 2])
def test_calls_without_messages_do_not_delay_a_stop(tmp_path: Path, workers: int) -> None:
    """Unauthenticated callers that send headers only don't keep the server from stopping at the first signal."""
    workspace = Workspace(tmp_path)
    copy_policy(tmp_path)
    assert not workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io").returncode
    for _ in range(ROUNDS if workers == 1 else 1):
        serving = Serving(workspace, "--workers", str(workers))
        connections = [RawConnection(serving.address) for _ in range(8)]
        for connection in connections:
            connection.begin(SIGN_IN, "")
        time.sleep(0.1)
        for connection in connections:
            connection.close()

        serving.process.send_signal(signal.SIGTERM)

        assert serving.process.wait(8) == 0
