"""Policy folders for the tests beside this file."""

from pathlib import Path
from typing import Any

import casbin

from rolecall.policy import CONDITIONS_FILE, MODEL_FILE, POLICY_FILE, TEST_FILE
from support.environment import ROOT

__all__ = ["CASES", "CONDITIONAL_MODEL", "HEADER", "MODEL", "OWNER_ROW", "SHIPPED", "casbin_over", "write_folder"]

SHIPPED = ROOT / "policies"
MODEL = (SHIPPED / MODEL_FILE).read_text(encoding="utf-8")
CONDITIONAL_MODEL = (SHIPPED / "variants" / "office-network" / MODEL_FILE).read_text(encoding="utf-8")

# A policy needs a role that may `owners update`, and a statement of what it should answer.
OWNER_ROW = "p, TOP, owners, update, allow\n"
HEADER = "role,resource,action,expected,note\n"
CASES = f"{HEADER}TOP,owners,update,allow,the top role\n"


def write_folder(
    folder: Path,
    policy: str | bytes = OWNER_ROW,
    cases: str | bytes = CASES,
    model: str | bytes | None = None,
    conditions: str | bytes | None = None,
) -> Path:
    """Write the files of a policy into `folder`, text as UTF-8, and return it.

    The model is that with conditions if there are any, unless another one is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if model is None:
        model = MODEL if conditions is None else CONDITIONAL_MODEL
    files: dict[str, str | bytes] = {MODEL_FILE: model, POLICY_FILE: policy, TEST_FILE: cases}
    if conditions is not None:
        files[CONDITIONS_FILE] = conditions
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def casbin_over(folder: Path) -> Any:
    """Casbin itself over model.conf and policy.csv of `folder`, without anything of ours between."""
    return casbin.Enforcer(str(folder / MODEL_FILE), str(folder / POLICY_FILE))
