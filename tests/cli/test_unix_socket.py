"""`rolecall serve --listen unix:…`, with one process and with several."""

import os
import signal
import socket
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import Mock

import grpc
import pytest

from rolecall import Client, UnauthenticatedClient
from rolecall.cli.socket_forwarder import _End, _join
from rolecall.credentials import token_format
from rolecall.domain import CredentialKind
from rolecall.errors import CallFailed, ConfigError, RolecallError
from rolecall.limits import Limits, Rate
from rolecall.server.transport import socket_file
from rolecall.v1 import authorization_pb2
from rolecall.v1.authorization_pb2_grpc import AuthorizationServiceStub
from support.commands import Serve, Serving, Workspace, error_of
from support.grpcurl import GRPCURL
from support.sites import MakeSite
from support.waiting import wait_until

each_number = pytest.mark.parametrize("workers", ["1", "2"])


def start(serve: Serve, workspace: Workspace, workers: str = "1", name: str = "rolecall.sock") -> tuple[Serving, Path]:
    """Start a server at a socket in the folder, and wait until it answers."""
    path = workspace.folder / name
    serving = serve(workspace, "--listen", f"unix:{path}", "--workers", workers)
    assert serving.address == f"unix:{path}"
    return serving, path


def answers(path: Path, token: str) -> bool:
    """Whether a new connection gets the right answer."""
    try:
        with Client(f"unix:{path}", token) as client:
            return bool(client.check("ann@acme.io", "view", "secrets"))
    except CallFailed:
        return False


@each_number
def test_clients_and_commands_call_a_unix_socket(workspace: Workspace, token: str, serve: Serve, workers: str) -> None:
    """The client, the command and grpcurl connect in plain text; the file is removed at the stop."""
    serving, path = start(serve, workspace, workers)
    workspace.variables |= {"ROLECALL_ADDRESS": f"unix:{path}", "ROLECALL_TOKEN": token}
    workspace.variables["ROLECALL_CA_FILE"] = "for-other-servers.pem"

    by_command = workspace.run("check", "ann@acme.io", "view", "secrets")
    health = workspace.run("health")
    mode = stat.S_IMODE(path.stat().st_mode)
    with Client(f"unix://{path}", token) as client:
        by_url = client.check("viewernosecrets@acme.io", "view", "secrets")
    described = ""
    if GRPCURL:
        command = [GRPCURL, "-plaintext", f"unix://{path}", "list"]
        described = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    serving.process.terminate()
    code = serving.process.wait(timeout=20)

    assert by_command.returncode == 0, by_command.stderr
    assert (health.returncode, health.stdout) == (0, "SERVING\n")
    assert not by_url
    assert mode == 0o600
    assert not GRPCURL or "rolecall.v1.AuthorizationService" in described
    assert code == 0
    assert [name for name in workspace.names() if name.startswith("rolecall.sock")] == []
    assert "Traceback" not in serving.log.read_text()


@each_number
def test_mode_of_the_socket_is_a_setting(workspace: Workspace, serve: Serve, workers: str) -> None:
    """The file has that mode whatever the umask is; the workers' own sockets are for this user only."""
    workspace.variables["ROLECALL_SOCKET_MODE"] = "0666"
    _, path = start(serve, workspace, workers)

    modes = {name: workspace.mode(name) for name in workspace.names() if name.startswith("rolecall.sock")}

    assert modes.pop("rolecall.sock") == 0o666
    assert set(modes.values()) <= {0o600}
    assert path.is_socket()


@each_number
def test_live_server_keeps_its_socket(workspace: Workspace, token: str, serve: Serve, workers: str) -> None:
    """A second server at the same path is refused, and the first one goes on."""
    _, path = start(serve, workspace, workers)
    before = path.stat().st_ino

    for number in ("1", "2"):
        message = error_of(workspace.run("serve", "--listen", f"unix:{path}", "--workers", number))
        assert "another server does so already" in message
        assert "--listen" in message

    assert path.stat().st_ino == before
    assert answers(path, token)


