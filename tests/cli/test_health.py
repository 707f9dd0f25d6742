"""`rolecall health`: the exit code that a probe gets."""

import json
import os
import signal

import pytest

from support.certificates import make_certificate
from support.commands import Serve, Workspace
from support.sites import MakeSite
from support.waiting import wait_until


@pytest.fixture
def probe(workspace: Workspace) -> Workspace:
    """A workspace without a token."""
    assert "ROLECALL_TOKEN" not in workspace.variables
    return workspace


def test_probe_follows_the_server(probe: Workspace, serve: Serve) -> None:
    """0 while it is ready, 1 while its database is gone, 0 again after that, 1 once it has stopped."""
    probe.variables["ROLECALL_MAX_STALENESS"] = "0.5"
    serving = serve(probe)
    probe.variables["ROLECALL_ADDRESS"] = serving.address
    database, away = probe.folder / "rolecall.db", probe.folder / "away.db"

    ready = probe.run("health")
    database.rename(away)
    wait_until(lambda: probe.run("health").returncode == 1, 30)
    unready = probe.run("health", "--json")
    process = probe.run("health", "")
    away.rename(database)
    wait_until(lambda: probe.run("health").returncode == 0, 30)
    serving.process.send_signal(signal.SIGTERM)
    serving.process.wait(20)
    stopped = probe.run("health", "--timeout", "1")

    assert (ready.returncode, ready.stdout) == (0, "SERVING\n")
    assert json.loads(unready.stdout) == {"service": "rolecall.ready", "status": "NOT_SERVING"}
    assert process.returncode == 0
    assert (stopped.returncode, stopped.stdout) == (1, "NOT_SERVING\n")
    assert "is a server running there?" in stopped.stderr


def test_probe_in_the_pod_of_a_tls_server(probe: Workspace, make_site: MakeSite, sqlite_url: str) -> None:
    """A probe calls the loopback address, and trusts the very certificate that is served under another name."""
    cert, key = make_certificate(probe.folder, names="DNS:auth.acme.io")
    site = make_site(sqlite_url, tls_cert=cert, tls_key=key)
    address = ("--address", site.address)

    right = probe.run("health", *address, "--ca-file", str(cert), "--server-name", "auth.acme.io")
    other_name = probe.run("health", *address, "--ca-file", str(cert))
    untrusted = probe.run("health", *address, "--tls")
    plain_text = probe.run("health", *address)
    missing = probe.run("health", *address, "--ca-file", "nowhere.pem")

    assert right.returncode == 0, right.stderr
    assert [each.returncode for each in (other_name, untrusted, plain_text, missing)] == [1, 1, 1, 2]
    assert "for another name" in other_name.stderr
    assert "set ROLECALL_CA_FILE" in untrusted.stderr
    assert "set ROLECALL_CA_FILE" in plain_text.stderr


def test_unknown_service_is_an_error(client_workspace: Workspace) -> None:
    """A mistyped name is neither ready nor unready."""
    del client_workspace.variables["ROLECALL_TOKEN"]

    finished = client_workspace.run("health", "rolecall.redy")

    assert finished.returncode == 2
    assert "There is no service 'rolecall.redy'" in finished.stderr


def test_server_that_does_not_answer_is_not_ready(probe: Workspace, serve: Serve) -> None:
    """A halted process is noticed within the timeout."""
    serving = serve(probe)
    probe.variables["ROLECALL_ADDRESS"] = serving.address
    os.kill(serving.process.pid, signal.SIGSTOP)
    try:
        finished = probe.run("health", "--timeout", "0.5")
    finally:
        os.kill(serving.process.pid, signal.SIGCONT)

    assert finished.returncode == 1
    assert "nothing is answered" in finished.stderr or "didn't answer in time" in finished.stderr
