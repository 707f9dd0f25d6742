"""The README runs, and it and the documents name only commands and options that exist."""

import os
import pkgutil
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from rolecall.cli import app
from support.environment import ROOT

BIN = Path(sys.executable).parent
GRPCURL = shutil.which("grpcurl") or shutil.which("grpcurl", path=Path.home() / "go" / "bin")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    """A document's code blocks in `language`, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def environment() -> dict[str, str]:
    """Ours, with the installed command first on the path, and grpcurl last."""
    path = os.pathsep.join([str(BIN), os.environ["PATH"], str(Path.home() / "go" / "bin")])
    return {**os.environ, "PATH": path}


def run(document: Path, port: str, folder: Path, *more: str) -> str:
    """Run every shell block of a document in an empty folder; return the output.

    Its server, which it starts as its first block's last but one, gets a port that is free.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = str(probe.getsockname()[1])
    first, *rest = [block.replace(port, free) for block in blocks(document, "sh")]
    lines = [
        "set -e",
        first,
        "server=$(jobs -p)",
        "trap 'kill $server; wait $server' EXIT",
        *rest,
        *more,
    ]
    ran = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f'"address": "127.0.0.1:{free}"' in ran.stderr
    assert "server stopping" in ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.timeout(240)
def test_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Every shell line and the Python example, pasted one after the other into an empty folder."""
    readme = ROOT / "README.md"
    (tmp_path / "example.py").write_text(blocks(readme, "python")[0])

    shown = run(readme, "50061", tmp_path, "python example.py")

    for part in (
        "ALLOW",
        "DENY",
        "denied",
        "OWNER may",
        "NOT_GRANTED",
        "billing",
        "INTACT",
        "2 invited",
        "is VIEWER now",
    ):
        assert part in shown


@pytest.mark.skipif(GRPCURL is None, reason="grpcurl is not installed")
@pytest.mark.timeout(240)
def test_the_journey_runs(tmp_path: Path) -> None:
    """Every line of the document, of the command and of grpcurl, runs: from an empty folder to a revoked token."""
    shown = run(ROOT / "docs" / "journey.md", "50062", tmp_path)

    for part in (
        "2 invited",
        "1 invited",
        "You are bob@acme.io, ADMIN of acme.",
        "kim@acme.io (user",
        "eve@acme.io is OWNER now.",
        "the last owner stays one",
        "Nobody else holds the role OWNER in acme",
        "mia@contractor.io is assigned CONTRIBUTOR at projects/billing until",
        "not in another project",
        "not in the team any more",
        "the contract has ended",
        "ALLOW",
        "the token is revoked",
        "so is the session",
        "INTACT",
        "an ADMIN invites no OWNER",
        "ROLE_BEYOND_CALLER",
        '"email": "zoe@acme.io"',
        '"displayName": "Lee"',
        '"assignmentId":',
        "REASON_GRANTED",
        "REASON_TOKEN_INVALID",
        "AUDIT_VERDICT_INTACT",
    ):
        assert part in shown, part


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_commands_that_exist(document: Path) -> None:
    """Each `rolecall ...` in a document is a command, and each of its options is in that command's help."""
    root: Any = typer.main.get_command(app)
    typed_lines = re.findall(
        r"(?:`|\$\(|^ *(?:\$ )?)rolecall ((?:[a-z][a-z-]* ?)*)([^`\n|]*)", document.read_text(), re.MULTILINE
    )
    for words, rest in set(typed_lines):
        typed, command = words.split(), root
        line: list[str] = []
        while typed and hasattr(command, "commands"):
            assert typed[0] in command.commands, (document.name, *line, typed[0])
            line.append(typed.pop(0))
            command = command.commands[line[-1]]
        options = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(?<!\S)\[?(--[a-z-]+)", rest):
            assert option in options, (document.name, *line, option)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_classes_and_modules_that_exist(document: Path) -> None:
    """A class, message or RPC in backquotes is in the source or the protos, and a name in `rolecall.` resolves."""
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "protos").rglob("*.proto")]
    known = set(re.findall(r"\w+", "".join(path.read_text() for path in sources)))
    modules = {path.stem for path in (ROOT / "src" / "rolecall").iterdir()}
    for quoted in re.findall(r"`([^`\n]+)`", document.read_text()):
        if re.fullmatch(r"(?:[A-Z][a-z]+)+", quoted):
            assert quoted in known, quoted
        first, _, name = quoted.removeprefix("rolecall.").partition(".")
        if quoted.startswith("rolecall.") and first in modules and name and first != "v1":
            assert pkgutil.resolve_name(f"rolecall.{first}:{name}"), quoted


def test_manifest_sets_what_exists() -> None:
    """The variables in a document's YAML are settings."""
    from rolecall.config import Settings

    named = set(re.findall(r"ROLECALL_(\w+)", "".join(blocks(ROOT / "docs" / "operating.md", "yaml"))))

    assert named
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


def test_every_setting_is_documented() -> None:
    """docs/operating.md has a row for each setting, with its default."""
    from rolecall.config import Settings

    text = (ROOT / "docs" / "operating.md").read_text()
    for name, field in Settings.model_fields.items():
        row = next((line for line in text.splitlines() if f"`{name}`" in line and line.startswith("|")), "")
        default = "none" if field.default is None else str(field.default).lower()

        assert f"ROLECALL_{name.upper()}" in row, name
        assert default in row.lower(), name
