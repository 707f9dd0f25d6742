"""Policies: strict parsing of Casbin files, one immutable index of them, and a check against Casbin itself."""

from pathlib import Path

from rolecall.errors import PolicyInvalid
from rolecall.policy.build import Build, build, read_and_index
from rolecall.policy.explain import explain, explain_without_rules, join_names
from rolecall.policy.expressions import Values, values_of
from rolecall.policy.index import OWNERS, Conditional, Decision, Evaluate, Policy, RoleReasons
from rolecall.policy.parsed import (
    CONDITIONS_FILE,
    MODEL_FILE,
    POLICY_FILE,
    TEST_FILE,
    Finding,
    PolicyFiles,
    Rule,
    Severity,
)
from rolecall.policy.plan import plan_resources
from rolecall.policy.restrictions import (
    HeldPermissions,
    held_at,
    is_restricted_within,
    is_within,
    permissions_at,
    permits,
)
from rolecall.policy.subprocess_build import build_in_subprocess
from rolecall.policy.syntax import pattern_problem, request_problem, value_problem

__all__ = [
    "CONDITIONS_FILE",
    "MODEL_FILE",
    "OWNERS",
    "POLICY_FILE",
    "TEST_FILE",
    "Build",
    "Conditional",
    "Decision",
    "Evaluate",
    "Finding",
    "HeldPermissions",
    "Policy",
    "PolicyError",
    "PolicyFiles",
    "RoleReasons",
    "Rule",
    "Severity",
    "Values",
    "build",
    "build_in_subprocess",
    "build_valid",
    "explain",
    "explain_without_rules",
    "held_at",
    "is_restricted_within",
    "is_within",
    "join_names",
    "load",
    "pattern_problem",
    "permissions_at",
    "permits",
    "plan_resources",
    "read_and_index",
    "request_problem",
    "value_problem",
    "values_of",
]


class PolicyError(PolicyInvalid):
    """Error of a policy folder that may not go live. `findings` say what is wrong where, and what to do."""

    def __init__(self, folder: Path, findings: tuple[Finding, ...]) -> None:
        super().__init__("\n".join([f"The policy in {folder} can't be served:", *map(str, findings)]))
        self.findings = findings


def load(folder: Path | str, casbin_seconds: float = 2.0) -> Policy:
    """Load the policy of `folder`, compared with Casbin for `casbin_seconds`. Raises `PolicyError` if it has errors."""
    return build_valid(Path(folder), casbin_seconds)[0]


def build_valid(folder: Path, casbin_seconds: float) -> tuple[Policy, Build]:
    """Build the policy of `folder` as `load` does; return it, and the build. Raises `PolicyError` if it has errors."""
    result = build_in_subprocess(folder, casbin_seconds)
    if result.policy is None:
        raise PolicyError(folder, result.errors)
    return result.policy, result
