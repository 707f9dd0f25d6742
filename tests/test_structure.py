"""Rules about the code itself."""

import csv
import re
import subprocess
import sys
from pathlib import Path

from rolecall import errors
from rolecall.v1 import errors_pb2

ROOT = Path(__file__).parent.parent
SOURCE = sorted(path for path in (ROOT / "src" / "rolecall").rglob("*.py") if "v1" not in path.parts)


def test_no_role_name_appears_in_the_code() -> None:
    """The server asks the policy; what roles are called is the admins' business."""
    with (ROOT / "tests" / "permissions.csv").open(encoding="utf-8") as file:
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
    """What a client may meet on the wire is documented there, and nothing else."""
    names = list(errors_pb2.ErrorReason.keys())
    declared = {name.removeprefix("ERROR_REASON_") for name in names} - {"UNSPECIFIED"}
    local = {errors.ConfigError.reason, errors.CallFailed.reason}

    assert {error.reason for error in errors.kinds()} - local == declared


def test_looking_at_the_version_imports_no_grpc() -> None:
    """grpc's settings are read when it is first imported, so nothing imports it early."""
    modules = "rolecall, rolecall.policy, rolecall.config, rolecall.storage, rolecall.audit, rolecall.organizations"
    code = f"import sys, {modules}; sys.exit('grpc' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_modules_stay_small() -> None:
    """A module above 400 lines has more than one reason to exist."""
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE}

    assert {path: length for path, length in lengths.items() if length > 400} == {}
