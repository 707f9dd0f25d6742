"""From a folder to a policy that may go live: read, lint, index, test, compare with Casbin."""

from dataclasses import dataclass
from pathlib import Path

from rolecall.policy import files, golden, lint
from rolecall.policy.compiled import Policy
from rolecall.policy.source import TEST_FILE, Finding, Severity, Source

__all__ = ["Build", "build", "index"]


@dataclass(frozen=True, slots=True)
class Build:
    """What came of a folder: a policy only where no finding is an error.

    `tested` counts the rows of policy_test.csv, `compared` the answers that were compared with Casbin's.
    """

    policy: Policy | None
    findings: tuple[Finding, ...]
    version: str
    tested: int = 0
    compared: int = 0

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep the policy from going live."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)


def index(folder: Path) -> tuple[Source, Policy | None]:
    """All that `folder` says, and its policy where that can be indexed, tested or not."""
    source = files.read(folder)
    blocking = [finding for finding in source.errors if finding.file != TEST_FILE]
    if not blocking:
        lint.check_roles(source)
        blocking = [finding for finding in source.errors if finding.file != TEST_FILE]
    if blocking:
        return source, None
    policy = Policy(source.rules, source.inheritances, source.version)
    lint.check_grants(source, policy)
    return source, policy


def build(folder: Path, oracle_seconds: float | None = 2.0) -> Build:
    """Build the policy of `folder` here. `oracle_seconds` bounds the comparison with Casbin; None: to the end."""
    source, policy = index(folder)
    compared = 0
    if policy is not None:
        golden.check_cases(source, policy)
        if not source.errors:
            from rolecall.policy import oracle  # noqa: PLC0415 - importing Casbin takes longer than finding an error

            compared = oracle.check_against_casbin(source, policy, oracle_seconds)
    served = None if source.errors else policy
    return Build(served, tuple(source.findings), source.version, len(source.cases), compared)
