"""The command line itself: its commands, its help, its version."""

import os
import pty
import select
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import rolecall
from rolecall.cli import app, output
from rolecall.credentials import token_format
from rolecall.domain import CredentialKind
from support.commands import PROGRAM, SMALL_POLICY, SMALL_POLICY_TEST, Workspace, only_line, usage_of
from support.sites import Site


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
        "health",
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
        "members set-external-id",
        "members move",
        "members remove",
        "members leave",
        "invitations",
        "invitations create",
        "invitations list",
        "invitations set-role",
        "invitations resend",
        "invitations delete",
        "assignments",
        "assignments create",
        "assignments list",
        "assignments update",
        "assignments delete",
        "teams",
        "teams create",
        "teams list",
        "teams show",
        "teams rename",
        "teams delete",
        "teams add",
        "teams remove",
        "teams members",
        "policy",
        "policy lint",
        "policy test",
        "policy matrix",
        "policy new",
        "policy explain",
        "policy show",
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


def _leaves() -> list[tuple[tuple[str, ...], Any]]:
    """Every command that isn't a group, as it is typed."""
    found = []
    for line in _command_lines():
        command: Any = typer.main.get_command(app)
        for name in line:
            command = command.commands[name]
        if not getattr(command, "commands", None):
            found.append((line, command))
    return found


# Options given more than once


def _options() -> list[Any]:
    """Every option of every command and group, in each of its spellings."""
    found = []
    for line in _command_lines():
        command: Any = typer.main.get_command(app)
        for name in line:
            command = command.commands[name]
        for option in command.params:
            if option.param_type_name == "option":
                texts = (*option.opts, *option.secondary_opts)
                found += [pytest.param(command, option, text, id=" ".join((*line, text))) for text in texts]
    return found


@pytest.mark.parametrize(("command", "option", "text"), _options())
def test_option_is_given_once_unless_it_is_a_list(command: Any, option: Any, text: str) -> None:
    """The last of several values would win silently: each option of each command is refused, and named."""
    given = [text] if option.is_flag else [text, "1"]

    if option.multiple:
        with pytest.raises(typer.TyperException) as missing:
            command.make_context("x", [*given, *given, "--unknown"])

        assert "--unknown" in missing.value.format_message()
        return
    with pytest.raises(typer.BadParameter) as caught:
        command.make_context("x", [*given, *given])

    assert f"'{option.opts[0]}'" in caught.value.format_message()
    assert "It is given 2 times: give it once." in caught.value.format_message()


def test_there_are_lists_and_single_options() -> None:
    """The test above has options of both kinds."""
    multiple = {each.values[2] for each in _options() if each.values[1].multiple}

    assert multiple == {"--restrict", "--move", "--network"}
    assert len(_options()) > 100


@pytest.mark.parametrize(
    "arguments",
    [
        ("--role", "VIEWER", "--role", "ADMIN"),
        ("--role=VIEWER", "--role=ADMIN"),
        ("--role", "VIEWER", "--text", "x", "--role", "VIEWER"),
    ],
)
def test_second_value_of_an_option_is_a_usage_error(client_workspace: Workspace, arguments: tuple[str, ...]) -> None:
    """The command exits with 2, prints no answer, and names the option."""
    assert "'--role'" in usage_of(client_workspace.run("members", "list", *arguments))


@pytest.mark.parametrize("more", [(), ("--json",)])
@pytest.mark.parametrize("command", [("serve",), ("operator", "db", "upgrade"), ("members", "list")])
def test_usage_error_repeats_no_secret(empty: Workspace, command: tuple[str, ...], more: tuple[str, ...]) -> None:
    """A URL or a credential in the place of an option isn't shown, whatever is in it."""
    token = token_format.mint(CredentialKind.PERSONAL).text
    given = ("postgresql://u:Zx9@Sec ret77@127.0.0.1/rc", f"x{token}")

    for secret in given:
        finished = empty.run(*command, secret, *more)
        assert usage_of(finished).count("unexpected extra argument") == 1
        assert not [part for part in ("Zx9", "ret77", "127.0.0.1", token[20:]) if part in finished.stderr]


def test_contradicting_flags_are_a_usage_error(empty: Workspace) -> None:
    """A flag and its opposite are one option."""
    assert "--reflection" in usage_of(empty.run("serve", "--reflection", "--no-reflection"))


