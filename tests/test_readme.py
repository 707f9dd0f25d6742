"""The README runs, and it and the documents name only commands and options that exist."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    """The README's code blocks in `language`, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def environment() -> dict[str, str]:
    """Ours, with the installed command first on the path."""
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def test_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Every shell line and the Python example, pasted one after the other into an empty folder."""
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shell = [block.replace("50061", port) for block in blocks("sh")]
    (tmp_path / "example.py").write_text(blocks("python")[0])
    lines = [
        "set -e",
        *shell[:1],
        "server=$!",
        "trap 'kill $server; wait $server' EXIT",
        f"until (: </dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.1; done",
    ]
    lines += [*shell[1:], "python example.py"]

    ran = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    for part in (
        "ALLOW",
        "DENY",
        "denied",
        "OWNER may",
        "NOT_GRANTED",
        f"answers on 127.0.0.1:{port}",
        "Stopping.",
        "billing",
        "WHOLE",
    ):
        assert part in ran.stdout + ran.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_commands_that_exist(document: Path) -> None:
    """Each `rolecall ...` in a document is a command, and each of its options is in that command's help."""
    text = document.read_text()
    named = set(re.findall(r"\brolecall ((?:[a-z]+ ?){1,2})((?:[^`\n|]*))", text))
    for words, rest in named:
        command = words.split()
        if command[0] in ("init", "serve", "check", "permissions", "subjects", "whoami"):
            command = command[:1]
        elif command[0] not in ("policy", "tokens", "organizations", "audit", "db"):
            continue
        shown = subprocess.run(
            [BIN / "rolecall", *command, "--help"],
            capture_output=True,
            text=True,
            check=False,
            env={**environment(), "COLUMNS": "200", "TERM": "dumb"},
        )
        assert shown.returncode == 0, (document.name, command)
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
