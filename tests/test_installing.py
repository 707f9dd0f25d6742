"""Installs: `pip install rolecall` brings the client alone; the command and the server say which extra they need."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

from rolecall.environment import SERVER_EXTRA_MISSING, SERVER_MODULES
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
        command, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=100, check=False
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


def test_wheel_brings_the_client_alone(sqlite_site: Site, tmp_path: Path) -> None:
    """From a wheel in a new environment, the client asks a running server; `rolecall serve` says what it needs."""
    built = run_pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("rolecall-*.whl")
    programs = tmp_path / "installed" / "bin"
    venv.create(programs.parent, with_pip=False)
    # The versions that are tested here, which pip may have in its cache.
    pins = tmp_path / "pins.txt"
    pins.write_text("".join(f"{name}=={version(name)}\n" for name in CLIENT_PACKAGES))
    installed = run_pip("--python", programs / "python", "install", "-c", pins, wheel)
    if installed.returncode and not CI:
        pytest.skip(f"pip can't install here: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr

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
