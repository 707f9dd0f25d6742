"""Rules about the code itself."""

import csv
import re
import subprocess
import sys
from pathlib import Path

from rolecall import errors
from rolecall.v1 import errors_pb2
from support.environment import PERMISSIONS_FILE, ROOT


def test_no_role_name_appears_in_the_code() -> None:
    """The source code names no role: the policy defines the roles."""
    with PERMISSIONS_FILE.open(encoding="utf-8") as file:
        roles = set(next(csv.reader(file))[2:-1]) | {"EDITOR"}
    named = re.compile(rf"\b({'|'.join(roles)})\b")
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "src").rglob("*.py*"))
        if path.suffix in (".py", ".pyi")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if named.search(line)
    ]

    assert hits == []


def test_every_error_has_its_reason_in_the_protos() -> None:
    """Every error that a client may meet on the wire is documented in the protos, and nothing else."""
    names = list(errors_pb2.ErrorReason.keys())
    declared = {name.removeprefix("ERROR_REASON_") for name in names} - {"UNSPECIFIED"}
    local = {errors.ConfigError.reason, errors.CallFailed.reason}

    assert {error.reason for error in errors.error_classes()} - local == declared


def test_every_error_reason_is_documented_under_its_status() -> None:
    """docs/concepts.md lists the reasons by status, as the errors declare them."""
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Z_]+) \| (.*) \|$", text, re.MULTILINE)
    documented = {(status, reason) for status, reasons in rows for reason in re.findall(r"\b[A-Z][A-Z_]+\b", reasons)}
    local = {errors.ConfigError.reason, errors.CallFailed.reason}

    assert documented == {(e.status, e.reason) for e in errors.error_classes() if e.reason not in local}


def test_sources_cite_headings_that_exist() -> None:
    """A comment that cites docs/concepts.md names one of its headings."""
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    topics = {heading.partition(":")[0].lower() for heading in headings}
    cited = [
        (path.name, name)
        for path in sorted((ROOT / "src").rglob("*.py"))
        for name in re.findall(r"docs/concepts\.md, ([\w ]+)", path.read_text(encoding="utf-8"))
    ]

    assert cited
    assert [(file, name) for file, name in cited if _topic(name) not in topics] == []


def test_no_test_file_imports_another() -> None:
    """Helpers that several files share are in tests/support, or in the folder of the tests that use them."""
    imported = re.compile(r"^\s*(?:from|import) (?:[\w.]+\.)?(?:test_\w+|conftest)\b", re.MULTILINE)
    hits = [
        f"{path.relative_to(ROOT)}: {found.strip()}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for found in imported.findall(path.read_text(encoding="utf-8"))
    ]

    assert hits == []


def test_sources_cite_reproductions_that_exist() -> None:
    """A script under docs/reproductions that a comment or a document cites is there."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]
    cited = {name for file in files for name in re.findall(r"\b(\w+\.py)\b", _reproduction_commands(file))}
    there = {path.name for path in (ROOT / "docs" / "reproductions").glob("*.py")}

    assert cited >= there
    assert cited - there == set()


def test_version_imports_no_grpc() -> None:
    """grpc's settings are read when it is first imported, so nothing imports it early."""
    modules = (
        "rolecall, rolecall.policy, rolecall.config, rolecall.storage, rolecall.audit, rolecall.services.organizations"
    )
    code = f"import sys, {modules}; sys.exit('grpc' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_docstring_that_does_not_name_its_subject_is_found(tmp_path: Path) -> None:
    """The check prints file, line and first words of a refused docstring, in any position, and fails."""
    lines = [
        '"""It reads files."""',
        "class Reader:",
        '    """What reads files."""',
        "    size: int = 0",
        '    """The same in bytes."""',
        "    async def read(self) -> None:",
        '        """Whoever calls waits."""',
    ]
    (tmp_path / "module.py").write_text("\n".join(lines), encoding="utf-8")

    done = _check_docstrings(tmp_path)

    assert done.returncode == 1
    assert [line.rpartition("/")[2] for line in done.stdout.splitlines()[:-1]] == [
        "module.py:1: docstring begins with `It`: It reads files.",
        "module.py:3: docstring begins with `What`: What reads files.",
        "module.py:5: docstring begins with `The same`: The same in bytes.",
        "module.py:7: docstring begins with `Whoever`: Whoever calls waits.",
    ]


def test_docstrings_that_name_their_subject_are_accepted(tmp_path: Path) -> None:
    """Words that only begin like a refused one are accepted, and so are strings that aren't docstrings."""
    lines = [
        '"""Iterator of files."""',
        'WORDS = ["It", "What is there"]',
        "def assign() -> str:",
        '    """Assign a name."""',
        '    return "They"',
    ]
    (tmp_path / "module.py").write_text("\n".join(lines), encoding="utf-8")

    done = _check_docstrings(tmp_path)

    assert (done.returncode, done.stdout) == (0, "")


def _check_docstrings(path: Path) -> subprocess.CompletedProcess[str]:
    """Run the check of `make lint` on one folder."""
    command = [sys.executable, str(ROOT / "scripts" / "check_docstrings.py"), str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _reproduction_commands(file: Path) -> str:
    """Return the commands of the reproductions' page, and the citations of its scripts in any other file."""
    text = file.read_text(encoding="utf-8")
    pattern = r"\$ python \w+\.py" if file.parent.name == "reproductions" else r"reproductions/\w+\.py"
    return " ".join(re.findall(pattern, text))


def _topic(cited: str) -> str:
    """The heading that a citation means, in lower case: of several rules, the first."""
    name = re.sub(r"^rules (\d).*", r"rule \1", cited.lower())
    return re.match(r"rule \d|[a-z ]+", name)[0].strip()  # type: ignore[index]


def test_every_file_that_contributing_names_exists() -> None:
    """A path of the repository in CONTRIBUTING.md leads to a file or folder."""
    named = re.findall(
        r"`((?:src|tests|protos|policies|benchmarks|docs|scripts)/[\w./-]+)`", (ROOT / "CONTRIBUTING.md").read_text()
    )

    assert len(named) > 30
    assert [path for path in named if not (ROOT / path).exists()] == []
