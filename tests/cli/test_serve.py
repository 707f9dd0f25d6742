"""`rolecall serve` as its users run it: what it refuses to start with, and how it runs, reloads and stops."""

import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import rolecall
from rolecall.client import Client
from rolecall.errors import CallFailed
from support.broken_workspaces import (
    break_policy,
    closed_port,
    delete_database,
    delete_key,
    empty_database,
    fail_policy_test,
    foreign_database,
    newer_schema,
    open_key,
    other_model,
    setting,
)
from support.certificates import make_certificate
from support.commands import Serve, Workspace, error_of
from support.waiting import wait_until


@pytest.mark.parametrize(
    ("break_workspace", "failure"),
    [
        pytest.param(
            delete_database, r"The database rolecall\.db does not exist: run `rolecall init`", id="no database"
        ),
        pytest.param(empty_database, r"rolecall\.db is empty: run `rolecall init`", id="empty database"),
        pytest.param(foreign_database, r"rolecall\.db can't be used: file is not a database", id="foreign file"),
        pytest.param(newer_schema, "newer than this Rolecall: install a newer Rolecall", id="newer schema"),
        pytest.param(closed_port, r"at 127\.0\.0\.1 can't be used: .*Connection refused", id="PostgreSQL is down"),
        pytest.param(delete_key, r"The key file rolecall\.key does not exist: run `rolecall init`", id="no key"),
        pytest.param(open_key, r"\(mode 0640\): run `chmod 600 rolecall\.key`", id="open key"),
        pytest.param(break_policy, r"policy\.csv:\d+:27: error: The effect `alow` is unknown", id="broken policy"),
        pytest.param(
            fail_policy_test, r"policy_test\.csv:\d+:1: error: .* should be allow, but is deny", id="failing test"
        ),
        pytest.param(other_model, r"model\.conf:\d+:\d+: error: .* but Rolecall serves only", id="other model"),
        pytest.param(setting("LISTN", "x"), "The variable ROLECALL_LISTN is unknown", id="unknown variable"),
        pytest.param(setting("LISTEN", "0.0.0.0:0"), "Give --tls-cert and --tls-key", id="no TLS beyond loopback"),
    ],
)
def test_serve_refuses(workspace: Workspace, break_workspace: Callable[[Workspace], None], failure: str) -> None:
    """Unusable settings or files end a server at once, with one line that says what is wrong and what to do."""
    break_workspace(workspace)

    message = error_of(workspace.run("serve"))

    assert re.search(failure, message), message
    assert "hunter2" not in message


def test_serve_refuses_a_locked_database(workspace: Workspace) -> None:
    """A database that another program has locked is reported as that, within seconds."""
    with closing(workspace.database()) as connection:
        connection.isolation_level = None
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("UPDATE organizations SET revision = revision")

        message = error_of(workspace.run("serve"))

    assert "rolecall.db can't be used: database is locked" in message


