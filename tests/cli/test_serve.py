"""`rolecall serve` as its users run it: what it refuses to start with, and how it runs, reloads and stops."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
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
from support.certificates import CertificateFiles, make_certificate
from support.commands import Serve, Workspace, error_of
from support.waiting import wait_until

# Starts the server of a workspace as `rolecall serve` does, and prints which of the modules it has imported.
IMPORTS = """
import os, sys
from rolecall import config
from rolecall.cli import process
process.start_server(config.load())
print(*sorted(set(sys.argv[1:]) & set(sys.modules)), flush=True)
os._exit(0)
"""


broken_folders = pytest.mark.parametrize(
    ("break_workspace", "problem"),
    [
        pytest.param(break_policy, r"policy\.csv:\d+:27: error: The effect `alow` is unknown", id="broken policy"),
        pytest.param(
            fail_policy_test, r"policy_test\.csv:\d+:1: error: .* should be allow, but is deny", id="failing test"
        ),
        pytest.param(other_model, r"model\.conf:\d+:\d+: error: .* but Rolecall serves only", id="other model"),
    ],
)


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
        pytest.param(open_key, r"\(mode 0644\): run `chmod 600 rolecall\.key`", id="open key"),
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


@broken_folders
def test_serve_tells_what_is_wrong_with_its_folder(
    workspace: Workspace, token: str, serve: Serve, break_workspace: Callable[[Workspace], None], problem: str
) -> None:
    """A folder that can't be served is told with each problem, and the policy in force is served all the same."""
    break_workspace(workspace)

    serving = serve(workspace)
    with Client(serving.address, token) as client:
        allowed = bool(client.check("ann@acme.io", "view", "secrets"))

    assert allowed
    assert re.search(problem, serving.log.read_text()), serving.log.read_text()


@broken_folders
def test_serve_refuses_a_broken_folder_if_no_policy_is_in_force(
    workspace: Workspace, break_workspace: Callable[[Workspace], None], problem: str
) -> None:
    """Without a policy in force, as after the upgrade of an old schema, the problems of the folder end the server."""
    with closing(workspace.database()) as connection, connection:
        connection.execute("DELETE FROM policy_activations")
        connection.execute("DELETE FROM policies")
    break_workspace(workspace)

    message = error_of(workspace.run("serve"))

    assert re.search(problem, message), message


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
    started = json.loads(serving.wait_for(".*server started.*")[0])
    with Client(started["address"], token) as client:
        before = client.check("viewernosecrets@acme.io", "view", "secrets")
        workspace.append("policy.csv", "p, VIEWERNOSECRETS, secrets, fly, allow\n")
        serving.process.send_signal(signal.SIGHUP)
        reloaded = serving.wait_for(r'"policy_version": "(\w+)".*"policy in force"')
        after = client.check("viewernosecrets@acme.io", "fly", "secrets")
    stopping = time.monotonic()
    serving.process.terminate()
    code = serving.process.wait(timeout=20)

    assert (started["version"], started["tls"], started["workers"]) == (rolecall.__version__, False, 1)
    assert (started["policy"], started["level"]) == ("policies", "info")
    assert started["mail"].startswith("Mails become files in ")
    assert not before
    assert before.policy_version == started["policy_version"]
    assert after
    assert after.policy_version == reloaded[1] != before.policy_version
    assert code == 0
    assert time.monotonic() - stopping < 10
    assert "Traceback" not in serving.log.read_text()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    """A self-signed certificate for 127.0.0.1, and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize(("workers", "option"), [(1, ["--log-format", "json"]), (2, ["--json"])])
def test_every_line_of_a_json_log_is_an_object(
    workspace: Workspace, serve: Serve, certificate: CertificateFiles, workers: int, option: list[str]
) -> None:
    """From the first line on, also before the server answers, each line has an event and its fields."""
    workspace.variables["ROLECALL_LOG_FORMAT"] = "text"
    cert, key = certificate
    key.chmod(0o644)
    arguments = ("--workers", str(workers), "--tls-cert", str(cert), "--tls-key", str(key))
    serving = serve(workspace, *arguments, *option)
    address = serving.address
    serving.process.terminate()
    serving.process.wait(timeout=20)
    lines = [json.loads(line) for line in serving.log.read_text().splitlines()]

    # Each process reads the TLS key.
    warnings, (started, stopping) = lines[:workers], lines[workers:]
    assert {line["event"] for line in warnings} == {"file with a secret is open to other users"}
    assert (started["event"], stopping["event"]) == ("server started", "server stopping")
    assert all(line.keys() >= {"level", "timestamp"} for line in lines)
    assert started["address"] == address
    assert (started["tls"], started["workers"]) == (True, workers)
    assert (started["policy"], started["version"]) == ("policies", rolecall.__version__)


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
@pytest.mark.parametrize(
    ("break_workspace", "problem"),
    [(delete_key, "The key file rolecall.key does not exist"), (setting("LISTN", "x"), "ROLECALL_LISTN is unknown")],
)
def test_reason_not_to_start_is_an_object_in_a_json_log(
    workspace: Workspace, arguments: tuple[str, ...], break_workspace: Callable[[Workspace], None], problem: str
) -> None:
    """Where the log is JSON by setting, the first line of a server that can't run is an event with the problem."""
    break_workspace(workspace)
    workspace.variables["ROLECALL_LOG_FORMAT"] = "json"

    finished = workspace.run("serve", *arguments)

    # A supervisor may log besides that its worker ended.
    lines = [json.loads(line) for line in finished.stderr.splitlines()]
    assert finished.returncode == 2
    assert (lines[0]["event"], lines[0]["level"]) == ("server can't run", "error")
    assert problem in lines[0]["problem"]
    assert [line["event"] for line in lines[1:]] in ([], ["worker ended, restarting"])


