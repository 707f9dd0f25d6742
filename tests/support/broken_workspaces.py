"""Functions that break the folder of a server, so that it refuses to start."""

import socket
from collections.abc import Callable
from contextlib import closing

from rolecall.credentials import server_key
from support.commands import Workspace


def delete_database(workspace: Workspace) -> None:
    (workspace.folder / "rolecall.db").unlink()


def empty_database(workspace: Workspace) -> None:
    (workspace.folder / "rolecall.db").write_bytes(b"")


def foreign_database(workspace: Workspace) -> None:
    (workspace.folder / "rolecall.db").write_bytes(b"no database\n" * 100)


def newer_schema(workspace: Workspace) -> None:
    with closing(workspace.database()) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def delete_key(workspace: Workspace) -> None:
    (workspace.folder / "rolecall.key").unlink()


def open_key(workspace: Workspace) -> None:
    (workspace.folder / "rolecall.key").chmod(0o644)


def another_key(workspace: Workspace) -> None:
    (workspace.folder / "rolecall.key").unlink()
    server_key.create(workspace.folder / "rolecall.key")


def break_policy(workspace: Workspace) -> None:
    workspace.append("policy.csv", "p, VIEWER, secrets, view, alow\n")


def fail_policy_test(workspace: Workspace) -> None:
    workspace.append("policy_test.csv", "VIEWER,secrets,fly,allow,\n")


def other_model(workspace: Workspace) -> None:
    model = workspace.folder / "policies" / "model.conf"
    model.write_text(model.read_text().replace(" && !some(where (p.eft == deny))", ""))


def closed_port(workspace: Workspace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    workspace.variables["ROLECALL_DATABASE"] = f"postgresql://ann:hunter2@127.0.0.1:{port}/rolecall"


def setting(name: str, value: str) -> Callable[[Workspace], None]:
    return lambda workspace: workspace.variables.update({f"ROLECALL_{name}": value})