def test_serve_refuses_a_port_in_use(workspace: Workspace) -> None:
    """Two servers never share a port: the second says which, and how to choose another."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        finished = workspace.run("serve", "--listen", address)

    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    last = finished.stderr.splitlines()[-1]
    assert last.startswith(f"error: {address} can't be listened on")
    assert "--listen" in last


def test_serve_refuses_tls_files_that_are_not_there(workspace: Workspace) -> None:
    """A missing certificate is named, rather than served without."""
    message = error_of(workspace.run("serve", "--tls-cert", "cert.pem", "--tls-key", "key.pem"))

    assert re.search(r"The TLS file (cert|key)\.pem can't be read: No such file or directory", message)


def test_serve_prints_its_address_reloads_and_stops(workspace: Workspace, token: str, serve: Serve) -> None:
    """A server logs its address and policy, answers, reloads the policy on SIGHUP, and exits with 0 on SIGTERM."""
    serving = serve(workspace)
    started = serving.wait_for(
        r"Rolecall (\S+) answers on (127\.0\.0\.1:\d+) \(plain text\), policy (\w+) from policies\."
    )
    with Client(started[2], token) as client:
        before = client.check("viewernosecrets@acme.io", "view", "secrets")
        workspace.append("policy.csv", "p, VIEWERNOSECRETS, secrets, fly, allow\n")
        serving.process.send_signal(signal.SIGHUP)
        reloaded = serving.wait_for(r'"policy_version": "(\w+)".*"policy in force"')
        after = client.check("viewernosecrets@acme.io", "fly", "secrets")
    stopping = time.monotonic()
    serving.process.terminate()
    code = serving.process.wait(timeout=20)

    assert started[1] == rolecall.__version__
    assert not before
    assert before.policy_version == started[3]
    assert after
    assert after.policy_version == reloaded[1] != started[3]
    assert code == 0
    assert time.monotonic() - stopping < 10
    assert "Traceback" not in serving.log.read_text()


def test_serve_reads_an_unchanged_policy_again_on_sighup(workspace: Workspace, serve: Serve) -> None:
    """SIGHUP works where nothing looks changed, and Ctrl-C ends a server as well as SIGTERM does."""
    serving = serve(workspace, "--log-format", "text")
    address = serving.address

    serving.process.send_signal(signal.SIGHUP)
    serving.wait_for("policy in force")
    serving.process.send_signal(signal.SIGINT)
    code = serving.process.wait(timeout=20)

    host, _, port = address.rpartition(":")
    assert code == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


def test_many_sighups_are_harmless(workspace: Workspace, token: str, serve: Serve) -> None:
    """After many SIGHUPs the server still answers, and stops on SIGTERM."""
    serving = serve(workspace)
    address = serving.address
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        serving.process.send_signal(signal.SIGHUP)
    with Client(address, token) as client:
        answer = client.check("ann@acme.io", "view", "secrets")
    serving.process.terminate()

    assert answer
    assert serving.process.wait(timeout=20) == 0


def test_tls_server_answers_only_over_tls(workspace: Workspace, token: str, serve: Serve) -> None:
    """A TLS server answers a client with its certificate as CA; one in plain text, or with other CAs, fails."""
    cert, key = make_certificate(workspace.folder)
    serving = serve(workspace, "--tls-cert", str(cert), "--tls-key", str(key))
    address = serving.wait_for(r"answers on (\S+) \(TLS\)")[1]
    workspace.variables |= {"ROLECALL_ADDRESS": address, "ROLECALL_TOKEN": token, "ROLECALL_CA_FILE": str(cert)}

    with Client(address, token, ca_file=cert) as client:
        over_tls = client.check("ann@acme.io", "view", "secrets")
    with Client(address, token) as client, pytest.raises(CallFailed):
        client.check("ann@acme.io", "view", "secrets")
    with Client(address, token, plaintext=False) as client, pytest.raises(CallFailed):
        client.check("ann@acme.io", "view", "secrets")
    from_shell = workspace.run("check", "ann@acme.io", "view", "secrets")

    assert over_tls
    assert from_shell.returncode == 0, from_shell.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("hint", ["files", "SIGHUP"])
def test_all_processes_serve_a_renewed_certificate(
    workspace: Workspace, token: str, serve: Serve, tmp_path: Path, workers: str, hint: str
) -> None:
    """Each worker follows the files, and reads them on SIGHUP; it refuses a pair that doesn't fit."""
    served = make_certificate(workspace.folder)
    new = make_certificate(tmp_path)
    serving = serve(workspace, "--workers", workers, "--log-format", "json", *served.flags)
    address = serving.wait_for(r"answers on (\S+) \(TLS")[1]
    count = int(workers)

    def read(log: str, times: int) -> None:
        if hint == "SIGHUP":
            serving.process.send_signal(signal.SIGHUP)
        wait_until(lambda: serving.log.read_text().count(log) >= times)

    shutil.copy(new.cert, served.cert)
    read("TLS files refused, the last good certificate stays in force", count)
    shutil.copy(new.key, served.key)
    read("TLS certificate in force", count)

    for _ in range(8):
        with Client(address, token, ca_file=new.cert) as client:
            assert client.check("ann@acme.io", "view", "secrets")