@each_number
def test_socket_of_a_dead_server_is_replaced(workspace: Workspace, token: str, serve: Serve, workers: str) -> None:
    """A server that was killed leaves its file; the next one starts all the same."""
    first, path = start(serve, workspace, workers)
    first.process.kill()
    first.process.wait()
    assert path.is_socket()

    start(serve, workspace, workers)

    assert answers(path, token)


def test_of_servers_that_start_at_once_one_gets_the_socket(tmp_path: Path) -> None:
    """The others are refused, and the one that serves is the one that is called."""
    path = tmp_path / "rolecall.sock"
    for _ in range(50):
        with ExitStack() as opened, ThreadPoolExecutor(4) as starters:

            def start_one(opened: ExitStack = opened) -> socket.socket | None:
                listening = opened.enter_context(socket.socket(socket.AF_UNIX))
                try:
                    with socket_file.claim(path, 0o600):
                        listening.bind(str(path))
                        listening.listen()
                except ConfigError:
                    return None
                return listening

            winners = [each for each in starters.map(lambda _: start_one(), range(4)) if each]
            client = opened.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(path))

            assert len(winners) == 1
            winners[0].settimeout(5)
            winners[0].accept()[0].close()


@each_number
def test_file_that_is_no_socket_is_kept(workspace: Workspace, workers: str) -> None:
    """A mistyped path deletes nothing."""
    message = error_of(workspace.run("serve", "--listen", "unix:rolecall.db", "--workers", workers))

    assert "unix:rolecall.db can't be listened on: there is a file that is no socket" in message
    assert workspace.dump()


@pytest.mark.parametrize(
    ("listen", "problem"),
    [
        ("unix:", "names no file"),
        ("unix:/run/", "names no file"),
        ("unix://run/rolecall.sock", "write unix:/path or unix:///path"),
        ("unix-abstract:rolecall", "no file mode"),
        ("unix:/" + "x" * 120, "at most 100 bytes"),
        ("unix:nowhere/rolecall.sock", "can't be listened on: No such file or directory"),
    ],
)
def test_unusable_path_is_named(workspace: Workspace, listen: str, problem: str) -> None:
    """A server says what is wrong with the address, in one line."""
    assert problem in error_of(workspace.run("serve", "--listen", listen))


def test_socket_with_tls_files_is_refused(workspace: Workspace) -> None:
    """An operator who set TLS files must not believe that a socket uses them."""
    message = error_of(
        workspace.run("serve", "--listen", "unix:r.sock", "--tls-cert", "tls.crt", "--tls-key", "tls.key")
    )

    assert "leave out `tls_cert` and `tls_key`" in message


@pytest.mark.parametrize("mode", ["rw", "888", "0o600", "77777"])
def test_malformed_mode_is_refused(workspace: Workspace, mode: str) -> None:
    """The mode is three octal digits."""
    workspace.variables["ROLECALL_SOCKET_MODE"] = mode

    assert "`socket_mode` (ROLECALL_SOCKET_MODE)" in error_of(workspace.run("serve", "--listen", "unix:r.sock"))


def test_path_may_have_characters_that_a_uri_may_not(workspace: Workspace, token: str, serve: Serve) -> None:
    """gRPC reads the path as part of a URI."""
    _, path = start(serve, workspace, name="a b%20c#d?.sock")

    assert path.is_socket()
    assert answers(path, token)


def test_mails_name_the_socket(workspace: Workspace, token: str, serve: Serve) -> None:
    """Not that of a worker: a person on this machine pastes it."""
    _, path = start(serve, workspace, "2")
    with UnauthenticatedClient(f"unix:{path}", "acme") as client:
        client.request_sign_in("ann@acme.io")
    mails = workspace.folder / "mail"
    wait_until(lambda: any(mails.glob("*.eml")))

    (mail,) = mails.glob("*.eml")
    assert f"ROLECALL_ADDRESS=unix:{path} rolecall sign-in" in mail.read_text()


