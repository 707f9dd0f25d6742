"""Folders and servers for tests of the command."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import (
    SMALL_POLICY,
    SMALL_POLICY_TEST,
    Finished,
    Serve,
    Serving,
    Workspace,
    copy_policy,
)
from support.sites import Site


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    """A folder with nothing but a policy."""
    folder = tmp_path / "work"
    folder.mkdir()
    copy_policy(folder)
    return Workspace(folder)


@pytest.fixture(scope="session")
def initialized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Finished]:
    """A folder after `init --demo` on a small policy, under an open umask, and the output. Read-only."""
    folder = tmp_path_factory.mktemp("initialized")
    copy_policy(folder)
    (folder / "policies" / "policy.csv").write_text(SMALL_POLICY)
    (folder / "policies" / "policy_test.csv").write_text(SMALL_POLICY_TEST)
    workspace = Workspace(folder)
    return workspace, workspace.run("init", "--organization", "acme", "--owner", "Ann@acme.io", "--demo", umask=0)


@pytest.fixture
def workspace(initialized: tuple[Workspace, Finished], tmp_path: Path) -> Workspace:
    """A copy of that folder, to be changed."""
    folder = tmp_path / "work"
    shutil.copytree(initialized[0].folder, folder)
    return Workspace(folder)


@pytest.fixture
def token(initialized: tuple[Workspace, Finished]) -> str:
    """The first owner's token."""
    return initialized[1].stdout.strip()


@pytest.fixture
def client_workspace(sqlite_site: Site, tmp_path: Path) -> Workspace:
    """A workspace whose commands call a running server as its owner."""
    variables = {"ROLECALL_ADDRESS": sqlite_site.address, "ROLECALL_TOKEN": sqlite_site.tokens["OWNER"]}
    return Workspace(tmp_path, variables)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers, and ends those that a test has left running."""
    started: list[Serving] = []

    def start(workspace: Workspace, *arguments: str) -> Serving:
        started.append(Serving(workspace, *arguments))
        return started[-1]

    yield start
    for serving in started:
        if serving.process.poll() is None:
            serving.process.kill()
        serving.process.wait()


@pytest.fixture
def server_workspace(sqlite_site: Site, tmp_path: Path) -> Workspace:
    """A workspace whose commands call a running server as its owner, and use its database as its operator."""
    settings = sqlite_site.settings
    return Workspace(
        tmp_path,
        {
            "ROLECALL_ADDRESS": sqlite_site.address,
            "ROLECALL_TOKEN": sqlite_site.tokens["OWNER"],
            "ROLECALL_DATABASE": settings.database,
            "ROLECALL_KEY_FILE": str(settings.key_file),
        },
    )