def test_every_command_that_prints_has_json() -> None:
    """All commands print JSON with `--json`, but the worker, which a supervisor starts."""
    without = {
        " ".join(line) for line, command in _leaves() if not any("--json" in option.opts for option in command.params)
    }

    assert without == {"serve-worker"}


# Tables


def on_terminal(workspace: Workspace, columns: int, *arguments: str) -> str:
    """Output of a command on a terminal of this width."""
    reader, writer = os.openpty()
    environment = {**workspace.environment, "COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen([PROGRAM, *arguments], cwd=workspace.folder, env=environment, stdout=writer) as process:
        os.close(writer)
        shown = b""
        # The end of a terminal is an error of the system.
        with suppress(OSError):
            while part := os.read(reader, 65_536):
                shown += part
    os.close(reader)
    assert process.returncode == 0
    return shown.decode().replace("\r\n", "\n")


def test_table_is_a_box_on_a_terminal_and_lines_of_tabs_in_a_pipe(empty: Workspace) -> None:
    """A terminal gets a box, a narrow one a block for each row, and a pipe one line for each row, without padding."""
    (empty.folder / "policies" / "policy.csv").write_text(SMALL_POLICY)
    (empty.folder / "policies" / "policy_test.csv").write_text(SMALL_POLICY_TEST)

    piped = empty.run("policy", "matrix")
    wide = on_terminal(empty, 120, "policy", "matrix")
    narrow = on_terminal(empty, 30, "policy", "matrix")

    assert piped.stdout.splitlines()[:2] == [
        "resource\taction\tOWNER\tADMIN\tCONTRIBUTOR\tVIEWER\tVIEWERNOSECRETS",
        "members\tview\t✓\t✓\t✓\t✓\t✓",
    ]
    assert len(piped.stdout.splitlines()) == 5
    assert wide.startswith("┏")
    assert wide.count("│ members ") == 1
    assert "resource:      members\naction:        view\n" in narrow
    assert "│" not in narrow


@pytest.mark.parametrize("name", ["tab\there", "line\nend", "esc\x1b[31m", "x" * 1000])
def test_cell_is_one_printable_piece_of_a_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A row stays one line with a tab between two cells, of bounded length, for any value."""
    output.print_table(("name", "role"), [(name, "VIEWER")])

    header, row = capsys.readouterr().out.splitlines()
    assert header == "name\trole"
    assert row.split("\t")[1:] == ["VIEWER"]
    assert row.replace("\t", "").isprintable()
    assert len(row) < 270


# Completion


def test_bash_completes_what_is_typed(empty: Workspace, sqlite_site: Site, tmp_path: Path) -> None:
    """After `--install-completion`, an interactive bash completes commands, options and their values at a tab."""
    del sqlite_site
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        **empty.environment,
        "HOME": str(home),
        "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}",
        "PS1": "",
        "TERM": "dumb",
    }
    installed = subprocess.run(
        ["bash", "--norc", "-c", "rolecall --install-completion; exit $?"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    process, terminal = pty.fork()
    if not process:
        os.execvpe("bash", ["bash", "--noprofile", "-i"], environment)

    def typed(text: str, expected: str) -> str:
        """Type a text and a tab; return what the terminal shows once it has what is expected."""
        os.write(terminal, f"{text}\t".encode())
        shown, until = "", time.monotonic() + 60
        while expected not in shown and time.monotonic() < until:
            if select.select([terminal], [], [], 0.5)[0]:
                shown += os.read(terminal, 4096).decode(errors="replace")
        # Ctrl-U empties the line.
        os.write(terminal, b"\x15")
        return shown

    try:
        command = typed("rolecall memb", "rolecall members")
        option = typed("rolecall members list --ord", "--order")
        value = typed("rolecall audit list --outcome den", "denied")
    finally:
        os.close(terminal)
        os.waitpid(process, 0)

    assert "rolecall members" in command
    assert "rolecall members list --order" in option
    assert "rolecall audit list --outcome denied" in value


def test_completion_script_is_shown(empty: Workspace) -> None:
    """`--show-completion` prints the script for the shell in which it is typed, to be put where one likes."""
    finished = subprocess.run(
        ["bash", "--norc", "-c", f"{PROGRAM} --show-completion; exit $?"],
        env=empty.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (finished.returncode, finished.stderr) == (0, "")
    assert "_ROLECALL_COMPLETE" in finished.stdout
