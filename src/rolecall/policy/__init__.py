"""What each role may do: strict reading of Casbin files, one immutable index, Casbin as its judge."""

from pathlib import Path

from rolecall.errors import PolicyInvalid
from rolecall.policy.build import Build, build, index
from rolecall.policy.compiled import OWNERS, Decision, Policy
from rolecall.policy.explain import explain, few
from rolecall.policy.handover import build_aside
from rolecall.policy.scope import Reach, is_cut_down, is_within, narrowed, permits
from rolecall.policy.source import MODEL_FILE, POLICY_FILE, TEST_FILE, Finding, Rule, Severity
from rolecall.policy.words import asked_problem, pattern_problem

__all__ = [
    "MODEL_FILE",
    "OWNERS",
    "POLICY_FILE",
    "TEST_FILE",
    "Build",
    "Decision",
    "Finding",
    "Policy",
    "PolicyError",
    "Reach",
    "Rule",
    "Severity",
    "asked_problem",
    "build",
    "build_aside",
    "explain",
    "few",
    "index",
    "is_cut_down",
    "is_within",
    "load",
    "narrowed",
    "pattern_problem",
    "permits",
]


class PolicyError(PolicyInvalid):
    """A folder is no policy that may go live. `findings` say what is wrong where, and what to do."""

    def __init__(self, folder: Path, findings: tuple[Finding, ...]) -> None:
        super().__init__("\n".join([f"The policy in {folder} can't be served:", *map(str, findings)]))
        self.findings = findings


def load(folder: Path | str, oracle_seconds: float = 2.0) -> Policy:
    """The policy of `folder`, compared with Casbin for `oracle_seconds`. Raises `PolicyError` where it has errors."""
    result = build_aside(Path(folder), oracle_seconds)
    if result.policy is None:
        raise PolicyError(Path(folder), result.errors)
    return result.policy
