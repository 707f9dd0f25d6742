"""The README runs, and it and the documents name only commands and options that exist."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rolecall.cli import app

ROOT = Path(__file__).parent.parent
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
    """Paste every shell line of a document, one after the other, into an empty folder; all that it says.

    Its server, which it starts as its first block's last but one, gets a port that is free.
    """
    shutil.copytree(ROOT / "policies", folder / "policies")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = str(probe.getsockname()[1])
    first, *rest = [block.replace(port, free) for block in blocks(document, "sh")]
    lines = [
        "set -e",
        first.replace("sleep 4", f"until (: </dev/tcp/127.0.0.1/{free}) 2>/dev/null; do sleep 0.1; done"),
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
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"answers on 127.0.0.1:{free}" in ran.stderr
    assert "Stopping." in ran.stderr
    return ran.stdout + ran.stderr


def test_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Every shell line and the Python example, pasted one after the other into an empty folder."""
    readme = ROOT / "README.md"
    (tmp_path / "example.py").write_text(blocks(readme, "python")[0])

    said = run(readme, "50061", tmp_path, "python example.py")

    for part in (
        "ALLOW",
        "DENY",
        "denied",
        "OWNER may",
        "NOT_GRANTED",
        "billing",
        "WHOLE",
        "2 invited",
        "is VIEWER now",
    ):
        assert part in said


@pytest.mark.skipif(GRPCURL is None, reason="grpcurl is not installed")
def test_the_journey_runs(tmp_path: Path) -> None:
    """From an empty folder to a revoked token: every line of the document, of the command and of grpcurl."""
    said = run(ROOT / "docs" / "journey.md", "50062", tmp_path)

    for part in (
        "2 invited",
        "1 invited",
        "You are bob@acme.io, ADMIN of acme.",
        "kim@acme.io (user",
        "eve@acme.io is OWNER now.",
        "the last owner stays one",
        "Nobody else holds the role OWNER in acme",
        "ALLOW",
        "the token is dead",
        "so is the session",
        "WHOLE",
        "an ADMIN invites no OWNER",
        "ROLE_BEYOND_CALLER",
        '"email": "zoe@acme.io"',
        '"displayName": "Lee"',
        "REASON_GRANTED",
        "REASON_TOKEN_INVALID",
        "AUDIT_VERDICT_WHOLE",
    ):
        assert part in said, part


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_commands_that_exist(document: Path) -> None:
    """Each `rolecall ...` in a document is a command, and each of its options is in that command's help."""
    text = document.read_text()
    named = set(re.findall(r"\brolecall ((?:[a-z]+ ?){1,2})((?:[^`\n|]*))", text))
    for words, rest in named:
        command = words.split()
        if command[0] in ("init", "serve", "check", "permissions", "subjects", "whoami", "accept"):
            command = command[:1]
        elif command[0] not in ("policy", "tokens", "organizations", "audit", "db", "members", "invitations"):
            continue
        shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        assert shown.exit_code == 0, (document.name, command)
        for option in re.findall(r"(?<!\S)\[?(--[a-z-]+)", rest):
            assert option in shown.stdout, (document.name, command, option)


def test_every_setting_is_documented() -> None:
    """docs/operating.md has a row for each setting, with its default."""
    from rolecall.config import Settings

    text = (ROOT / "docs" / "operating.md").read_text()
    for name, field in Settings.model_fields.items():
        row = next((line for line in text.splitlines() if f"`{name}`" in line and line.startswith("|")), "")
        default = "none" if field.default is None else str(field.default).lower()

        assert f"ROLECALL_{name.upper()}" in row, name
        assert default in row.lower(), name
