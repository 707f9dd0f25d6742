"""The command line itself: its commands, its help, its version."""

import os
import subprocess
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import rolecall
from rolecall.cli import app
from support.commands import (
    PROGRAM,
    Workspace,
    only_line,
)


def test_version_is_printed(empty: Workspace) -> None:
    """`--version` prints the version alone."""
    assert only_line(empty.run("--version")) == rolecall.__version__


def test_unknown_command_is_an_error(empty: Workspace) -> None:
    """A mistyped command exits with 2, and a check can't be taken for an answer."""
    finished = empty.run("chek", "ann@acme.io", "view", "secrets")

    assert finished.returncode == 2
    assert finished.stdout == ""
    assert "chek" in finished.stderr


def test_closed_output_leaves_no_traceback(empty: Workspace) -> None:
    """Output into a closed pipe, as with `| head`, is a failure without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    finished = subprocess.run(
        [PROGRAM, "policy", "matrix"],
        cwd=empty.folder,
        env=empty.environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)

    assert finished.returncode != 0
    assert finished.stderr == ""


def _command_lines() -> list[tuple[str, ...]]:
    """Every command and group of commands, as it is typed, at any depth."""
    found: list[tuple[str, ...]] = []
    unseen: list[tuple[tuple[str, ...], Any]] = [((), typer.main.get_command(app))]
    while unseen:
        line, command = unseen.pop()
        found.append(line)
        unseen += [((*line, name), below) for name, below in getattr(command, "commands", {}).items()]
    return sorted(found)


def test_every_command_is_listed_in_this_test() -> None:
    """The command line has these commands and no others, so that none appears or disappears unnoticed."""
    assert {" ".join(line) for line in _command_lines()} == {
        "",
        "init",
        "serve",
        "serve-worker",
        "check",
        "permissions",
        "resources",
        "subjects",
        "whoami",
        "accept",
        "sign-in",
        "members",
        "members list",
        "members set-role",
        "members remove",
        "members leave",
        "invitations",
        "invitations create",
        "invitations list",
        "invitations resend",
        "invitations delete",
        "policy",
        "policy lint",
        "policy test",
        "policy matrix",
        "policy explain",
        "tokens",
        "tokens create",
        "tokens list",
        "tokens rotate",
        "tokens delete",
        "audit",
        "audit list",
        "audit export",
        "audit verify",
        "operator",
        "operator organizations",
        "operator organizations create",
        "operator organizations list",
        "operator policy",
        "operator policy activate",
        "operator tokens",
        "operator tokens issue",
        "operator tokens revoke",
        "operator audit",
        "operator audit erase",
        "operator audit prune",
        "operator audit restart",
        "operator backup",
        "operator db",
        "operator db upgrade",
    }


@pytest.mark.parametrize("line", _command_lines(), ids=" ".join)
def test_every_command_has_help(line: tuple[str, ...]) -> None:
    """`--help` says what a command does, and exits with 0."""
    result = CliRunner().invoke(app, [*line, "--help"])

    assert result.exit_code == 0
    assert f"rolecall {' '.join(line)}".strip() in result.output
