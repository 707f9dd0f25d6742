"""Passwords of the database: no command, server or log shows a piece of one, and they can be given in files."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rolecall.cli import app
from rolecall.config import Settings
from rolecall.errors import ConfigError
from rolecall.server import build_server
from support.commands import Serve, Workspace, error_of, only_line

SSL_REQUEST, GSS_REQUEST = 80877103, 80877104

# Passwords as people choose them, of which a part may look like a host, a port, a name or a parameter.
PASSWORDS = st.lists(
    st.sampled_from(["Zx9", "Secret77", "12", "w", "rd", "ß漢", "@", "/", ":", "#", "%", "%4", "?", "&", "=", "//"]),
    min_size=1,
    max_size=8,
).map("".join)

COMMANDS = [
    ["init", "--organization", "acme", "--owner", "ann@acme.io", "--if-missing"],
    ["operator", "organizations", "list"],
    ["operator", "tokens", "issue", "--organization", "acme", "--email", "ann@acme.io"],
    ["operator", "audit", "erase", "--organization", "acme", "--person", "ann@acme.io"],
    ["operator", "db", "upgrade"],
]


def pieces(password: str) -> set[str]:
    """Pieces of three characters of the password, plain and percent-encoded."""
    return {text[i : i + 3] for text in (password, quote(password, "")) for i in range(len(text) - 2)}


def outputs(url: str, key_file: Path) -> list[str]:
    """Texts of each command and of a server about a database with this URL that can't be used."""
    shown = []
    for command in COMMANDS:
        result = CliRunner().invoke(app, [*command, "--database", url], env={"ROLECALL_KEY_FILE": str(key_file)})
        assert isinstance(result.exception, ConfigError), result.exception
        shown.append(result.output + result.exception.message)
    with pytest.raises(ConfigError) as caught:
        build_server(Settings(database=url, key_file=key_file))
    return [*shown, caught.value.message]


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's key."""
    path = tmp_path_factory.mktemp("key") / "rolecall.key"
    path.touch(0o600)
    path.write_bytes(bytes(32))
    return path


@given(password=PASSWORDS, encoded=st.booleans())
@settings(max_examples=25)
@example(password="Zx9@Secret77", encoded=False)
@example(password="p@ss/w:rd", encoded=False)
def test_no_command_shows_a_piece_of_the_password(key_file: Path, password: str, encoded: bool) -> None:
    """`init`, the operator's commands and a server say the same for every password."""
    text = quote(password, "") if encoded else password
    shown = outputs(f"postgresql://u:{text}@127.0.0.1:1/rc", key_file)
    others = [outputs(f"postgresql://u:{other}@127.0.0.1:1/rc", key_file) for other in ("hunter", "hunter@x")]

    assert shown in others
    assert not [
        piece for piece in pieces(password) if piece in "".join(shown) and piece not in "".join(others[0] + others[1])
    ]


