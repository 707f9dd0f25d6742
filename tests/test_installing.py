"""Installs: `pip install rolecall` brings the client alone; the command and the server say which extra they need."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest

from rolecall.environment import SERVER_EXTRA_MISSING, SERVER_MODULES
from support.commands import Serving, Workspace, only_line
from support.environment import CI, ROOT
from support.sites import Site

CLIENT_PACKAGES = {"googleapis-common-protos", "grpcio", "protobuf", "typing-extensions"}
"""Distributions that the client needs, with those that they need themselves."""

BLOCK = "import sys; sys.modules.update(dict.fromkeys({!r}))\n"
"""Code that makes the imports of modules fail, as if they were not installed."""

CHECK = """\
import importlib.metadata, json, rolecall
with rolecall.Client() as client:
    results = [bool(client.check("viewer@acme.io", action, "secrets")) for action in ("view", "delete")]
    members = [member.email for member in client.members.list(role="VIEWER")]
names = [distribution.name for distribution in importlib.metadata.distributions()]
print(json.dumps({"file": rolecall.__file__, "results": results, "members": members, "installed": names}))
"""


def run(*command: str | Path, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, with more variables, and without those of the tests that configure Python."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        command, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=280, check=False
    )


def run_blocked(code: str, *modules: str) -> subprocess.CompletedProcess[str]:
    """Run code in another interpreter, where the modules can't be imported."""
    return run(sys.executable, "-c", BLOCK.format(modules) + code, PYTHONPATH=str(ROOT / "src"))


def run_pip(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the pip of this environment, which soon gives up where it can't reach an index, unless it must."""
    options = ("--disable-pip-version-check", "--quiet", "--retries", "1", "--timeout", "60" if CI else "5")
    return run(sys.executable, "-m", "pip", *arguments, *options)


# The extra and the imports


def test_extra_has_a_module_for_each_of_its_packages() -> None:
    """The command looks for a module of each package of the extra, so that none can lack unnoticed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = {re.split(r"[\[<>=!~ ]", item)[0] for item in project["optional-dependencies"]["server"]}
    homes = packages_distributions()

    assert {homes[module][0].lower() for module in SERVER_MODULES} == packages
    assert len(SERVER_MODULES) == len(packages)


def test_client_is_imported_without_the_packages_of_the_extra() -> None:
    """Importing the client imports neither a package of the extra nor pydantic, which one of them requires."""
    finished = run_blocked(
        "from rolecall import Client, UnauthenticatedClient\nfrom rolecall.client import audit_filter, to_dict\n",
        *SERVER_MODULES,
        "pydantic",
    )

    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.parametrize("missing", ["typer", "psycopg"])
def test_command_without_the_extra_says_so_in_one_line(missing: str) -> None:
    """A missing package, even one, ends the command with exit code 2 and the line to type, before it imports any."""
    finished = run_blocked("from rolecall.__main__ import main\nmain()\n", missing)

    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == f"{SERVER_EXTRA_MISSING}\n"


@pytest.mark.parametrize("missing", [SERVER_MODULES, ("grpc_status",)], ids=["all", "one"])
@pytest.mark.parametrize("package", ["rolecall.cli", "rolecall.server"])
def test_import_of_the_server_without_the_extra_says_so(package: str, missing: tuple[str, ...]) -> None:
    """A program that imports the server or the command gets an ImportError with the line to type.

    So it does where it has some of the packages for reasons of its own, as typer and pydantic-settings.
    """
    finished = run_blocked(f"import {package}\n", *missing)

    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1] == f"ImportError: {SERVER_EXTRA_MISSING}"


# The wheel in a new environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run_pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    assert built.returncode == 0, built.stderr
    (made,) = folder.glob("rolecall-*.whl")
    return made


def install(requirement: str, folder: Path) -> Path:
    """Install into a new environment, in the versions that are tested here; return the folder of its programs."""
    programs = folder / "installed" / "bin"
    venv.create(programs.parent, with_pip=False)
    # pip may have them in its cache.
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{each.name}=={each.version}\n" for each in distributions() if each.name != "rolecall"))
    installed = run_pip("--python", programs / "python", "install", "-c", pins, requirement)
    if installed.returncode and not CI:
        pytest.skip(f"pip can't install here: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    return programs


def test_wheel_brings_the_client_alone(wheel: Path, sqlite_site: Site, tmp_path: Path) -> None:
    """From a wheel in a new environment, the client asks a running server; `rolecall serve` says what it needs."""
    programs = install(str(wheel), tmp_path)

    server = {"ROLECALL_ADDRESS": sqlite_site.address, "ROLECALL_TOKEN": sqlite_site.tokens["OWNER"]}
    asked = run(programs / "python", "-c", CHECK, folder=tmp_path, **server)
    commands = [
        run(programs / "rolecall", "serve", folder=tmp_path),
        run(programs / "python", "-m", "rolecall", "serve", folder=tmp_path),
    ]

    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert Path(answer["file"]).is_relative_to(programs.parent)
    assert answer["results"] == [True, False]
    assert answer["members"] == ["viewer@acme.io"]
    assert {name.lower().replace("_", "-") for name in answer["installed"]} == CLIENT_PACKAGES | {"rolecall"}
    for command in commands:
        assert (command.returncode, command.stdout, command.stderr) == (2, "", f"{SERVER_EXTRA_MISSING}\n")


@pytest.mark.timeout(300)
def test_wheel_brings_all_that_a_server_needs(wheel: Path, tmp_path: Path) -> None:
    """From a wheel with its extra in a new environment and an empty folder: `init`, `serve`, a Check."""
    program = install(f"{wheel}[server]", tmp_path) / "rolecall"
    workspace = Workspace(tmp_path / "empty", program=program)
    workspace.folder.mkdir()

    owner = only_line(workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io", "--demo"))
    serving = Serving(workspace)
    try:
        workspace.variables |= {"ROLECALL_ADDRESS": serving.address, "ROLECALL_TOKEN": owner}
        allowed = workspace.run("check", "viewer@acme.io", "view", "secrets")
        denied = workspace.run("check", "viewer@acme.io", "delete", "secrets")
    finally:
        serving.process.terminate()
        serving.process.wait(20)
    variant = workspace.run("policy", "new", "other", "--variant", "owner-managed")

    assert (allowed.returncode, denied.returncode) == (0, 1), allowed.stderr + denied.stderr
    assert workspace.names() >= {"policies", "rolecall.db", "rolecall.key"}
    for name in ("model.conf", "policy.csv", "policy_test.csv"):
        assert (workspace.folder / "policies" / name).read_bytes() == (ROOT / "policies" / name).read_bytes()
    assert variant.returncode == 0, variant.stderr
    assert (workspace.folder / "other" / "policy.csv").read_bytes() == (
        ROOT / "policies" / "variants" / "owner-managed" / "policy.csv"
    ).read_bytes()