def test_workers_share_a_socket(workspace: Workspace, token: str, serve: Serve) -> None:
    """New connections are distributed; one whose worker was killed fails, and the next goes to another worker."""
    workspace.variables["ROLECALL_DECISION_LOG"] = "all"
    serving, path = start(serve, workspace, "2")
    logs = [workspace.folder / f"decisions.{number}.jsonl" for number in (1, 2)]
    request = authorization_pb2.CheckRequest(subject="ann@acme.io", action="view", resource="secrets")
    with ExitStack() as opened:
        checks = []
        for _ in range(8):
            # Channels of one process share a connection otherwise.
            channel = grpc.insecure_channel(f"unix:{path}", [("grpc.use_local_subchannel_pool", 1)])
            checks.append(AuthorizationServiceStub(opened.enter_context(channel)).Check)

        def ask_all() -> None:
            for check in checks:
                metadata = (("authorization", f"Bearer {token}"),)
                assert check(request, metadata=metadata, wait_for_ready=True, timeout=30).decision

        ask_all()
        wait_until(lambda: sum(len(log.read_text().splitlines()) for log in logs) == 8)
        shares = [len(log.read_text().splitlines()) for log in logs]
        process = serving.workers[0]
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: process not in serving.workers)
        ask_all()
    serving.wait_for("worker answers again")

    assert shares == [4, 4]
    assert answers(path, token)


def test_broken_connections_hold_nothing_of_the_supervisor(workspace: Workspace, token: str, serve: Serve) -> None:
    """Clients that leave, send garbage or read nothing cost no other client anything, and no descriptor."""
    serving, path = start(serve, workspace, "2")
    descriptors = Path(f"/proc/{serving.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for number in range(60):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            if number % 3:
                client.sendall(b"garbage" * 1000 * (number % 3))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        assert answers(path, token)

    wait_until(lambda: len(list(descriptors.iterdir())) <= before, 30)
    assert answers(path, token)
    assert "Traceback" not in serving.log.read_text()


def test_large_messages_pass_whole(workspace: Workspace, token: str, serve: Serve) -> None:
    """Many clients exchange messages of a hundred kilobytes through the supervisor at the same time."""
    _, path = start(serve, workspace, "2")
    checks = [("ann@acme.io", "view", f"secrets/{number:0900}") for number in range(1000)]

    def ask(_number: int) -> bool:
        with Client(f"unix:{path}", token, timeout=30) as client:
            return all(all(client.batch_check(checks)) for _ in range(3))

    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(ask, range(4)))

    assert outcomes == [True] * 4


def test_clients_of_a_socket_share_a_rate_limit(make_site: MakeSite, sqlite_url: str, tmp_path: Path) -> None:
    """Callers of a socket have no address; those who present forged tokens are limited all the same."""
    site = make_site(
        sqlite_url, listen=f"unix:{tmp_path}/s", limits=Limits(casbin_seconds=0.05, failed_credentials=Rate(0.001, 3))
    )
    refusals = []
    for _ in range(6):
        with (
            Client(site.address, token_format.mint(CredentialKind.PERSONAL).text) as client,
            pytest.raises(RolecallError) as caught,
        ):
            client.check("ann@acme.io", "view", "members")
        refusals.append(caught.value.reason)

    assert refusals == ["UNAUTHENTICATED_CREDENTIAL"] * 3 + ["RATE_LIMITED"] * 3


def test_what_a_client_sends_before_its_worker_is_connected_is_kept() -> None:
    """Python 3.11.2 reads from a connection that was paused as it was made: nothing of that is lost."""
    client, worker = (_End(on_made=lambda _: None) for _ in range(2))
    reads, writes = Mock(is_closing=lambda: False), Mock()
    client.connection_made(reads)
    worker.connection_made(writes)
    client.data_received(b"PRI ")
    _join(client, worker)
    client.data_received(b"* HTTP/2.0")

    assert reads.pause_reading.call_count == reads.resume_reading.call_count == 1
    assert [each.args[0] for each in writes.write.call_args_list] == [b"PRI ", b"* HTTP/2.0"]
