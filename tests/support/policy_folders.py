"""Policy folders for the tests beside this file."""

from pathlib import Path
from typing import Any

import casbin

from rolecall.policy import MODEL_FILE, POLICY_FILE, TEST_FILE
from support.environment import ROOT

__all__ = ["CASES", "HEADER", "MODEL", "OWNER_ROW", "SHIPPED", "casbin_over", "write_folder"]

SHIPPED = ROOT / "policies"
MODEL = (SHIPPED / MODEL_FILE).read_text(encoding="utf-8")

# A policy needs a role that may `owners update`, and a statement of what it should answer.
OWNER_ROW = "p, TOP, owners, update, allow\n"
HEADER = "role,resource,action,expected,note\n"
CASES = f"{HEADER}TOP,owners,update,allow,the top role\n"


def write_folder(
    folder: Path, policy: str | bytes = OWNER_ROW, cases: str | bytes = CASES, model: str | bytes = MODEL
) -> Path:
    """Write the three files of a policy into `folder`, text as UTF-8, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((MODEL_FILE, model), (POLICY_FILE, policy), (TEST_FILE, cases)):
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def casbin_over(folder: Path) -> Any:
    """Casbin itself over model.conf and policy.csv of `folder`, without anything of ours between."""
    return casbin.Enforcer(str(folder / MODEL_FILE), str(folder / POLICY_FILE))