@pytest.mark.parametrize("password", ["Zx9@Secret77", "p@ss/w:rd", "12/Zx9@y:Secret77", "Zx9#Secret77", "100%Secret77"])
@pytest.mark.parametrize("arguments", [(), ("--workers", "2"), ("--log-format", "json", "--log-level", "debug")])
def test_server_that_cannot_parse_its_url_shows_nothing_of_it(
    workspace: Workspace, password: str, arguments: tuple[str, ...]
) -> None:
    """A server ends with one line about the URL, in each format of its log, whatever the password."""
    workspace.variables["ROLECALL_DATABASE"] = f"postgresql://u:{password}@127.0.0.1/rc"

    finished = workspace.run("serve", *arguments)

    assert finished.returncode == 2
    assert finished.stdout == ""
    assert "The database URL is malformed" in finished.stderr
    assert "percent-encode" in finished.stderr
    assert not [piece for piece in ("Zx9", "Secret77", "ss/w", "w:rd", "127.0.0.1") if piece in finished.stderr]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_database_with_its_password_in_a_file_is_served(
    workspace: Workspace, database_url: str, serve: Serve, tmp_path: Path
) -> None:
    """`postgres://` is accepted; `init`, the operator's commands and workers read URL and password from files."""
    url, password = tmp_path / "url", tmp_path / "password"
    url.write_text(database_url.replace("postgresql://", "postgres://") + "\n")
    password.write_text("Zx9@Secret77/w:rd#?%\n")
    workspace.variables |= {"ROLECALL_DATABASE_FILE": str(url), "ROLECALL_DATABASE_PASSWORD_FILE": str(password)}
    token = only_line(workspace.run("init", "--organization", "beta", "--owner", "bob@beta.io"))
    listed = workspace.run("operator", "organizations", "list", "--json")
    serving = serve(workspace, "--workers", "2", "--log-level", "debug")
    serving.wait_for("server started")
    workspace.variables |= {"ROLECALL_ADDRESS": serving.address, "ROLECALL_TOKEN": token}
    checked = workspace.run("check", "bob@beta.io", "view", "secrets")

    assert [item["organization"] for item in json.loads(listed.stdout)] == ["beta"]
    assert only_line(checked).startswith("ALLOW: ")
    assert not [piece for piece in ("Zx9", "Secret77", "w:rd") if piece in serving.log.read_text()]


class RefusingPostgres:
    """PostgreSQL server that asks each client for its password in plain text, keeps it, and refuses it."""

    def __init__(self) -> None:
        self.passwords: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Accept no more clients."""
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as stream:
                while int.from_bytes(self._read(stream)[:4]) in (SSL_REQUEST, GSS_REQUEST):
                    client.sendall(b"N")
                client.sendall(b"R" + (8).to_bytes(4) + (3).to_bytes(4))
                assert stream.read(1) == b"p"
                self.passwords.append(self._read(stream).rstrip(b"\0").decode())
                fields = b'SFATAL\0C28P01\0Mpassword authentication failed for user "u"\0\0'
                client.sendall(b"E" + (len(fields) + 4).to_bytes(4) + fields)

    @staticmethod
    def _read(stream: BinaryIO) -> bytes:
        return stream.read(int.from_bytes(stream.read(4)) - 4)


@pytest.fixture
def refusing_postgres() -> Iterator[RefusingPostgres]:
    """A running server of that kind."""
    server = RefusingPostgres()
    yield server
    server.close()


@pytest.mark.parametrize("source", ["URL", "variable", "file", "TOML"])
def test_password_arrives_as_it_is_and_is_not_shown(
    workspace: Workspace, refusing_postgres: RefusingPostgres, source: str
) -> None:
    """The database gets the password, from wherever it comes; its refusal is shown without it."""
    password = "Zx9@Secret77/w:rd#?%é漢"
    own = f":{quote(password, '')}" if source == "URL" else ""
    workspace.variables["ROLECALL_DATABASE"] = f"postgres://u{own}@127.0.0.1:{refusing_postgres.port}/rc"
    (workspace.folder / "secret").touch(0o600)
    (workspace.folder / "secret").write_text(f"{password}\n", encoding="utf-8")
    (workspace.folder / "settings.toml").write_text('database_password_file = "secret"\n', encoding="utf-8")
    workspace.variables |= {
        "URL": {},
        "variable": {"ROLECALL_DATABASE_PASSWORD": password},
        "file": {"ROLECALL_DATABASE_PASSWORD_FILE": "secret"},
        "TOML": {"ROLECALL_CONFIG": "settings.toml"},
    }[source]

    message = error_of(workspace.run("serve"))

    assert set(refusing_postgres.passwords) == {password}
    assert "The database rc at 127.0.0.1 can't be used: " in message
    assert 'password authentication failed for user "u"' in message
    assert not [piece for piece in pieces(password) if piece in message]