def test_log_for_people_begins_with_a_sentence(workspace: Workspace, serve: Serve) -> None:
    """With `text` the first line says where the server answers, how, and with which policy."""
    serving = serve(workspace, "--log-format", "text")

    first = serving.wait_for(
        r"^Rolecall \S+ answers on 127\.0\.0\.1:\d+ \(plain text\), policy \w+ from policies\. Mails become files in "
    )

    assert first.start() == 0


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o604])
def test_tls_key_that_others_can_read_is_a_warning(
    workspace: Workspace, token: str, certificate: CertificateFiles, serve: Serve, mode: int
) -> None:
    """A server with such a key, or such a file with a password, serves, and warns of it once with what to do."""
    cert, key = certificate
    key.chmod(mode)
    secret = workspace.folder / "password"
    secret.write_text("hunter2")
    secret.chmod(mode)
    workspace.variables["ROLECALL_SMTP_PASSWORD_FILE"] = "password"
    serving = serve(workspace, "--tls-cert", str(cert), "--tls-key", str(key))
    with Client(serving.address, token, ca_file=cert) as client:
        answer = client.check("ann@acme.io", "view", "secrets")
    warnings = [json.loads(line) for line in serving.log.read_text().splitlines() if "open to other users" in line]

    assert answer
    assert [line["file"] for line in warnings] == (["password", str(key)] if mode & 0o007 else [])
    assert all((line["level"], line["problem"]) == ("warning", f"mode {mode:04o}") for line in warnings)
    assert all(f"chmod 600 {line['file']}" in line["fix"] for line in warnings)


def test_serve_starts_beside_a_kubernetes_service(workspace: Workspace, token: str, serve: Serve) -> None:
    """The variables of a Service named `rolecall` stop neither a server nor a client."""
    service = {
        "ROLECALL_SERVICE_HOST": "10.0.0.1",
        "ROLECALL_SERVICE_PORT": "50051",
        "ROLECALL_PORT": "tcp://10.0.0.1:50051",
        "ROLECALL_PORT_50051_TCP_ADDR": "10.0.0.1",
    }
    workspace.variables |= service
    serving = serve(workspace, "--workers", "2")
    workspace.variables |= {"ROLECALL_ADDRESS": serving.address, "ROLECALL_TOKEN": token}

    assert workspace.run("check", "ann@acme.io", "view", "secrets").returncode == 0


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
    address = serving.address
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
    address = serving.address
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


def test_start_imports_only_what_it_uses(workspace: Workspace) -> None:
    """Upgrades, mails and PostgreSQL import what they need when they need it; Casbin is imported by another process."""
    later = ("alembic", "jinja2", "psycopg", "casbin", "email_validator", "rich.progress")

    finished = subprocess.run(
        [sys.executable, "-c", IMPORTS, *later, "sqlalchemy"],
        cwd=workspace.folder,
        env=workspace.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (finished.returncode, finished.stdout) == (0, "sqlalchemy\n"), finished.stderr
